"""What stands on the shortcut route: closed forms for the published networks, sums by hand, blocks whose answer is known."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy.models import BottleneckConfig, ImageNetConfig, ResNetConfig, VariantConfig, WideConfig, build
from cnnstudy.probes import routes
from cnnstudy.probes.jacobians import jacobian


@pytest.mark.parametrize(("name", "blocks", "projections"), [("18", (2, 2, 2, 2), 3), ("34", (3, 4, 6, 3), 3), ("50", (3, 4, 6, 3), 4)])
def test_published_networks_in_closed_form(name: str, blocks: tuple[int, ...], projections: int) -> None:
    """A ReLU after every sum; convolution and norm on every projection (the first stage of a basic network has none)."""
    found = routes.route(ImageNetConfig("resnet" + name))
    n = sum(blocks)
    assert (found["relu"], found["conv"], found["norm"]) == (n, projections, projections)
    assert found["operations"] == n + 2 * projections and found["clean_blocks"] == 0
    first = blocks[0] + 2 * (projections == 4)
    assert found["by_stage"] == [first, *(b + 2 for b in blocks[1:])]
    assert (found["stem"], found["head"]) == ("conv norm relu pool", "mean")


@pytest.mark.parametrize(("name", "blocks", "projections"), [("18", 8, 3), ("50", 16, 4)])
def test_pre_activation_networks_in_closed_form(name: str, blocks: int, projections: int) -> None:
    """Only projections are left, each behind the norm and ReLU that it shares with the branch."""
    found = routes.route(ImageNetConfig("resnetv2_" + name))
    assert (found["relu"], found["conv"], found["norm"]) == (projections,) * 3
    assert found["clean_blocks"] == blocks - projections and found["head"] == "norm relu mean"
    table = routes.orders(ImageNetConfig("resnetv2_" + name))
    assert set(table[~table["identity"]]["shared"]) == {"norm relu"} and set(table[table["identity"]]["shared"]) == {""}


@pytest.mark.parametrize(("cfg", "expected"), [
    (ResNetConfig(20), {"relu": 9, "pad": 2, "subsample": 2, "conv": 0, "norm": 0}),
    (ResNetConfig(20, shortcut="B"), {"relu": 9, "pad": 0, "subsample": 0, "conv": 2, "norm": 2}),
    (ResNetConfig(20, preact=True), {"relu": 0, "pad": 2, "subsample": 2, "conv": 0, "norm": 0}),
    (WideConfig(16, 1), {"relu": 2, "conv": 2, "norm": 2, "pad": 0}),
    (BottleneckConfig(29), {"relu": 9, "conv": 3, "norm": 3}),
    (VariantConfig(20, order="norm-act-conv", on_shortcut="half"), {"relu": 0, "other": 7, "pad": 2}),
    (VariantConfig(20, order="norm-after-sum", on_shortcut="conv"), {"relu": 9, "norm": 9, "conv": 7}),
])  # fmt: skip
def test_cifar_networks_in_closed_form(cfg: Any, expected: dict[str, int]) -> None:
    found = routes.route(cfg)
    assert {name: found[name] for name in expected} == expected
    assert sum(found["by_stage"]) == found["operations"] == sum(found[name] for name in (*routes.COUNTED, "other"))


@pytest.mark.parametrize(("order", "branch", "after", "between"), [
    ("conv-norm-act", "conv norm relu conv norm", "relu", "mean"),
    ("norm-act-conv", "norm relu conv norm relu conv", "", "norm relu mean"),
    ("conv-act-norm", "conv relu norm conv relu norm", "", "mean"),
    ("act-conv-norm", "relu conv norm relu conv norm", "", "relu mean"),
    ("conv-norm-act-inside", "conv norm relu conv norm relu", "", "mean"),
    ("norm-after-sum", "conv norm relu conv", "norm relu", "mean"),
])  # fmt: skip
def test_orders_of_the_variants(order: str, branch: str, after: str, between: str) -> None:
    table = routes.orders(VariantConfig(14, order=order))
    assert set(table["branch"]) == {branch} and set(table["after"]) == {after}
    assert table["between"].tolist() == [""] * 5 + [between]
    assert table["shortcut"].tolist() == ["", "", "subsample pad", "", "subsample pad", ""]
    assert table["identity"].tolist() == [True, True, False, True, False, True]


def test_census_against_the_named_modules() -> None:
    with torch.device("meta"):
        net = build(ImageNetConfig("resnet50"))
    projected = sum(p.numel() for name, p in net.named_parameters() if "downsample" in name)
    found = routes.census(ImageNetConfig("resnet50"))
    assert (found["blocks"], found["identity"], found["projection"]) == (16, 12, 4)
    assert found["projection_params"] == projected and found["params"] == sum(p.numel() for p in net.parameters())
    assert routes.census(ResNetConfig(20))["padding"] == 2 and routes.census(ResNetConfig(20))["projection_params"] == 0


def test_block_outputs_against_the_clipped_part() -> None:
    """In the original block the output is F(x) + x without its negative part: the difference is the most negative sum."""
    table = routes.block_outputs(ResNetConfig(14, 8))
    own = table[table["identity"]]
    assert (own["difference"] > 1).all() and (own["shortcut_difference"] == 0).all() and (table["sum_difference"] == 0).all()
    assert (own["difference"] <= -own["branch_min"]).all()  # x is not negative there
    assert table[~table["identity"]]["difference"].isna().all() and (table["branch_min"] < 0).all()
    pre = routes.block_outputs(ResNetConfig(14, 8, preact=True))
    assert (pre[pre["identity"]]["difference"] == 0).all() and (pre[pre["identity"]]["norm_difference"] > 0.1).all()
    inside = routes.block_outputs(VariantConfig(14, 8, order="conv-norm-act-inside"))
    assert (inside["branch_min"] == 0).all()


def test_the_first_norm_is_the_one_compared() -> None:
    """With a shortcut that is batch norm itself, and the branch's first norm set to the same, the difference is 0."""
    net = build(VariantConfig(8, 4, order="norm-act-conv", on_shortcut="norm")).double().eval()
    block = net.blocks()[0]
    block.shortcut = block.branch.norm1
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(routes._first_norm(net, "stages.0.0", x), block.shortcut(x))


