"""VGG-11 to VGG-19 for 32 x 32 (Simonyan & Zisserman 2015, arXiv:1409.1556, table 1), with two heads.

Five blocks of 3x3 convolutions, 2x2 max pooling after each, so that 32 pixels end as one; ``last_pool=False`` leaves 2 x 2,
which gives a head something to average or to flatten.  Head "fc" is the paper's: two hidden layers of 4096 times ``width``
with dropout 0.5; "gap" is global average pooling and one linear layer.  (The small VGG of this book is ``VggConfig``.)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import NORM, WEIGHT_INIT, Normalize, conv, init_weights, scaled_width

CHANNELS = (64, 128, 256, 512, 512)
BLOCKS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}  # configurations A, B, D, E
HIDDEN = 4096


@dataclass(frozen=True)
class DeepVggConfig:
    """VGG-``depth`` (counted with three fully connected layers, whatever the ``head``); ``width`` multiplies all channels.

    ``norm``: "batch", or "none" as published; ``init``: a name in ``layers.WEIGHT_INIT``.
    """

    depth: int = 16
    width: float = 1.0
    norm: str = "batch"
    head: str = "gap"
    last_pool: bool = True
    init: str = "he"
    classes: int = 10

    def __post_init__(self) -> None:
        choose("depth of a VGG", self.depth, BLOCKS)
        choose("norm", self.norm, NORM)
        choose("head", self.head, ("gap", "fc"))
        choose("init", self.init, WEIGHT_INIT)
        if not self.width > 0:
            raise Refused(f"width {self.width} must be above 0")
        if self.classes < 1:
            raise Refused(f"classes {self.classes} must be at least 1")


class DeepVgg(nn.Module):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 512 width), with head "fc" (N, 4096 width).

    The fully connected head pools other sizes than 32 x 32 to the map that it was made for.
    """

    def __init__(self, cfg: DeepVggConfig) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.stages = nn.Sequential()
        c_in = 3
        for i, (convs, channels) in enumerate(zip(BLOCKS[cfg.depth], CHANNELS, strict=True)):
            c_out = scaled_width(channels, cfg.width)
            stage = nn.Sequential()
            for c in [c_in] + [c_out] * (convs - 1):
                stage.extend([conv(c, c_out, bias=cfg.norm == "none"), NORM[cfg.norm](c_out), nn.ReLU()])
            if cfg.last_pool or i < len(CHANNELS) - 1:
                stage.append(nn.MaxPool2d(2))
            self.stages.append(stage)
            c_in = c_out
        side = 1 if cfg.last_pool or cfg.head == "gap" else 2
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten())
        self.hidden = nn.Sequential()
        if cfg.head == "fc":
            hidden = scaled_width(HIDDEN, cfg.width)
            for c in (c_in * side * side, hidden):
                self.hidden.extend([nn.Linear(c, hidden), nn.ReLU(), nn.Dropout(0.5)])
            c_in = hidden
        self.head = nn.Linear(c_in, cfg.classes)
        for module in (*self.hidden, self.head):
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        init_weights(self, cfg.init)

    def features(self, x: Tensor) -> Tensor:
        """What the last linear layer sees."""
        return self.hidden(self.pool(self.stages(self.normalize(x))))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
