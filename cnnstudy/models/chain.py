"""A chain of convolutions for 32 x 32 whose parts are all settings: depth, activation, norm and its place, initial weights, skips.

``stages=1`` is the chain of the signal-propagation papers: one width, one map size (``stride`` of the first convolution makes it
cheap).  ``stages=3`` and ``5`` are VGG's way: 2x2 max pooling and twice the channels from stage to stage; with five stages 8 convolutions
stand as in VGG-11 (1-1-2-2-2) and 13 as in VGG-16 (2-2-3-3-3).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import ACT, NORM, conv
from cnnstudy.models.inits import INIT, draw
from cnnstudy.models.pooled import Pooled

ORDER = ("conv-norm-act", "conv-act-norm", "act-conv-norm", "norm-act-conv")
FRONT = ("none", "conv", "conv-norm")  # what the first convolution is, if not a layer like all others
FINAL = ("none", "act", "norm-act")  # what follows the last layer
BIAS = ("auto", "on", "off")
WIDEST = 8  # VGG stops doubling its channels here
SLOPE = 0.01

ACTIVATION: dict[str, Callable[[], nn.Module]] = {**ACT, "leaky": nn.LeakyReLU, "sigmoid": nn.Sigmoid, "identity": nn.Identity}


def activation(name: str, slope: float = SLOPE) -> nn.Module:
    """The activation ``name``; ``slope`` is leaky ReLU's for negative inputs."""
    return nn.LeakyReLU(slope) if name == "leaky" else ACTIVATION[choose("act", name, ACTIVATION)]()


def spread(depth: int, stages: int) -> list[int]:
    """``depth`` convolutions over ``stages``, as evenly as can be, the later stages longer: 8 over 5 is 1-1-2-2-2."""
    return [(depth + i) // stages for i in range(stages)]


@dataclass(frozen=True)
class ChainConfig:
    """``depth`` convolutions and one linear layer.

    ``width``: channels of the first stage; ``growth``: how many times as many the next one has (to at most 8 times ``width``).
    ``order``: of the parts in each layer.  ``front``: "none" (the first convolution is in a layer like the others, so that "act-conv-norm"
    rectifies the image), "conv" (it stands alone), "conv-norm".  ``final``: after the last layer, for the orders that leave it
    unactivated.  ``kernel``, ``stride``: of the first convolution; all others are 3x3 with stride 1.  ``bias`` of the convolutions:
    "auto" is only where no norm follows.  ``skip``: the identity around every layer that keeps the shape (all but the first of a stage).
    ``init``, ``gain``: see ``models.inits``.
    """

    depth: int = 8
    width: int = 32
    stages: int = 3
    growth: int = 2
    act: str = "relu"
    slope: float = field(default=SLOPE, metadata={"neutral": SLOPE})
    norm: str = "batch"
    order: str = "conv-norm-act"
    front: str = "none"
    final: str = "none"
    init: str = "he"
    gain: float = 1.0
    kernel: int = 3
    stride: int = 1
    bias: str = "auto"
    skip: bool = False
    classes: int = 10

    def __post_init__(self) -> None:
        for name, valid in (("act", ACTIVATION), ("norm", NORM), ("order", ORDER), ("front", FRONT), ("final", FINAL)):
            choose(name, getattr(self, name), valid)
        choose("init", self.init, INIT)
        choose("bias", self.bias, BIAS)
        choose("stages", self.stages, range(1, 6))
        choose("stride", self.stride, (1, 2, 4))
        choose("kernel", self.kernel, (3, 5, 7, 9, 11))
        if self.depth < max(2, self.stages):
            raise Refused(f"depth {self.depth} is too small; at least {max(2, self.stages)} convolutions for {self.stages} stages")
        if min(self.width, self.growth, self.classes) < 1:
            raise Refused(f"width {self.width}, growth {self.growth} and classes {self.classes} must be at least 1")
        if self.stride * 2 ** (self.stages - 1) > 16:
            raise Refused(f"stride {self.stride} and {self.stages} stages leave less than 2 of 32 pixels; use a smaller stride")
        if not self.gain > 0:
            raise Refused(f"gain {self.gain} must be above 0")
        if self.slope != SLOPE and self.act != "leaky":
            raise Refused(f"slope {self.slope} is for act 'leaky'; act is {self.act!r}")

    def biased(self, follows: str) -> bool:
        """Whether a convolution has a bias if ``follows`` ("norm", "act") comes next."""
        return self.bias == "on" or (self.bias == "auto" and (self.norm == "none" or follows != "norm"))


class Layer(nn.Module):
    """One convolution with its norm and activation in the config's order, after ``pool``; with skip beside the identity.

    ``x``: (N, c_in, H, W) -> (N, c_out, H', W').
    """

    def __init__(self, cfg: ChainConfig, c_in: int, c_out: int, kernel: int = 3, stride: int = 1, pool: bool = False) -> None:
        super().__init__()
        order = cfg.order.split("-")
        follows = (order * 2)[order.index("conv") + 1]  # after the last part comes the next layer's first
        parts = {
            "conv": conv(c_in, c_out, kernel, stride, bias=cfg.biased(follows)),
            "norm": NORM[cfg.norm](c_in if order[0] == "norm" else c_out),
            "act": activation(cfg.act, cfg.slope),
        }
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.body = nn.Sequential(OrderedDict((part, parts[part]) for part in order))
        self.skip = cfg.skip and c_in == c_out and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        y = self.body(x)
        return x + y if self.skip else y


class Chain(Pooled):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, channels of the last stage)."""

    def __init__(self, cfg: ChainConfig) -> None:
        super().__init__()
        c_in, kernel, stride = 3, cfg.kernel, cfg.stride
        counts = spread(cfg.depth, cfg.stages)
        if cfg.front != "none":
            bias = cfg.biased("norm" if cfg.front == "conv-norm" else cfg.order.split("-")[0])
            self.stem = nn.Sequential(OrderedDict(conv=conv(3, cfg.width, kernel, stride, bias=bias)))
            if cfg.front == "conv-norm":
                self.stem.add_module("norm", NORM[cfg.norm](cfg.width))
            c_in, kernel, stride = cfg.width, 3, 1
            counts[0] -= 1
        for i, count in enumerate(counts):
            c_out = cfg.width * min(cfg.growth**i, WIDEST)
            stage = nn.Sequential()
            for j in range(count):
                stage.append(Layer(cfg, c_in, c_out, kernel, stride, pool=i > 0 and j == 0))
                c_in, kernel, stride = c_out, 3, 1
            if count:  # with a front, a first stage of one convolution has no layer left
                self.stages.append(stage)
        self.final = nn.Sequential()
        if cfg.final == "norm-act":
            self.final.append(NORM[cfg.norm](c_in))
        if cfg.final != "none":
            self.final.append(activation(cfg.act, cfg.slope))
        self.classify(c_in, cfg.classes)
        draw(self, cfg.init, cfg.gain)

    def layers(self) -> dict[str, nn.Module]:
        """What holds the convolutions, one each, from input to output, by name: ``stem`` (with a front), ``stages.0.0``, ..."""
        found: dict[str, nn.Module] = {"stem": self.stem} if len(list(self.stem.parameters())) else {}
        return found | {name: module for name, module in self.named_modules() if isinstance(module, Layer)}

    def maps(self, x: Tensor) -> Tensor:
        """What is averaged: (N, C, h, w)."""
        return self.final(super().maps(x))
