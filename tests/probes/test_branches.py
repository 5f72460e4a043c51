"""Sizes and angles of branches against blocks whose branch is a known multiple of the input, and against sums by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models import ResNetConfig, VariantConfig, build
from cnnstudy.probes import branches
from cnnstudy.probes.jacobians import Parts, block_inputs, calibrated, residual_blocks


class Multiple(nn.Module):
    """``out(x + factor x)``, the factor in a 1x1 convolution."""

    def __init__(self, factor: float, relu: bool, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv.weight.data = factor * torch.eye(channels)[:, :, None, None]
        self.out: nn.Module = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x + self.conv(x))


class Chain(nn.Module):
    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.stages = nn.Sequential(*blocks)
        self.head = nn.Linear(3, 4)

    def blocks(self) -> list[nn.Module]:
        return list(self.stages)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(x).mean((2, 3)))


X = torch.randn(60, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def test_known_multiples() -> None:
    table = branches.profile(Chain(Multiple(0.5, False), Multiple(-0.25, False), Multiple(-3, False)), X)
    np.testing.assert_allclose(table["ratio"], [0.5, 0.25, 3], rtol=1e-5)
    np.testing.assert_allclose(table["cosine_branch"], [1, -1, -1], rtol=1e-5)
    np.testing.assert_allclose(table["cosine_output"], [1, 1, -1], rtol=1e-5)
    assert (table[["removed_units", "removed_squared", "changed"]] == 0).all(axis=None)
    assert table["identity"].all() and table["block"].tolist() == ["stages.0", "stages.1", "stages.2"]


def test_what_the_relu_removes() -> None:
    table = branches.profile(Chain(Multiple(0.5, True), Multiple(0.5, True)), X)
    negative = X.clamp(max=0)
    first, second = table.iloc[0], table.iloc[1]
    assert first["removed_units"] == pytest.approx(float((X < 0).double().mean()))
    assert first["removed_squared"] == pytest.approx(float(negative.square().sum() / X.square().sum()), rel=1e-5)
    changes = [float(negative[i].norm() / X[i].norm()) for i in range(len(X))]
    assert first["changed"] == pytest.approx(sorted(changes)[29], rel=1e-5)  # torch's median of 60: the 30th
    cosines = [float(F.cosine_similarity(X[i].relu().flatten(), X[i].flatten(), dim=0)) for i in range(len(X))]
    assert first["cosine_output"] == pytest.approx(sorted(cosines)[29], rel=1e-5) and first["cosine_branch"] == pytest.approx(1)
    assert second["removed_units"] == second["changed"] == 0  # nothing negative arrives there


def test_a_network_against_sums_by_hand() -> None:
    net, x = build(ResNetConfig(14, 8, preact=True)).eval(), torch.rand(7, 3, 16, 16)
    table = branches.profile(net, x)
    with torch.no_grad():
        h = net.stem(net.normalize(x))
        for (_, row), block in zip(table.iterrows(), net.blocks(), strict=True):
            branch, shortcut = block.branch(h).flatten(1), block.shortcut(h).flatten(1)
            assert row["ratio"] == pytest.approx(float((branch.norm(dim=1) / shortcut.norm(dim=1)).median()), rel=1e-5)
            assert row["cosine_branch"] == pytest.approx(float(F.cosine_similarity(branch, shortcut).median()), rel=1e-4, abs=1e-6)
            y = block(h)
            if y.shape == h.shape:
                assert row["cosine_output"] == pytest.approx(float(F.cosine_similarity(y.flatten(1), h.flatten(1)).median()), rel=1e-5)
            else:
                assert np.isnan(row["cosine_output"])
            h = y
    found = branches.summary(net, x)
    own = table[table["identity"]]
    assert found["identity_blocks"] == 4 and found["cosine_output"][2] is None
    assert found["small_share"] == np.mean(own["ratio"] < 0.5) and found["below_one_share"] == np.mean(own["ratio"] < 1)
    assert found["aligned_share"] == np.mean(own["cosine_output"] > 0.5) and found["median_ratio"] == pytest.approx(own["ratio"].median())
    cosines = branches.input_output(net, x)
    np.testing.assert_allclose(cosines, table["cosine_output"], rtol=1e-5)


def test_batches_don_t_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = build(ResNetConfig(8, 4)), torch.rand(9, 3, 16, 16)
    one = branches.profile(net, x)
    monkeypatch.setattr(branches, "BATCH", 4)
    other = branches.profile(net, x)
    np.testing.assert_allclose(one.drop(columns="block").astype(float), other.drop(columns="block").astype(float), rtol=1e-5)


def test_plain_networks_have_cosines_too() -> None:
    net, x = build(ResNetConfig(8, 4, skip=False)), torch.rand(5, 3, 16, 16)
    before = copy.deepcopy(net.state_dict())
    found = branches.input_output(net, x)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    with torch.no_grad():
        h = net.stem(net.normalize(x))
        assert found[0] == pytest.approx(float(F.cosine_similarity(net.blocks()[0](h).flatten(1), h.flatten(1)).median()), rel=1e-5)
    assert np.isnan(found[1:]).all()


def test_zeroed_gradients_are_those_of_the_removed_units() -> None:
    net, x, y = build(ResNetConfig(14, 8)), torch.rand(6, 3, 32, 32), torch.arange(6)
    zeroed = branches.gradient_zeroed(net, x, y)
    # a generic gradient has no zeros of its own before the ReLU of an untrained network, so the shares are those of the removed units
    np.testing.assert_allclose(zeroed["zeroed"], branches.profile(net, x)["removed_units"], atol=2e-3)
    assert zeroed["block"].tolist() == ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1", "stages.2.0", "stages.2.1"]
    assert all(p.grad is None for p in net.parameters())
    assert len(branches.gradient_zeroed(build(VariantConfig(8, 4, order="norm-after-sum")), x, y)) == 3
    with pytest.raises(Refused, match="ReLU"):
        branches.gradient_zeroed(build(ResNetConfig(8, 4, preact=True)), x, y)


def test_what_a_later_relu_has_zeroed_is_not_counted_again() -> None:
    table = branches.gradient_zeroed(Chain(Multiple(0.5, True), Multiple(0.0, True)), X, torch.arange(60) % 4)
    assert table["zeroed"].tolist() == [0, pytest.approx(float((X < 0).double().mean()))]


@pytest.mark.parametrize("preact", [False, True])
def test_scaled_branches(preact: bool) -> None:
    net = calibrated(build(ResNetConfig(8, 4, preact=preact)), torch.rand(4, 3, 16, 16))
    nn.init.normal_(residual_blocks(net)[0].branch[-1].weight)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    for one, other in zip(residual_blocks(net)[:1], residual_blocks(branches.scaled(net, 0.1))[:1], strict=True):
        torch.testing.assert_close(other.branch(x), 0.1 * one.branch(x))


def test_tiny_branches_in_the_limit() -> None:
    """Scale 0: a pre-activation block is the identity; in the original each entry that arrives as 0 is lost, the others pass."""
    values = branches.tiny_branch(ResNetConfig(8, 3, preact=True), 0.0, 0, side=6)
    assert values["min"] == values["max"] == pytest.approx(1, abs=1e-12) and values["within"] == 1
    cfg = ResNetConfig(8, 3)
    found = branches.tiny_branch(cfg, 0.0, 0, side=6)
    torch.manual_seed(0)
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    arrives = block_inputs(calibrated(build(cfg), x), x)[0]
    assert found["zero"] == float((arrives == 0).double().mean()) > 0.1
    assert found["zero"] + found["within"] == pytest.approx(1) and found["blocks"] == 1


def test_singular_values_against_finite_differences() -> None:
    cfg, scale = ResNetConfig(8, 2, act="silu", preact=True), 0.3
    found = branches.tiny_branch(cfg, scale, 5, side=8, images=1)
    torch.manual_seed(5)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    net = calibrated(build(cfg), x)
    point, parts = block_inputs(net, x)[0], Parts(residual_blocks(net)[0])

    def block(v: Tensor) -> Tensor:
        return v + scale * parts.branch(v)

    columns, step = [], 1e-6
    for i in range(point.numel()):
        push = torch.zeros(point.numel(), dtype=torch.float64)
        push[i] = step
        push = push.view_as(point)
        columns.append(((block(point + push) - block(point - push)) / (2 * step)).flatten().detach())
    values = np.linalg.svd(torch.stack(columns, 1).numpy(), compute_uv=False)
    assert (found["min"], found["max"]) == (pytest.approx(values.min(), rel=1e-6), pytest.approx(values.max(), rel=1e-6))
    assert found["within"] == np.mean((values >= 0.95) & (values <= 1.05))


def test_swapped_neighbours() -> None:
    net: Any = build(ResNetConfig(20, 4)).eval()
    x = torch.rand(40, 3, 16, 16)
    with torch.no_grad():
        y = net(x).argmax(1)  # labels for which the network is always right
        table = branches.swaps(net, x, y, batch=16)
        a, b, c = net.stages[0]
        by_hand = net.head(net.stages[2](net.stages[1](a(c(b(net.stem(net.normalize(x))))))).mean((2, 3)))
    pairs = [("stages.0.0", "stages.0.1"), ("stages.0.1", "stages.0.2"), ("stages.1.1", "stages.1.2"), ("stages.2.1", "stages.2.2")]
    assert list(zip(table["first"], table["second"], strict=True)) == pairs
    swapped = branches.swapped(net, "stages.0.1", "stages.0.2")
    with torch.no_grad():
        order = net.head(net.stages[2](net.stages[1](b(c(a(net.stem(net.normalize(x))))))).mean((2, 3)))
        torch.testing.assert_close(swapped(x), order)
    assert not torch.allclose(order, by_hand)
    assert table.iloc[1]["accuracy"] == pytest.approx(float((order.argmax(1) == y).double().mean()))
    assert table.iloc[1]["drop"] == pytest.approx(100 * (1 - table.iloc[1]["accuracy"]))
    assert torch.equal(net(x).argmax(1), y)  # the network itself is as it was
