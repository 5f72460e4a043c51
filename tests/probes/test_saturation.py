"""Flat shares against networks whose pre-activations are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models import ChainConfig, build
from cnnstudy.probes.saturation import activations, saturation, steepest


def scaled(act: nn.Module, *, by: list[float]) -> nn.Module:
    """A network that multiplies its channels by these factors and activates them."""
    conv = nn.Conv2d(len(by), len(by), 1, groups=len(by), bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor(by).view(-1, 1, 1, 1))
    return nn.Sequential(conv, act)


def normal(n: int = 300, channels: int = 1) -> Tensor:
    return torch.randn(n, channels, 8, 8, generator=torch.Generator().manual_seed(0))


def test_steepest() -> None:
    for act, top in ((nn.ReLU(), 1), (nn.Sigmoid(), 0.25), (nn.Tanh(), 1), (nn.Hardswish(), 1.5), (nn.SiLU(), 1.0998), (nn.GELU(), 1.1289)):
        assert steepest(act) == pytest.approx(top, rel=1e-3)


def test_flat_shares_of_a_normal_input() -> None:
    x = normal()

    def beyond(edge: float) -> float:
        return math.erfc(edge / math.sqrt(2))

    # sigmoid' < 0.0125: s (1 - s) = 0.0125; tanh' < 0.05: tanh^2 > 0.95
    s = (1 + math.sqrt(1 - 4 * 0.0125)) / 2
    edges = {"sigmoid": math.log(s / (1 - s)), "tanh": math.atanh(math.sqrt(0.95))}
    for scale in (1.0, 3.0):
        found = {name: saturation(scaled(act, by=[scale]), x) for name, act in (("sigmoid", nn.Sigmoid()), ("tanh", nn.Tanh()))}
        for name, edge in edges.items():
            assert found[name]["flat"][0] == pytest.approx(beyond(edge / scale), abs=0.01)
        assert found["tanh"]["std"][0] == pytest.approx(scale, rel=0.03) and abs(found["tanh"]["mean"][0]) < 0.05
    relu = saturation(scaled(nn.ReLU(), by=[1.0]), x)
    assert relu["flat"][0] == pytest.approx(0.5, abs=0.01) and relu["derivative"][0] == pytest.approx(0.5, abs=0.01)
    assert relu["dead"][0] == relu["dead_channels"][0] == 0


def test_dead_units_and_channels() -> None:
    x = normal(250, 4).abs() + 0.1
    x[:, 3, 2:, :] *= -1  # of the last map six rows of eight are negative in all images
    for column, alive in ((0, 249), (1, 0)):  # alive for the very last image only, and for the very first
        x[:, 2, :, column] *= torch.where(torch.arange(250) == alive, 1.0, -1.0)[:, None]
    found = saturation(scaled(nn.ReLU(), by=[1.0, -1.0, 1.0, 1.0]), x, batch=100)
    assert found["dead_channels"][0] == 1 / 4
    assert found["dead"][0] == pytest.approx((64 + 48) / 256)
    assert found["flat"][0] == pytest.approx((64 + 48 + 16 * 249 / 250) / 256)


def test_the_batch_size_does_not_matter_without_norm() -> None:
    torch.manual_seed(0)
    model = build(ChainConfig(depth=4, width=4, act="tanh", norm="none"))
    x = torch.rand(50, 3, 32, 32)
    one, parts = (saturation(model, x, batch=b, edges=np.linspace(-3, 3, 13)) for b in (50, 7))
    assert set(one) == {"flat", "dead", "dead_channels", "derivative", "derivative_product", "mean", "std", "histogram"}
    for name, values in one.items():
        assert values == pytest.approx(parts[name], rel=1e-4, abs=1e-6)
    assert one["histogram"].shape == (4, 12) and one["histogram"].sum(1) == pytest.approx(np.ones(4))


def test_the_product_of_sigmoid_derivatives_stays_below_the_bound() -> None:
    torch.manual_seed(0)
    model = build(ChainConfig(depth=12, width=8, stages=1, stride=4, act="sigmoid", norm="none", init="xavier"))
    found = saturation(model, torch.rand(20, 3, 32, 32))
    assert found["derivative_product"] == pytest.approx(np.cumprod(found["derivative"]))
    assert (found["derivative_product"] <= 0.25 ** np.arange(1, 13)).all() and (found["derivative"] > 0.1).all()


def test_norm_by_the_batch_or_by_running_statistics() -> None:
    torch.manual_seed(0)
    model = build(ChainConfig(depth=3, width=8, act="tanh", gain=30.0)).eval()
    x = torch.rand(40, 3, 32, 32)
    batch, running = saturation(model, x, batch=40), saturation(model, x, batch=40, train=False)
    assert batch["std"] == pytest.approx(np.ones(3), rel=0.01) and (batch["flat"] < 0.1).all()
    assert (running["std"] > 5).all() and (running["flat"] > 0.5).all()
    edges = np.array([-1.0, 0.0, 1.0])
    assert saturation(model, x, edges=edges)["histogram"].sum(1) == pytest.approx(np.ones(3))  # what lies outside is counted


def test_the_model_is_left_as_found() -> None:
    torch.manual_seed(0)
    model = build(ChainConfig(depth=3, width=4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    saturation(model, torch.rand(4, 3, 32, 32))
    assert not model.training and all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_layers_are_those_of_the_network_in_order() -> None:
    model = build(ChainConfig(depth=3, width=4, act="silu", final="act"))
    assert list(activations(model)) == ["stages.0.0.body.act", "stages.1.0.body.act", "stages.2.0.body.act", "final.0"]
    with pytest.raises(Refused, match="no activation that can be flat; known: ReLU"):
        saturation(build(ChainConfig(depth=3, width=4, act="identity")), torch.rand(2, 3, 32, 32))