def test_stages_that_are_the_identity_and_stages_that_are_not() -> None:
    pre, post = (routes.stage_identity(ResNetConfig(20, 8, preact=p)).set_index("stage") for p in (True, False))
    stages = ["1", "2", "3"]
    assert pre["blocks"].tolist() == [3, 2, 2, 9]
    assert (pre.loc[stages, ["forward", "backward"]] == 0).all(axis=None) and (pre.loc[stages, "telescoping"] < 1e-12).all()
    assert pre.loc["all", ["forward", "backward", "telescoping"]].isna().all()
    assert (post.loc[stages, ["forward", "backward", "telescoping"]] > 0.1).all(axis=None)
    # a signed x_l goes through ReLU: what is lost is its negative part; the gradient keeps the positive entries only
    x = torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert post.loc["1", "forward"] == float(x.clamp(max=0).abs().max())


def test_one_network_without_changes_of_shape_is_exact_from_end_to_end() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *build(ResNetConfig(20, 8, preact=True)).stages[0])
    table = routes.stage_identity(net, 8).set_index("stage")
    assert table.loc["all", "forward"] == 0 and table.loc["all", "blocks"] == 3


BLOCKS = [ResNetConfig(8, 4), ResNetConfig(8, 4, preact=True), VariantConfig(8, 4, order="conv-act-norm"), WideConfig(10, 1)]


@pytest.mark.parametrize("cfg", BLOCKS)
def test_silent_branches_leave_the_shortcut(cfg: Any) -> None:
    net = build(cfg)
    before = copy.deepcopy(net.state_dict())
    quiet = routes.silent(net).double().eval()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()) and net.training
    block: Any = quiet.stages[0][0]  # type: ignore[index]
    x = torch.randn(1, 16 if isinstance(cfg, WideConfig) else 4, 4, 4, dtype=torch.float64)
    j = jacobian(block, x)
    expected = torch.eye(j.shape[0], dtype=torch.float64)
    if isinstance(cfg, ResNetConfig) and not cfg.preact:
        expected = torch.diag((x.flatten() > 0).double())
    assert torch.equal(j, expected)


def test_random_statistics_are_random_and_the_network_stays() -> None:
    net, x = build(ResNetConfig(8, 4)), torch.rand(8, 3, 16, 16)
    before = copy.deepcopy(net.state_dict())
    one, same, other = (routes.randomised(net, x, seed) for seed in (0, 0, 1))
    means = [n.state_dict()["stages.1.0.branch.norm1.running_mean"] for n in (one, same, other)]
    assert torch.equal(means[0], means[1]) and not torch.equal(means[0], means[2])
    assert not one.training and all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    scale = one.state_dict()["stages.1.0.branch.norm1.weight"]
    assert scale.min() >= 0.5 and scale.max() <= 1.5 and len(set(scale.tolist())) > 1


def test_zero_weights_in_closed_form() -> None:
    table = routes.zero_weights()
    assert len(table) == 2 * 2 * 2 * 3 * 2 * 2 and not table.drop(columns="difference").duplicated().any()
    identity = table[table["shortcut"] == "identity"]
    assert (identity[identity["order"] == "preact"]["difference"] == 0).all()  # the branch ends in a convolution: 0 in every state
    original = identity[identity["order"] == "original"]
    exact = original[original["difference"] == 0]  # the ReLU must not cut, the norm must not shift
    assert set(exact["inputs"]) == {"nonnegative"} and set(exact["bias"]) == {"zero"} and set(exact["statistics"]) == {"batch", "fresh"}
    assert len(exact) == 2 * 2
    assert (table[table["shortcut"] == "projection"]["difference"] > 0.1).all()
    # a signed input loses its negative part, where nothing is added: the largest one
    signed = original[(original["inputs"] == "signed") & (original["bias"] == "zero") & (original["statistics"] == "batch")]
    assert len(signed) == 2 and (signed["difference"] > 3).all()


def test_rectified_inputs() -> None:
    x = torch.rand(4, 3, 32, 32)
    counts = {}
    for order in ("conv-norm-act", "act-conv-norm", "norm-act-conv"):
        table = routes.rectified(build(VariantConfig(14, 4, order=order)), x).set_index("name")
        counts[order] = table["rectified"].tolist()
        image = build(VariantConfig(14, 4)).normalize(x)
        assert table.loc["stem.conv", "negative"] == pytest.approx(float((image < 0).double().mean()))
    assert all(np.array_equal(flags, [False] + [True] * 12) for flags in counts.values())
