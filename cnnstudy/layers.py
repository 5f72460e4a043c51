"""Switchable parts of the small networks: normalisation, activation, shortcut and initialisation.

A part is one line in a table here and, where torch has none, one class.  Every part is an ``nn.Module``
that works in any dtype, on the meta device and under ``torch.fx`` (folding batch norm needs that).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Per-channel mean and standard deviation of CIFAR-10's 50,000 training images in [0, 1].
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel; inside the model, so that attacks work on pixels in [0, 1]."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...] = CIFAR_MEAN, std: tuple[float, ...] = CIFAR_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class SubsamplePad(nn.Module):
    """Shortcut "option A" of He et al. 2016, section 3.3: every other pixel, new channels filled with zeros."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (c_out - c_in) // 2
        self.after = c_out - c_in - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


NORM: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "none": lambda channels: nn.Identity(),
}

ACT: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
}


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the map's size at stride 1 (odd ``kernel``, zero padding)."""
    return nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=bias)


def conv3x3(c_in: int, c_out: int, stride: int, norm: str, separable: bool = False) -> nn.Module:
    """A dense 3x3 convolution, or its depthwise separable form: 3x3 depthwise, norm, 1x1 pointwise.

    The separable form has no activation inside, so that both forms hold equally many nonlinearities.
    A bias is only kept where no normalisation follows it.
    """
    bias = norm == "none"
    if not separable:
        return conv(c_in, c_out, 3, stride, bias=bias)
    depthwise = conv(c_in, c_in, 3, stride, groups=c_in, bias=bias)
    return nn.Sequential(depthwise, NORM[norm](c_in), conv(c_in, c_out, 1, bias=bias))


def _projection(c_in: int, c_out: int, stride: int, norm: str) -> nn.Module:
    return nn.Sequential(conv(c_in, c_out, 1, stride, bias=norm == "none"), NORM[norm](c_out))


# Used only where a block changes the shape: (c_in, c_out, stride, norm) -> module.
SHORTCUT: dict[str, Callable[[int, int, int, str], nn.Module]] = {
    "A": lambda c_in, c_out, stride, norm: SubsamplePad(c_in, c_out, stride),
    "B": _projection,
}


def shortcut(kind: str, c_in: int, c_out: int, stride: int, norm: str) -> nn.Module:
    """The identity where shapes agree, ``SHORTCUT[kind]`` elsewhere."""
    if c_in == c_out and stride == 1:
        return nn.Identity()
    return SHORTCUT[kind](c_in, c_out, stride, norm)


def fan_in_he_(weight: Tensor) -> None:
    """N(0, 2 / fan_in): keeps the scale of ReLU activations (He et al. 2015, arXiv:1502.01852, eq. 10)."""
    nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")


def delta_orthogonal_(weight: Tensor) -> None:
    """An orthogonal matrix, scaled by sqrt(2) for ReLU, at the kernel's centre; zeros around it (arXiv:1806.05393).

    ``weight``: (c_out, c_in, k, k); a depthwise one (c_in 1) is c_out matrices of 1 x 1, each 1 or -1 before scaling.
    """
    c_out, c_in, height, width = weight.shape
    matrices = [torch.empty(1, 1) for _ in range(c_out)] if c_in == 1 else [torch.empty(c_out, c_in)]
    with torch.no_grad():
        for matrix in matrices:
            nn.init.orthogonal_(matrix, gain=math.sqrt(2))
        weight.zero_()
        weight[:, :, height // 2, width // 2] = torch.cat(matrices).to(weight)


def normal_(weight: Tensor) -> None:
    """N(0, 0.01 squared), as VGG was trained (Simonyan & Zisserman 2015, section 3.1)."""
    nn.init.normal_(weight, std=0.01)


def framework_(weight: Tensor) -> None:
    """torch's own default for a convolution: uniform with variance 1 / (3 fan_in)."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))


WEIGHT_INIT: dict[str, Callable[[Tensor], None]] = {
    "he": fan_in_he_,
    "delta_orthogonal": delta_orthogonal_,
    "normal": normal_,
    "framework": framework_,
}

# Starting scale of a residual branch, given the number of blocks; the weights themselves are He's.
BRANCH_INIT: dict[str, Callable[[int], float]] = {
    "zero_branch": lambda blocks: 0.0,  # each block starts as its shortcut (Goyal et al. 2017, arXiv:1706.02677)
    "scaled_branch": lambda blocks: blocks**-0.5,  # variance of the sum stays bounded (arXiv:2002.10444)
}


def init_weights(model: nn.Module, kind: str) -> nn.Module:
    """Draw every convolution's weights by ``WEIGHT_INIT[kind]``, its bias zero; norms and linear layers as built.

    ``"normal"`` is also applied to linear layers (VGG's recipe names no exception).  Returns ``model``.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) or (kind == "normal" and isinstance(module, nn.Linear)):
            WEIGHT_INIT[kind](module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def scale_branch(branch: nn.Module, kind: str, blocks: int) -> None:
    """Scale the last parameters of a residual branch (its norm's, or its convolution's) by ``BRANCH_INIT[kind]``."""
    last = [m for m in branch.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)][-1]
    with torch.no_grad():
        last.weight.mul_(BRANCH_INIT[kind](blocks))


class SqueezeExcite(nn.Module):
    """Scale each channel by a gate computed from all channels' means (Hu et al. 2018, arXiv:1709.01507)."""

    def __init__(self, channels: int, hidden: int, act: str) -> None:
        super().__init__()
        reduce, restore = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)
        self.gate = nn.Sequential(reduce, ACT[act](), restore, nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x.mean((2, 3), keepdim=True))


class InvertedResidual(nn.Module):
    """MobileNetV2's block (arXiv:1801.04381, figure 4d): 1x1 expansion, k x k depthwise, linear 1x1 projection.

    ``expand`` 1 has no expansion layer.  ``se`` is the gate's width relative to the block's input (0: none, as in V2;
    EfficientNet's MBConv has 0.25).  ``separable=False`` is the dense twin: the k x k convolution mixes channels.
    ``x``: (N, c_in, H, W) -> (N, c_out, H / stride, W / stride); the shortcut exists where shapes agree.
    """

    def __init__(
        self, c_in: int, c_out: int, stride: int, expand: int, act: str,
        kernel: int = 3, se: float = 0.0, separable: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        hidden = c_in * expand
        parts: list[nn.Module] = []
        if expand != 1:
            parts += [conv(c_in, hidden, 1), nn.BatchNorm2d(hidden), ACT[act]()]
        spatial = conv(hidden, hidden, kernel, stride, groups=hidden if separable else 1)
        parts += [spatial, nn.BatchNorm2d(hidden), ACT[act]()]
        if se:
            parts.append(SqueezeExcite(hidden, max(1, round(c_in * se)), act))
        parts += [conv(hidden, c_out, 1), nn.BatchNorm2d(c_out)]
        self.branch = nn.Sequential(*parts)
        self.skip = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.skip else self.branch(x)


def scaled_width(channels: int, width: float) -> int:
    """``channels * width`` in steps of 4.  (The papers round to 8; 4 lets twins of equal cost come closer.)"""
    return max(4, int(channels * width / 4 + 0.5) * 4)
