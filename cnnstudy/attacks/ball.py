"""What every attack shares: its settings, the ball it stays in, its losses, and the refusal of bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cnnstudy.config import Refused, choose

UNIT = 1 / 255  # epsilon is given in grey levels, as the papers do
LOW_SHARE = 0.75  # of a search with precision "bf16" that runs in bfloat16; the rest, and every judgement, is float32

Loss = Callable[[Tensor, Tensor, float], Tensor]


def cross_entropy(logits: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy per image, (N,), of the logits divided by ``temperature``.

    At T = 1 in float32 its gradient is exactly zero once the true logit leads by about 100: that is how a
    network trained at a high temperature hides (Carlini & Wagner 2017).  Dividing by T undoes it.
    """
    return F.cross_entropy(logits / temperature, y, reduction="none")


def margin(logits: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    """Best wrong logit minus the true one, (N,); above zero means fooled.

    The *sign* of its gradient does not change when all logits are multiplied by a constant, so no scaling of
    the output can mask it (Carlini & Wagner 2017).  ``temperature`` is ignored for the same reason.
    """
    wrong = logits.scatter(1, y[:, None], -math.inf).amax(1)
    return wrong - logits.gather(1, y[:, None]).squeeze(1)


def dlr(logits: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    """The margin divided by the gap between the first and the third logit, (N,) (Croce & Hein 2020, eq. 6)."""
    top = logits.topk(min(3, logits.shape[1]), dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, -1] + 1e-12)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


@dataclass(frozen=True)
class AttackConfig:
    """An l-infinity attack.

    ``eps``           radius of the ball in units of 1/255
    ``steps``         gradient steps of PGD
    ``restarts``      independent starts; an image counts as fooled if one of them fools it
    ``step``          length of a step as a share of ``eps`` (so a run of n steps begins a run of 2n)
    ``loss``          what PGD raises: ``ce``, ``margin`` or ``dlr``
    ``random_start``  start uniformly inside the ball (Madry et al. 2018), else at the image
    ``temperature``   logits are divided by it in the cross-entropy (the adaptive attack on distillation)
    ``queries``       forward passes of the Square attack per image
    ``precision``     ``bf16``: the first three quarters of a search in bfloat16; what counts is always float32
    ``seed``          decides every random draw of the attack

    Raises ``Refused`` for values that make no sense.
    """

    eps: float
    steps: int = 50
    restarts: int = 3
    step: float = 0.1
    loss: str = "ce"
    random_start: bool = True
    temperature: float = 1.0
    queries: int = 500
    precision: str = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise Refused(f"attack eps is {self.eps}; it must be a number >= 0, in units of 1/255")
        for name, least in (("steps", 1), ("restarts", 1), ("queries", 0)):
            if getattr(self, name) < least:
                raise Refused(f"attack {name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("step", "temperature"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise Refused(f"attack {name} is {getattr(self, name)}; it must be a number > 0")
        choose("attack loss", self.loss, LOSSES)
        choose("attack precision", self.precision, ("fp32", "bf16"))


def check(x: Tensor, y: Tensor) -> None:
    """Refuse a batch that is not (N, C, H, W) float32 images in [0, 1] with (N,) int64 labels."""
    if x.ndim != 4 or x.dtype != torch.float32:
        raise Refused(f"attacked images are {x.dtype} of shape {tuple(x.shape)}; valid: float32 of shape (N, C, H, W)")
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        raise Refused(f"labels are {y.dtype} of shape {tuple(y.shape)}; valid: int64 of shape ({x.shape[0]},), one for each image")
    if x.numel() == 0:
        raise Refused("no images to attack; give at least one")
    low, high = (float(v) for v in x.detach().aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN is refused too
        raise Refused(f"attacked images lie in [{low:g}, {high:g}]; valid: [0, 1], normalisation is inside the model")


def radius(eps: float, x: Tensor) -> Tensor:
    """The radius of the ball of each image, (N, 1, 1, 1), in units of the pixels."""
    return torch.full((len(x), 1, 1, 1), eps * UNIT, device=x.device)


def project(point: Tensor, x: Tensor, ball: Tensor) -> Tensor:
    """The nearest point inside the ball around ``x`` and inside [0, 1]; ``ball`` broadcasts against ``x``."""
    return torch.minimum(torch.maximum(point, x - ball), x + ball).clamp_(0, 1)


def uniform(x: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform noise in [-1, 1] like ``x``, drawn on the CPU so that every device sees the same."""
    return (torch.rand(x.shape, generator=generator) * 2 - 1).to(x.device)
