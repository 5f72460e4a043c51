"""What the small classifiers share: pixels in, stem, stages, the maps' global average, one linear layer."""

from __future__ import annotations

from torch import Tensor, nn

from cnnstudy.layers import Normalize, init_weights


class Pooled(nn.Module):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, C), the averaged maps of the last stage.

    A family replaces ``stem``, fills ``stages``, and then calls ``classify``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.normalize = Normalize()
        self.stem: nn.Module = nn.Identity()  # set before the stages, so that modules stand in the order of the data
        self.stages = nn.Sequential()

    def classify(self, channels: int, classes: int, init: str = "he") -> None:
        """The last layer, with zero biases, and the initial weights of all of them (a name of layers.WEIGHT_INIT)."""
        self.head = nn.Linear(channels, classes)
        nn.init.zeros_(self.head.bias)
        init_weights(self, init)

    def maps(self, x: Tensor) -> Tensor:
        """What is averaged: (N, C, h, w)."""
        return self.stages(self.stem(self.normalize(x)))

    def features(self, x: Tensor) -> Tensor:
        """(N, C): each map's average."""
        return self.maps(x).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
