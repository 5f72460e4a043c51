"""Peaks by map size and in training, against counts by hand."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models.zoo import ZooConfig
from cnnstudy.probes import memory, peaks


class Hill(nn.Module):
    """A wide map that nothing keeps: made and averaged at once."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 1, stride=2, bias=False)
        self.up = nn.Conv2d(4, 64, 1, bias=False)
        self.narrow = nn.Conv2d(64, 4, 1, stride=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.up(self.down(x))).mean((2, 3))


def test_live_bytes_by_size_of_a_small_network() -> None:
    image, first, wide, last = (4 * n for n in (3 * 16 * 16, 4 * 8 * 8, 64 * 8 * 8, 4 * 4 * 4))
    assert peaks.live_by_size(Hill(), 16, "folded") == {"8": max(image + first, first + wide), "4": wide + last}
    assert peaks.live_by_size(Hill(), 16, "eager")["8"] == image + first + wide  # the caller still holds the image


def test_the_largest_of_the_sizes_is_the_peak() -> None:
    cfg = ZooConfig("mobilenetv2_100", 64)
    for mode in ("eager", "folded"):
        assert max(peaks.live_by_size(cfg, 64, mode).values()) == memory.inference(cfg, 64, 1, mode)["peak_bytes"]


def test_training_climbs_to_the_end_of_the_forward_pass() -> None:
    found = peaks.training_peak(ZooConfig("efficientnet_b0", 64), 64)
    step = memory.training(ZooConfig("efficientnet_b0", 64), 64)
    assert found["peak_bytes"] == step["timeline"].max() >= step["kept_bytes"]
    assert not found["is_spike"] and found["phase"] == "backward" and found["place"] < 0.1 and found["over_kept"] < 0.1
    assert not found["newest_expanded"]  # near the head


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(Refused, match="mode"):
        peaks.live_by_size(Hill(), 16, "lazy")
