"""Initial weights by name, for any convolution or linear layer: ``draw(model, "xavier", gain=4.0)``.

The names of ``layers.WEIGHT_INIT`` and the other textbook rules.  ``gain`` is a factor on the standard deviation that the rule gives,
so that "He's times c" is ``init="he", gain=c`` and "g / sqrt(fan_in)" is ``init="lecun", gain=g``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import WEIGHT_INIT

NOISE = 0.1  # share of each unit's own noise in "parallel" weights


def he_fan_out_(weight: Tensor) -> None:
    """N(0, 2 / fan_out): keeps the scale of ReLU gradients on their way back (He et al. 2015, arXiv:1502.01852, eq. 14)."""
    nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")


def lecun_(weight: Tensor) -> None:
    """N(0, 1 / fan_in) (LeCun et al. 1998, Efficient BackProp, section 4.6)."""
    nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="linear")


def orthogonal_(weight: Tensor) -> None:
    """Orthogonal rows (or columns) of the matrix (c_out, everything else), times sqrt(2) for ReLU (Saxe et al. 2014, arXiv:1312.6120)."""
    nn.init.orthogonal_(weight, gain=math.sqrt(2))


def parallel_(weight: Tensor) -> None:
    """He's variance, but all units of a layer have nearly the same weights up to their sign: rank one plus small noise."""
    nn.init.normal_(weight)
    with torch.no_grad():
        shared = torch.randn_like(weight[:1])
        sign = torch.randint(0, 2, (len(weight), *[1] * (weight.ndim - 1)), device=weight.device).to(weight) * 2 - 1
        weight.mul_(NOISE).add_(math.sqrt(1 - NOISE**2) * sign * shared).mul_(math.sqrt(2 / weight[0].numel()))


INIT: dict[str, Callable[[Tensor], object]] = {
    **WEIGHT_INIT,
    "he_fan_out": he_fan_out_,
    "xavier": nn.init.xavier_normal_,  # N(0, 2 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 12)
    "lecun": lecun_,
    "orthogonal": orthogonal_,
    "parallel": parallel_,
}


def framework_bias_(bias: Tensor, fan_in: int) -> None:
    """torch's own default: uniform with variance 1 / (3 fan_in)."""
    nn.init.uniform_(bias, -(fan_in**-0.5), fan_in**-0.5)


def draw(model: nn.Module, init: str, gain: float = 1.0) -> nn.Module:
    """Draw every convolution's weights by ``INIT[init]`` and multiply them by ``gain``.  Returns ``model``.

    Biases are zero, with "framework" torch's.  Linear layers and norms stay as they are; "normal" is for linear layers too, as in
    ``layers.init_weights``.  Raises Refused for an unknown name or a gain that is not above 0.
    """
    choose("init", init, INIT)
    if not gain > 0:
        raise Refused(f"gain {gain} must be above 0")
    for module in model.modules():
        if isinstance(module, nn.Conv2d) or (init == "normal" and isinstance(module, nn.Linear)):
            INIT[init](module.weight)
            with torch.no_grad():
                module.weight.mul_(gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
                if init == "framework":
                    framework_bias_(module.bias, module.weight[0].numel())
    return model
