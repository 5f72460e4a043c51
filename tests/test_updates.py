"""Weight changes, Adam as a hook, frozen groups, the rescaling that changes nothing, unit variance."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.data import Data
from cnnstudy.models import ChainConfig, MobileNetV2Config, ResNetConfig, build
from cnnstudy.models.inits import draw
from cnnstudy.probes.gradients import first_to_last, spatial_convs
from cnnstudy.probes.taps import outputs
from cnnstudy.train import Recipe, fit
from cnnstudy.updates import Adam, WeightChange, freeze, rescaled, unit_variance

PLAIN = Recipe(epochs=1, batch=10, lr=0.01, momentum=0.0, weight_decay=0.0, schedule="constant", augment=False)


def images(n: int = 20) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, 32, 32, generator=generator)
    return Data(x, torch.arange(n) % 10, x, torch.arange(n) % 10)


def small(**fields: object) -> nn.Module:
    torch.manual_seed(0)
    return build(ChainConfig(**{"depth": 3, "width": 4, **fields}))  # type: ignore[arg-type]


def test_weight_change_by_hand() -> None:
    model, change = small(), WeightChange()
    start = [c.weight.detach().clone() for c in spatial_convs(model).values()]
    with pytest.raises(Refused, match="no epoch"):
        change.first_to_last()
    fit(model, images(), Recipe(epochs=2, batch=10, lr=0.1), hooks=[change])
    ends = [c.weight.detach() for c in spatial_convs(model).values()]
    by_hand = [float((b - a).norm() / a.norm()) for a, b in zip(start, ends, strict=True)]
    assert len(change.by_epoch) == 2 and change.by_epoch[1] == pytest.approx(by_hand, rel=1e-5)
    assert change.first_to_last() == pytest.approx(by_hand[0] / by_hand[-1], rel=1e-5)
    assert 0 < change.by_epoch[0][0] != change.by_epoch[1][0]


def test_steps_are_capped_and_the_last_partial_epoch_counts() -> None:
    change = WeightChange()
    fit(small(), images(), Recipe(epochs=9, batch=10, steps=3), hooks=[change])
    assert len(change.by_epoch) == 2


def test_adam_hook_is_adam() -> None:
    data, mine, torchs = images(), small(norm="none"), small(norm="none")
    fit(mine, data, Recipe(**{**vars(PLAIN), "epochs": 4}), hooks=[Adam()], seed=3)
    optimizer = torch.optim.Adam(torchs.parameters(), lr=0.01)

    class Other(WeightChange):
        """Steps torch's Adam on the same gradients."""

        def on_backward(self, model: nn.Module, step: int) -> None:
            optimizer.step()

    torchs.to(memory_format=torch.channels_last)
    fit(torchs, data, Recipe(**{**vars(PLAIN), "epochs": 4, "lr": 0.0}), hooks=[Other()], seed=3)
    start = small(norm="none")
    for a, b, c in zip(mine.parameters(), torchs.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        assert float((a - c).detach().abs().max()) > 0.01


def test_adams_first_step_is_the_rate_in_each_coordinate() -> None:
    model = small(norm="none")
    start = copy.deepcopy(model)
    fit(model, images(10), PLAIN, hooks=[Adam()])
    moved = (next(model.parameters()) - next(start.parameters())).detach().abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.01), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("names", [["stem"], ["stem", "stages.0"], ["stages.2"]])
def test_frozen_groups_stay_and_the_others_learn(names: list[str]) -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=8, width=4))
    assert freeze(model, names) is model
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fit(model, images(), Recipe(epochs=1, batch=10))
    for n, p in model.named_parameters():
        assert torch.equal(p, before[n]) is any(n.startswith(f"{name}.") for name in names), n


def test_half_of_a_chain_is_frozen() -> None:
    model = small(depth=4, stages=1)
    freeze(model, list(model.layers())[:2])
    frozen = [not c.weight.requires_grad for c in spatial_convs(model).values()]
    assert frozen == [True, True, False, False]
    for name in ("stage.0", "normalize", "stages.9"):
        with pytest.raises(Refused, match=f"Chain has no module '{name}' with parameters"):
            freeze(model, [name])


@pytest.mark.parametrize("factor", [1000.0, 0.001])
@pytest.mark.parametrize("cfg", [ChainConfig(depth=6, width=8), ResNetConfig(depth=8, width=8)])
def test_rescaling_changes_gradients_only(cfg: ChainConfig | ResNetConfig, factor: float) -> None:
    torch.manual_seed(0)
    model = build(cfg).double()
    fit(model, Data(*(t.double() if t.is_floating_point() else t for t in vars(images()).values())), Recipe(epochs=1, batch=10))
    before = copy.deepcopy(model.state_dict())
    twin = rescaled(model, [factor] * 3)
    data = images()
    x, y = data.x_train.double(), data.y_train
    for train in (False, True):
        with torch.no_grad():
            torch.testing.assert_close(model.train(train)(x), twin.train(train)(x), rtol=1e-9, atol=1e-9)
    ratio = first_to_last(twin, x, y)["log10_ratio"] - first_to_last(model, x, y)["log10_ratio"]
    assert ratio == pytest.approx(-np.log10(factor), abs=1e-3)
    weights = zip(spatial_convs(model).values(), spatial_convs(twin).values(), strict=True)
    assert [float((b.weight / a.weight).detach().mean()) for a, b in weights] == pytest.approx(
        [factor] * 3 + [1.0] * (len(spatial_convs(model)) - 3)
    )
    assert set(before) == set(twin.state_dict())


def test_rescaling_refuses_what_would_change_the_function() -> None:
    with pytest.raises(Refused, match="batch norm must follow"):
        rescaled(small(norm="none"), [10.0])
    with pytest.raises(Refused, match="factor -1.0 must be above 0"):
        rescaled(small(), [-1.0])
    with pytest.raises(Refused, match="4 factors for 3"):
        rescaled(small(), [2.0] * 4)


@pytest.mark.parametrize("cfg", [ChainConfig(5, 8, norm="none", gain=0.1), MobileNetV2Config(width=0.25), ResNetConfig(depth=8)])
def test_unit_variance(cfg: object) -> None:
    torch.manual_seed(0)
    model = draw(build(cfg), "orthogonal")
    x = torch.rand(16, 3, 32, 32)
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    assert unit_variance(model, x) is model and model.training
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert all(torch.equal(buffers[n], b) for n, b in model.named_buffers())
    with torch.no_grad(), outputs(layers) as seen:
        model(x)
    assert {n: float(v.var()) for n, v in seen.items()} == pytest.approx({n: 1.0 for n in layers}, abs=0.03)
