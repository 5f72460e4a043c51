"""Densely connected networks for 32 x 32 (Huang et al. 2017, arXiv:1608.06993), and twins whose layers look back less far.

Three dense blocks on maps of 32, 16 and 8 pixels: each layer reads everything that its block holds so far and puts ``growth`` maps
beside it; between blocks a 1x1 convolution (``compression``) and a 2x2 average.  ``DenseConfig(100, 12)`` is DenseNet-BC-100-12.
With ``window`` w a layer, and whatever closes the block, reads no more than the last w outputs of its block.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.layers import conv
from cnnstudy.models.pooled import Pooled

BLOCKS = 3
PLAIN_STEM = 16  # channels of the stem without bottlenecks; with them it has twice the growth (section 3, implementation details)


@dataclass(frozen=True)
class DenseConfig:
    """``depth`` weighted layers: 6n + 4 with bottlenecks, else 3n + 4.

    ``bottleneck``: before each 3x3 a 1x1 to ``inner`` channels (0: 4 ``growth``).
    ``window``: how many outputs of its block a layer reads, the block's input counted as one: 0 all of them (DenseNet), 2 the last two,
    1 the one before it (the plain twin).  ``compression``: share of the channels that a transition hands on.
    """

    depth: int = 40
    growth: int = 12
    bottleneck: bool = True
    compression: float = 0.5
    window: int = 0
    inner: int = field(default=0, metadata={"neutral": 0})
    classes: int = 10

    def __post_init__(self) -> None:
        each = BLOCKS * (2 if self.bottleneck else 1)
        if self.depth < each + 4 or (self.depth - 4) % each:
            some = ", ".join(str(each * n + 4) for n in (3, 6, 16))
            raise Refused(f"depth {self.depth} is not a DenseNet's; valid: {each}n + 4 ({some}, ...)")
        if self.growth < 1 or self.classes < 1 or self.window < 0 or self.inner < 0:
            given = f"growth {self.growth}, classes {self.classes}, window {self.window}, inner {self.inner}"
            raise Refused(f"{given}: growth and classes must be at least 1, window and inner at least 0")
        if not 0 < self.compression <= 1:
            raise Refused(f"compression {self.compression} must be above 0 and at most 1")
        if self.inner and not self.bottleneck:
            raise Refused(f"inner {self.inner} is the width of a bottleneck, but bottleneck is false")


class DenseLayer(nn.Module):
    """``branch`` (norm, ReLU, 1x1, norm, ReLU, 3x3) reads all of ``x``; what it makes is put behind ``x`` less its first ``drop`` channels.

    ``x``: (N, c_in, H, W) -> (N, c_in - drop + growth, H, W).
    """

    def __init__(self, c_in: int, growth: int, inner: int, drop: int) -> None:
        super().__init__()
        parts: list[tuple[str, nn.Module]] = [("norm1", nn.BatchNorm2d(c_in)), ("act1", nn.ReLU())]
        if inner:
            parts += [("conv1", conv(c_in, inner, 1)), ("norm2", nn.BatchNorm2d(inner)), ("act2", nn.ReLU())]
            parts += [("conv2", conv(inner, growth))]
        else:
            parts += [("conv1", conv(c_in, growth))]
        self.branch = nn.Sequential(OrderedDict(parts))
        self.c_in, self.growth, self.drop = c_in, growth, drop

    def forward(self, x: Tensor) -> Tensor:
        made = self.branch(x)
        return made if self.drop == self.c_in else torch.cat([x[:, self.drop :], made], 1)


class Dense(Pooled):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, C), averages of what the last block holds."""

    def __init__(self, cfg: DenseConfig) -> None:
        super().__init__()
        n = (cfg.depth - 4) // (BLOCKS * (2 if cfg.bottleneck else 1))
        inner = (cfg.inner or 4 * cfg.growth) if cfg.bottleneck else 0
        c = 2 * cfg.growth if cfg.bottleneck else PLAIN_STEM
        self.stem = nn.Sequential(OrderedDict(conv=conv(3, c)))
        for i in range(BLOCKS):
            stage, held = nn.Sequential(), [c]  # channels of each output that the block still holds
            for number in range(1, n + 1):
                forget = held[0] if cfg.window and len(held) == cfg.window else 0
                stage.add_module(f"layer{number}", DenseLayer(sum(held), cfg.growth, inner, forget))
                held = [*held[bool(forget) :], cfg.growth]
            c = sum(held)
            if i < BLOCKS - 1:
                stage.add_module("transition", transition(c, int(c * cfg.compression)))
                c = int(c * cfg.compression)
            self.stages.append(stage)
        self.final = nn.Sequential(nn.BatchNorm2d(c), nn.ReLU())
        self.classify(c, cfg.classes)

    def layers(self) -> list[DenseLayer]:
        """All dense layers from input to output."""
        return [module for module in self.stages.modules() if isinstance(module, DenseLayer)]

    def maps(self, x: Tensor) -> Tensor:
        """What the last block holds, normalised and cut off at zero: (N, C, h, w)."""
        return self.final(super().maps(x))


def transition(c_in: int, c_out: int) -> nn.Sequential:
    """Norm, ReLU, 1x1 convolution, 2x2 average: (N, c_in, H, W) -> (N, c_out, H / 2, W / 2)."""
    return nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(c_in), act=nn.ReLU(), conv=conv(c_in, c_out, 1), pool=nn.AvgPool2d(2)))
