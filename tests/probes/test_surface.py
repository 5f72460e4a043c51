"""Slices of the loss surface: directions as long as the weights, losses as computed by hand, curvature as autograd has it."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models import build
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.probes import surface


def images(n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(n, 3, 8, 8, generator=generator), torch.randint(10, (n,), generator=generator)


def test_each_filter_of_a_direction_is_as_long_as_the_networks_own() -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(8, width=4))
    way = surface.direction(model, 1)
    own = dict(model.named_parameters())
    assert set(way) == {name for name, p in own.items() if p.dim() > 1}  # neither biases nor norms
    for name, part in way.items():
        torch.testing.assert_close(part.flatten(1).norm(dim=1), own[name].detach().flatten(1).norm(dim=1))
        assert abs(float(F.cosine_similarity(part.flatten(), own[name].detach().flatten(), 0))) < 0.5  # but points elsewhere
    assert not torch.equal(way["head.weight"], surface.direction(model, 2)["head.weight"])


def test_losses_are_those_of_the_moved_network_and_the_network_stays() -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(8, width=4)).train()
    before = copy.deepcopy(model.state_dict())
    x, y = images()
    way = surface.direction(model, 0)
    losses = surface.along(model, way, x, y, (-0.5, 0.0, 1.0))
    moved = copy.deepcopy(model).eval()
    with torch.no_grad():
        assert losses[1] == pytest.approx(float(F.cross_entropy(moved(x), y)))
        for name, part in way.items():
            moved.get_parameter(name).add_(part)
        assert losses[2] == pytest.approx(float(F.cross_entropy(moved(x), y)), rel=1e-5)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_slices_curvature_is_the_hessians() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10)).double()
    x, y = images()
    x = x.double()
    way = surface.direction(model, 0)
    h = 1e-3
    left, middle, right = surface.along(model, way, x, y, (-h, 0.0, h))

    def loss(weight: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, {"1.weight": weight}, x), y)

    weight = model.get_parameter("1.weight").detach()
    _, product = torch.autograd.functional.hvp(loss, weight, way["1.weight"])
    assert (left - 2 * middle + right) / h**2 == pytest.approx(float((product * way["1.weight"]).sum()), rel=1e-4)


def test_several_directions_and_their_rise() -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(8, width=4))
    x, y = images()
    found = surface.slices(model, x, y, directions=2, steps=(-1.0, 0.0, 1.0))
    (a, centre, b), (c, again, d) = found["loss"]
    assert centre == again
    assert found["rise"] == pytest.approx((a + b + c + d) / 4 - centre)
    assert a != c


def test_refusals() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    x, y = images()
    with pytest.raises(Refused, match="has gone, which this network has not"):
        surface.along(model, {"gone": torch.zeros(1)}, x, y)
    with pytest.raises(Refused, match="steps must hold 0"):
        surface.slices(model, x, y, steps=(-1.0, 1.0))
