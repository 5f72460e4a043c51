"""Fresh weights against closed forms; starts against what they must and must not change."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cnnstudy import starts
from cnnstudy.config import Refused
from cnnstudy.models import ChainConfig, build
from cnnstudy.probes import fresh
from cnnstudy.probes.fresh import StackConfig


def test_race_matches_the_closed_form_factors_forwards_and_back() -> None:
    stacks = [StackConfig("relu", "he"), StackConfig("relu", "lecun"), StackConfig("identity", "xavier"), StackConfig("relu", "framework")]
    found = fresh.race(stacks, depth=4, width=600, inputs=20, seed=1)
    per = (found["second"][:, -1] / found["second"][:, 1]) ** (1 / 3)
    assert per[0] == pytest.approx(1, abs=0.05) and per[2] == pytest.approx(1, abs=0.05)
    assert per[1] == pytest.approx(per[0] / 2)  # the same numbers, smaller by sqrt(2): homogeneous
    back = found["gradient"][:, 0] / found["gradient"][:, -1]
    assert back[0] == pytest.approx(1, abs=0.3) and back[1] == pytest.approx(back[0] / 16)
    spread = found["pre_spread"][:, 2:] / found["pre_spread"][:, 1:-1]
    assert spread[3] == pytest.approx([1 / 6] * 3, rel=0.35)  # biases are the same for all inputs


def test_race_widens_and_refuses() -> None:
    found = fresh.race([StackConfig("identity", "xavier")], depth=1, width=400, inputs=40, shape="wider")
    assert found["variance"][0, 1] / found["variance"][0, 0] == pytest.approx(2 / 3, rel=0.05)
    assert found["gradient"][0, 0] == pytest.approx(4 / 3, rel=0.05)
    with pytest.raises(Refused, match="inputs 3"):
        fresh.race([StackConfig()], depth=1, width=4, inputs=3)


def test_law_of_library_and_formula() -> None:
    assert fresh.law("xavier", True, "library", "conv")["times_sum"] == pytest.approx(2, rel=0.02)
    assert fresh.law("he", False, "formula", "linear")["times_in"] == pytest.approx(2, rel=0.02)
    assert fresh.law("he_fan_out", False, "library", "conv")["times_out"] == pytest.approx(2, rel=0.02)
    assert fresh.twins() < 1e-12


def test_relu_keeps_half_of_the_square_not_of_the_variance() -> None:
    found = fresh.halved("normal", 2_000_000)
    assert found["second_ratio"] == pytest.approx(0.5, rel=0.01)
    assert found["variance_ratio"] == pytest.approx(found["closed_variance"], rel=0.01)
    assert fresh.halved("uniform", 2_000_000)["variance_ratio"] == pytest.approx(5 / 16, rel=0.01)


def test_batch_norm_undoes_a_scale_and_its_gradient_does_not() -> None:
    one, ten = fresh.normed(1), fresh.normed(10)
    assert ten["std"] == pytest.approx(1, abs=1e-3)
    assert one["gradient"] / ten["gradient"] == pytest.approx(10, rel=0.01)


def test_audit_knows_he_and_what_is_not() -> None:
    found = fresh.audit("timm", "mobilenetv2_050", builds=2)
    assert found["share"]["fully connected"] == 0 and found["share"]["depthwise"] > 0.3 and found["share"]["1x1"] > 0.6
    assert found["layers"] == len(found["kinds"]) == len(found["fan_in_ratio"])
    assert fresh.activations("resnet18")["majority"] == "ReLU" and fresh.activations("resnet18")["alike"]


def test_signals_of_a_homogeneous_chain() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8) % 10
    wide = ChainConfig(depth=4, width=64, stages=1, stride=4, norm="none")
    small = ChainConfig(depth=4, width=64, stages=1, stride=4, norm="none", gain=0.1)
    found = []
    for cfg in (wide, small):
        torch.manual_seed(1)
        found.append(starts.signals(build(cfg), x, y))
    assert found[1]["log10_forward"] == pytest.approx(found[0]["log10_forward"] - 6)  # three layers, each 1/100 of the square
    assert found[1]["log10_backward"] < found[0]["log10_backward"] - 5.5
    assert abs(found[1]["log10_ratio"]) < 1.5  # the weights' gradients shrink all together


def test_epochs_to_interpolates() -> None:
    assert starts.epochs_to([0.1, 0.3, 0.5], 0.4) == pytest.approx(1.5)
    assert starts.epochs_to([0.1, 0.2], 0.9) == 2
    assert starts.epochs_to([0.5, 0.6], 0.4) == 0
    assert math.isfinite(np.sum(starts.epochs_to([0.1, 0.1], 0.2)))


def test_slower_is_relative_to_he() -> None:
    assert starts.slower([0.0, 0.5, 1.0], [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0]], share=0.5) == pytest.approx([0.0, 2.0])


def test_through_counts_layers_from_the_first() -> None:
    rows = fresh.through([StackConfig("relu", "he"), StackConfig("relu", "lecun")], depth=20, width=64, inputs=4, draws=3)
    assert rows[1]["factor"] == pytest.approx(rows[0]["factor"] / 2)
    assert rows[1]["ratios"]["10"] == pytest.approx(rows[0]["ratios"]["10"] / 2**9)
    assert set(rows[0]["ratios"]) == {"10", "20"}


def test_both_ways_of_relu_agree() -> None:
    (row,) = fresh.both_ways([StackConfig("relu", "lecun")], depth=10, width=400, inputs=4, draws=3)
    assert row["forward"] == pytest.approx(0.5, rel=0.1) and row["backward"] == pytest.approx(0.5, rel=0.1)
    assert row["second"].shape == row["gradient"].shape == (11,)


def test_xavier_keeps_the_identity_and_not_the_sigmoid() -> None:
    found = fresh.kept(("identity", "sigmoid"), "xavier", depth=2, width=300, inputs=10, shape="square", draws=3)
    assert found["identity"] < 0.1 and found["sigmoid"] > 0.5
    (row,) = fresh.ends([StackConfig("relu", "lecun")], depth=6, width=400, inputs=4, draws=3)
    assert row["ratio"] == pytest.approx(2**-5, rel=0.3)
