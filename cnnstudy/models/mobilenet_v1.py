"""A MobileNetV1 for 32 x 32 (Howard et al. 2017, arXiv:1704.04861, table 1) and its dense twin.

The paper's layers and channels; only the stem keeps the resolution, so that 32 pixels end as 2 (the paper: 224 as 7).
A layer is a 3x3 depthwise and a 1x1 convolution, batch norm and ReLU after each; in the dense twin it is one 3x3
convolution, as in the paper's "Conv MobileNet" (table 4).  At full size both are counted through ``CounterfactualConfig``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from cnnstudy.config import Refused
from cnnstudy.layers import conv, scaled_width
from cnnstudy.models.pooled import Pooled

STEM = 32
STAGES = ((64, 1), (128, 2), (256, 2), (512, 2), (1024, 2))  # channels, stride of the first layer; the second paper's c, s


@dataclass(frozen=True)
class MobileNetV1Config:
    """``width``: the paper's multiplier alpha; ``separable=False``: the dense twin; ``blocks``: layers in each of the five stages."""

    width: float = 1.0
    separable: bool = True
    blocks: tuple[int, ...] = (1, 2, 2, 6, 2)
    classes: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))  # JSON has lists
        if not self.width > 0:
            raise Refused(f"width {self.width} must be above 0")
        if len(self.blocks) != len(STAGES) or min(self.blocks) < 1:
            raise Refused(f"blocks {list(self.blocks)} are not valid; {len(STAGES)} numbers of at least 1, the paper's are 1, 2, 2, 6, 2")
        if self.classes < 1:
            raise Refused(f"classes {self.classes} must be at least 1")


def layer(c_in: int, c_out: int, stride: int = 1, separable: bool = True) -> nn.Sequential:
    """3x3 depthwise and 1x1, or one dense 3x3; batch norm and ReLU after each.  (N, c_in, H, W) -> (N, c_out, H / stride, ...)."""
    if not separable:
        return nn.Sequential(conv(c_in, c_out, 3, stride), nn.BatchNorm2d(c_out), nn.ReLU())
    depthwise = [conv(c_in, c_in, 3, stride, groups=c_in), nn.BatchNorm2d(c_in), nn.ReLU()]
    return nn.Sequential(*depthwise, conv(c_in, c_out, 1), nn.BatchNorm2d(c_out), nn.ReLU())


class MobileNetV1(Pooled):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 1024 width)."""

    def __init__(self, cfg: MobileNetV1Config) -> None:
        super().__init__()
        c_in = scaled_width(STEM, cfg.width)
        self.stem = layer(3, c_in, separable=False)
        for (channels, first_stride), blocks in zip(STAGES, cfg.blocks, strict=True):
            c_out = scaled_width(channels, cfg.width)
            stage = nn.Sequential()
            for stride in [first_stride] + [1] * (blocks - 1):
                stage.append(layer(c_in, c_out, stride, cfg.separable))
                c_in = c_out
            self.stages.append(stage)
        self.classify(c_in, cfg.classes)
