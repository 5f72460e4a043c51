"""How steep the network is around an image: what separates a smooth surface from a saturated softmax."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.attacks.ball import UNIT, AttackConfig, check, project, radius
from cnnstudy.attacks.gradient import ascend, pgd
from cnnstudy.attacks.strength import minimal_perturbation
from cnnstudy.attacks.target import BATCH, Target
from cnnstudy.config import Refused


def steepness(model: nn.Module, x: Tensor, y: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """Input gradients per image, each (N,):

    ``loss_slope``     L1 norm of the gradient of the float32 cross-entropy of logits / ``temperature``, per grey level
    ``loss_zero``      bool: that gradient is exactly zero, so that no attack on this loss can move
    ``margin``         true logit minus the best wrong one (negative: the image is wrong)
    ``margin_slope``   L1 norm of the margin's gradient divided by its absolute value, per grey level: *scale free*,
                       multiplying the logits by a constant does not change it.  1 / margin_slope is the l-infinity
                       perturbation, in units of 1/255, that a linear network would need.

    The L1 norm is the dual of l-infinity: it says how much the value can change within a ball of radius 1/255.
    """
    check(x, y)
    losses = Target(model, x, y, AttackConfig(0, loss="ce", temperature=temperature))
    slope, _ = losses.gradient(x, y)
    margins = Target(model, x, y, AttackConfig(0, loss="margin"))
    lean, logits = margins.gradient(x, y)
    true = logits.gather(1, y[:, None]).squeeze(1)
    lead = true - logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf).amax(1)
    size = lean.flatten(1).abs().sum(1) * UNIT
    return {
        "loss_slope": slope.flatten(1).abs().sum(1) * UNIT,
        "loss_zero": (slope == 0).flatten(1).all(1),
        "margin": lead,
        "margin_slope": size / lead.abs().clamp_min(1e-12),
    }


def displacement(model: nn.Module, x: Tensor, y: Tensor, seed: int = 0, eps: float = 1.0) -> dict[str, float]:
    """How far the pooled penultimate features move, ||f(x + d) - f(x)|| / ||f(x)||, median over the images.

    ``moved_noise``     d: a random sign per pixel and colour, ``eps`` grey levels
    ``moved_attack``    d: ten PGD steps on the margin within ``eps``, each climbing to its last step
    ``margin_slope``    median of :func:`steepness`'s scale-free slope, per grey level

    ``model`` needs ``features``: (N, C, H, W) -> (N, D).  Raises Refused where it has none.
    """
    if not hasattr(model, "features"):
        raise Refused(f"{type(model).__name__} has no features(); displacement needs the pooled penultimate features")
    target = Target(model, x, y, AttackConfig(eps, steps=10, step=0.25, restarts=1, loss="margin", seed=seed))
    noise = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(seed)).to(x) * 2 - 1
    attacked, _ = ascend(target, x, y, radius(eps, x), stop=False)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        return torch.cat([target.exact.features(part) for part in images.split(BATCH)])  # type: ignore[operator]

    still = features(x)
    size = still.norm(dim=1).clamp_min(1e-12)

    def moved(points: Tensor) -> float:
        return float(((features(points) - still).norm(dim=1) / size).median())

    return {
        "moved_noise": moved(project(x + eps * UNIT * noise, x, radius(eps, x))),
        "moved_attack": moved(attacked),
        "margin_slope": float(steepness(model, x, y)["margin_slope"].median()),
    }


def smallest(model: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig, largest: float = 16.0) -> Tensor:
    """Perturbations about as small as fools, like ``x``, for showing: zero where nothing up to ``largest`` / 255 fools.

    Ten per cent above the smallest size known, since the search at a fixed size starts anew.  Zero, too, where the
    image is wrong before.  Uses precision, temperature and seed of ``cfg``.
    """
    sizes = minimal_perturbation(model, x, y, replace(cfg, eps=largest, steps=20, restarts=1))
    found = torch.zeros_like(x)
    for i, size in enumerate(sizes.tolist()):
        if 0 < size <= largest:
            one = slice(i, i + 1)
            found[one] = pgd(model, x[one], y[one], replace(cfg, eps=1.1 * size, steps=50, restarts=3, loss="margin")) - x[one]
    return found
