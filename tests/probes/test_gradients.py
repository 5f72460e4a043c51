from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import ImageNetConfig, ResNetConfig, build
from cnnstudy.probes import jacobians
from cnnstudy.probes.gradients import first_to_last, half_batch_cosine, layer_norms, relative_thirds, spatial_convs

X, Y = torch.rand(8, 3, 32, 32), torch.randint(10, (8,))


def net(**config: object) -> nn.Module:
    torch.manual_seed(0)
    return build(ResNetConfig(**({"depth": 8, "width": 4} | config)))  # type: ignore[arg-type]


def test_norms_are_those_of_backward() -> None:
    model = net().train()
    found = layer_norms(model, X, Y)
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(X), Y).backward()
    expected = [float(c.weight.grad.norm()) for c in spatial_convs(twin).values()]  # type: ignore[union-attr]
    assert np.allclose(found["gradient"], expected, rtol=1e-5)
    assert len(expected) == 7  # the stem and two in each of three blocks; no projection


def test_probes_leave_the_model_as_it_was() -> None:
    model = net().eval()
    before = copy.deepcopy(model.state_dict())
    first_to_last(model, X, Y)
    half_batch_cosine(model, X, Y)
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_a_planted_weak_first_layer_is_seen() -> None:
    model = net(norm="none", skip=False)
    before = first_to_last(model, X, Y)["log10_ratio"]
    with torch.no_grad():  # the same function of the input, but the first weights move it a thousand times less
        model.stem.conv.weight.mul_(1e3)
        model.stages[0][0].branch.conv1.weight.mul_(1e-3)
    assert first_to_last(model, X, Y)["log10_ratio"] == pytest.approx(before - 3, abs=1e-3)  # type: ignore[operator]


def test_one_half_batch_twice_agrees_fully() -> None:
    x, y = torch.cat([X, X]), torch.cat([Y, Y])
    assert half_batch_cosine(net(), x, y) == pytest.approx(1.0, abs=1e-5)


def test_relative_thirds() -> None:
    norms = {"gradient": np.array([1, 1, 9, 9, 10, 10.0]), "weight": np.ones(6)}
    assert relative_thirds(norms) == pytest.approx(0.1)


def test_a_network_without_spatial_convolutions_is_refused() -> None:
    with pytest.raises(Refused, match="needs two"):
        spatial_convs(nn.Linear(2, 2))


def test_chain_rule_holds_and_a_broken_chain_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net(skip=False, norm="none")
    x = torch.rand(1, 3, 8, 8)
    assert jacobians.product_error(model, x)["relative_difference"] < 1e-12
    right = jacobians.jacobian
    monkeypatch.setattr(jacobians, "jacobian", lambda layer, point: right(layer, point) * 1.001)
    assert jacobians.product_error(model, x)["relative_difference"] > 1e-4


def test_a_chain_has_no_shortcuts() -> None:
    with pytest.raises(Refused, match="not a chain"):
        jacobians.chain(net(norm="none"))


@pytest.mark.parametrize("config", [ResNetConfig(depth=8, width=4, preact=True, shortcut="B"), ImageNetConfig("resnet18", ("unit_norms",))])
def test_a_block_taken_apart_is_the_block(config: object) -> None:
    model = jacobians.calibrated(build(config), torch.rand(2, 3, 32, 32))
    points = jacobians.block_inputs(model, torch.rand(2, 3, 32, 32, dtype=torch.float64))
    for block, point in zip(jacobians.residual_blocks(model), points, strict=True):
        assert torch.allclose(jacobians.Parts(block)(point), block(point), atol=1e-10)


def test_formula_holds_without_and_fails_with_a_final_relu() -> None:
    torch.manual_seed(0)
    before = jacobians.block_algebra(net(preact=True, shortcut="B"), X[:2])
    after = jacobians.block_algebra(net(preact=False, shortcut="B"), X[:2])
    assert before["identity_difference"] < 1e-10 < 1e-3 < after["identity_difference"]  # type: ignore[operator]
    assert before["projection_difference"] > 1e-3  # type: ignore[operator]
    assert before["identity_share"] == pytest.approx(1 / 3)


def test_a_zero_branch_passes_the_gradient_unless_something_follows() -> None:
    assert jacobians.block_algebra(net(preact=True, shortcut="B"), X[:2], zero_branch=True)["identity_gain_error"] < 1e-12  # type: ignore[operator]
    assert jacobians.block_algebra(net(shortcut="B"), X[:2], zero_branch=True)["identity_gain_error"] > 1e-3  # type: ignore[operator]


def test_singular_values_match_an_svd() -> None:
    matrix = torch.randn(20, 20, dtype=torch.float64)
    assert np.allclose(np.sort(jacobians._singular_values(matrix)), np.sort(torch.linalg.svdvals(matrix).numpy()))


def test_spectrum_and_gains() -> None:
    model = jacobians.calibrated(net(depth=14, width=2), F.avg_pool2d(X, 4))
    found = jacobians.block_gain_summary(model, F.avg_pool2d(X[:2], 4), Y[:2])
    assert 0 <= found["below_tenth"] <= found["below_half"] <= found["below_1"] <= 1  # type: ignore[operator]
    assert found["min_singular_value"] <= found["min_gain"] <= found["max_singular_value"]  # type: ignore[operator]


def test_paths_add_up_and_the_longest_is_the_whole_branch_chain() -> None:
    found = jacobians.path_shares(net(depth=14, width=4), X[:2], Y[:2], samples=2)
    assert found["share"].sum() == pytest.approx(1)  # type: ignore[union-attr]
    assert len(found["magnitude"]) == 7 and found["blocks"] == 6  # type: ignore[arg-type]


def test_random_products_grow_shrink_and_keep_their_bound() -> None:
    small = jacobians.random_products(0.5, 0.9, False, size=16, depth=20, draws=10)
    large = jacobians.random_products(1.1, 1.5, False, size=16, depth=20, draws=10)
    assert small["slope_max"] < 0 < large["slope_min"]  # type: ignore[operator]
    assert small["under_bound"] == 1


def test_scalar_block() -> None:
    assert [jacobians.scalar_gain(s) for s in (-1.0, 0.0, 0.5)] == [0.0, 1.0, 1.5]
