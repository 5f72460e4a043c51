"""One sitting: the head as linear layers computes the same, and every engine answers in the same form."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused, Setup, grid
from cnnstudy.models.zoo import ZooConfig, zoo
from cnnstudy.sitting import linear_head, network, side_by_side

PAIR = [ZooConfig("squeezenet1_1", 64), ZooConfig("mobilenetv3_small_100", 64)]


class Tiny(nn.Module):
    """The end of timm's VGG, small: a map of 7 x 7, two covering convolutions, an averaged map of one pixel, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pre_logits = nn.Sequential()
        for name, layer in {"fc1": nn.Conv2d(4, 6, 7), "act1": nn.ReLU(), "fc2": nn.Conv2d(6, 6, 1), "act2": nn.ReLU()}.items():
            self.pre_logits.add_module(name, layer)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.pre_logits(x).mean((2, 3)))


def test_the_linear_head_computes_the_same_with_the_same_weights() -> None:
    model, x = Tiny().eval(), torch.randn(2, 4, 7, 7)
    before, count = model(x), sum(p.numel() for p in model.parameters())
    after = linear_head(model)
    assert torch.allclose(before, after(x), atol=1e-6) and sum(p.numel() for p in after.parameters()) == count
    assert not [m for m in after.modules() if isinstance(m, nn.Conv2d)]


def test_only_vgg_is_changed() -> None:
    with torch.device("meta"):
        full = network(ZooConfig("vgg16"))
        assert sum(p.numel() for p in full.parameters()) == 138_357_544
        assert sum(isinstance(m, nn.Linear) for m in full.modules()) == 3
        assert sum(isinstance(m, nn.Linear) for m in network(ZooConfig("vgg16"), linear=False).modules()) == 1
        assert sum(isinstance(m, nn.Linear) for m in network(ZooConfig("vgg16", edits=("gap_head",))).modules()) == 1
        assert repr(zoo(ZooConfig("resnet18"))) == repr(network(ZooConfig("resnet18")))
    with pytest.raises(Refused, match="224 pixels"):
        network(ZooConfig("vgg16", 112))


@pytest.mark.parametrize(("engine", "passes"), [("eager", 1), ("onnxruntime", 1), ("train", 3)])
def test_a_sitting_times_every_network_as_often(engine: str, passes: int) -> None:
    clock = Setup(model=PAIR[0], linear=True, engine=engine, batch=2, threads=1, runs=3)
    found = side_by_side(grid(clock, {"model": PAIR}), 0)
    for row in found:
        assert row["runs"] == len(row["samples_ms"]) == 3 and row["latency_ms"] > 0
        assert row["images_per_s"] == pytest.approx(2e3 / row["latency_ms"])
        assert row["gmacs_per_s"] == pytest.approx(passes * 2 * row["macs"] / row["latency_ms"] / 1e6)
    assert found[0]["macs"] > found[1]["macs"]


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(Refused, match="engine"):
        side_by_side([Setup(model=PAIR[0], linear=True, engine="abacus", batch=1, threads=1, runs=1)], 0)
