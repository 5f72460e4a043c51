"""A small network in VGG's manner for 32 x 32 (Simonyan & Zisserman 2015, arXiv:1409.1556): no shortcuts.

Three groups of two 3x3 convolutions with 32, 64 and 128 channels, 2x2 max pooling after each.  The paper's three
fully connected layers are left out (global average pooling and one layer instead), and batch norm is the default.
At width 1 it costs 38.6 million MACs, about as much as ResNet-20 (40.6).  The plain twin of a
ResNet is ``ResNetConfig(skip=False)``.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import ACT, NORM, WEIGHT_INIT, Normalize, conv, init_weights, scaled_width

CHANNELS = (32, 64, 128)


@dataclass(frozen=True)
class VggConfig:
    """vgg-small.  ``width`` multiplies every channel count; ``init`` is a name in ``layers.WEIGHT_INIT``."""

    width: float = 1.0
    norm: str = "batch"
    act: str = "relu"
    init: str = "he"
    classes: int = 10

    def __post_init__(self) -> None:
        if not self.width > 0:
            raise Refused(f"width {self.width} must be above 0")
        if self.classes < 1:
            raise Refused(f"classes {self.classes} must be at least 1")
        choose("norm", self.norm, NORM)
        choose("act", self.act, ACT)
        choose("init", self.init, WEIGHT_INIT)


class Vgg(nn.Module):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 128 width)."""

    def __init__(self, cfg: VggConfig) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.stages = nn.Sequential()
        c_in = 3
        for channels in CHANNELS:
            c_out = scaled_width(channels, cfg.width)
            stage = nn.Sequential()
            for c in (c_in, c_out):
                stage.extend([conv(c, c_out, bias=cfg.norm == "none"), NORM[cfg.norm](c_out), ACT[cfg.act]()])
            stage.append(nn.MaxPool2d(2))
            self.stages.append(stage)
            c_in = c_out
        self.head = nn.Linear(c_in, cfg.classes)
        nn.init.zeros_(self.head.bias)
        init_weights(self, cfg.init)

    def features(self, x: Tensor) -> Tensor:
        """Globally averaged maps of the last group: (N, 128 width)."""
        return self.stages(self.normalize(x)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
