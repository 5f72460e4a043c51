"""A MobileNetV2 for 32 x 32 (Sandler et al. 2018, arXiv:1801.04381): inverted residuals with linear bottlenecks.

The paper's network is made for 224 x 224.  Against its table 2: the stem keeps the resolution, three later
stages halve it (the paper: five times in all), channels end at 96 and expand by 4 instead of 6, and the last 1x1
has 256 channels.  That leaves what the family stands for (narrow ends, wide depthwise middle, ReLU6, no activation
after the projection) at a size that a CPU trains in minutes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import ACT, InvertedResidual, Normalize, conv, init_weights, scaled_width

STEM, LAST = 16, 256
# expansion, channels, blocks, stride of the first block: as the paper's t, c, n, s
STAGES = ((1, 16, 1, 1), (4, 24, 2, 2), (4, 32, 3, 2), (4, 64, 3, 1), (4, 96, 2, 2))


@dataclass(frozen=True)
class MobileNetV2Config:
    """``width`` multiplies every channel count.  ``separable=False`` is the dense twin: depthwise 3x3 made dense."""

    width: float = 1.0
    separable: bool = True
    act: str = "relu6"
    classes: int = 10

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise Refused(f"width {self.width} must be above 0")
        if self.classes < 1:
            raise Refused(f"classes {self.classes} must be at least 1")
        choose("act", self.act, ACT)


class MobileNetV2(nn.Module):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 256 width)."""

    def __init__(self, cfg: MobileNetV2Config) -> None:
        super().__init__()
        self.normalize = Normalize()
        c_in, last = scaled_width(STEM, cfg.width), scaled_width(LAST, cfg.width)
        self.stem = nn.Sequential(conv(3, c_in), nn.BatchNorm2d(c_in), ACT[cfg.act]())
        self.stages = nn.Sequential()
        for expand, channels, blocks, first_stride in STAGES:
            c_out = scaled_width(channels, cfg.width)
            stage = nn.Sequential()
            for stride in [first_stride] + [1] * (blocks - 1):
                stage.append(InvertedResidual(c_in, c_out, stride, expand, cfg.act, separable=cfg.separable))
                c_in = c_out
            self.stages.append(stage)
        self.last = nn.Sequential(conv(c_in, last, 1), nn.BatchNorm2d(last), ACT[cfg.act]())
        self.head = nn.Linear(last, cfg.classes)
        nn.init.zeros_(self.head.bias)
        init_weights(self, "he")

    def features(self, x: Tensor) -> Tensor:
        """Globally averaged maps of the last convolution: (N, 256 width)."""
        return self.last(self.stages(self.stem(self.normalize(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
