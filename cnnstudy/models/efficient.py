"""An EfficientNet for 32 x 32, "effnet-b0mini" (Tan & Le 2019, arXiv:1905.11946): MBConv with squeeze-excite and SiLU.

Against the paper's B0 (table 1, made for 224 x 224): the stem keeps the resolution and three later stages halve
it (the paper: five times in all), five stages of two blocks instead of seven, channels end at 96, expand by 4
instead of 6, the last 1x1 has 256 channels, and there is neither dropout nor stochastic depth (both slow down the short
trainings that this book can afford).  Kernels alternate between 3 and 5 as in B0.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import ACT, InvertedResidual, Normalize, conv, init_weights, scaled_width

STEM, LAST, SE = 16, 256, 0.25
# expansion, channels, blocks, stride of the first block, kernel
STAGES = ((1, 16, 1, 1, 3), (4, 24, 2, 2, 3), (4, 40, 2, 2, 5), (4, 64, 2, 1, 3), (4, 96, 2, 2, 5))


@dataclass(frozen=True)
class EfficientNetConfig:
    """``width`` multiplies every channel count.  ``separable=False`` is the dense twin: depthwise layers made dense.

    ``se=False`` leaves the squeeze-excite gates out.
    """

    width: float = 1.0
    separable: bool = True
    se: bool = True
    act: str = "silu"
    classes: int = 10

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise Refused(f"width {self.width} must be above 0")
        if self.classes < 1:
            raise Refused(f"classes {self.classes} must be at least 1")
        choose("act", self.act, ACT)


class EfficientNet(nn.Module):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 256 width)."""

    def __init__(self, cfg: EfficientNetConfig) -> None:
        super().__init__()
        self.normalize = Normalize()
        c_in, last, se = scaled_width(STEM, cfg.width), scaled_width(LAST, cfg.width), SE if cfg.se else 0.0
        self.stem = nn.Sequential(conv(3, c_in), nn.BatchNorm2d(c_in), ACT[cfg.act]())
        self.stages = nn.Sequential()
        for expand, channels, blocks, first_stride, kernel in STAGES:
            c_out = scaled_width(channels, cfg.width)
            stage = nn.Sequential()
            for stride in [first_stride] + [1] * (blocks - 1):
                stage.append(InvertedResidual(c_in, c_out, stride, expand, cfg.act, kernel, se, cfg.separable))
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
