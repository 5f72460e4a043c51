"""Blocks in one line, the loss at the ReLU behind the sums, and differences of pairs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from cnnstudy import pool, preactivation
from cnnstudy.config import Refused, Setup
from cnnstudy.models import VariantConfig, build
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.models.wide import WideConfig


def test_the_original_block_ends_with_a_norm_and_a_relu_stands_behind_the_sum() -> None:
    found = preactivation.blocks(ResNetConfig(14))
    assert found["branches"] == ["conv norm relu conv norm"] and found["last"] == ["norm"] and found["after"] == ["relu"]
    assert found["blocks"] == found["relu_after"] == found["negative_blocks"] == 6 and found["branch_min"] < 0
    assert found["inside"] == 3  # a ReLU between the two blocks of each stage
    assert found["boundary"] == 6  # subsampling, padding and the ReLU of the block before, twice
    assert found["raw_difference"] == 0 and found["norm_difference"] is None


def test_the_preactivation_block_adds_the_raw_input_and_leaves_the_sum_alone() -> None:
    found = preactivation.blocks(ResNetConfig(14, preact=True))
    assert found["branches"] == ["norm relu conv norm relu conv"] and found["after"] == [""] and found["relu_after"] == 0
    assert found["inside"] == 0 and found["boundary"] == 4 and found["head"] == "norm relu mean"
    assert found["raw_difference"] == 0 and found["norm_difference"] > 0.1
    wide = preactivation.blocks(WideConfig(10, 1))
    assert wide["shared"] == ["", "norm relu"] and wide["boundary"] == 6


def test_a_branch_that_ends_with_a_relu_is_never_negative() -> None:
    found = preactivation.blocks(VariantConfig(14, order="conv-norm-act-inside"))
    assert found["last"] == ["relu"] and found["negative_blocks"] == 0 and found["branch_min"] == 0


def test_silent_stages_are_the_identity_only_before_activation() -> None:
    before, after = (preactivation.silent_stages(ResNetConfig(14, preact=p)) for p in (True, False))
    assert before["backward_max"] == before["forward_max"] == 0 and before["stages"] == after["stages"] == 3
    assert after["backward_min"] > 0.1


@pytest.mark.parametrize("state", ["start", "trained"])
def test_what_the_relu_removes_is_the_share_of_negative_squares(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, y = torch.rand(6, 3, 32, 32), torch.arange(6)
    monkeypatch.setattr(preactivation, "load", lambda *_: SimpleNamespace(x_test=x, y_test=y))
    model = build(ResNetConfig(8, width=4)).eval()
    asked: list[Any] = []
    monkeypatch.setattr(pool, "network", lambda chosen, seed: asked.append((chosen, seed)) or SimpleNamespace(model=model))
    base = pool.setup(ResNetConfig(8, width=4), 100, 50, 1)
    found = preactivation.relu_loss(Setup(**base.parts, state=state, watched=6), state, 6, 3)
    assert asked == ([(base, 3)] if state == "trained" else [])  # the key of the shared network
    assert len(found["removed_squared"]) == len(found["zeroed"]) == 3
    if state == "trained":
        with torch.no_grad():
            h = model.stem(model.normalize(x))
            block = model.blocks()[0]
            total = block.branch(h) + block.shortcut(h)
        share = total.clamp_max(0).square().sum() / total.square().sum()
        assert found["removed_squared"][0] == pytest.approx(float(share), rel=1e-4) and share > 0.001
    else:
        assert min(found["removed_squared"]) > 0.001  # normed, the branches are as large as the shortcuts
    with pytest.raises(Refused, match="state"):
        preactivation.relu_loss(base, "half", 6, 3)


def frame() -> pd.DataFrame:
    one = {"val_acc": 0.5, "train_loss": 1.0, "val_loss": 1.5, "loss_by_epoch": [2.0, 1.8, 1.6, 1.4, 1.2, 1.0], "failed": None}
    two = {"val_acc": 0.6, "train_loss": 1.1, "val_loss": 1.3, "loss_by_epoch": [2.5, 1.8, 1.6, 1.4, 0.9, 0.9], "failed": None}
    return pd.DataFrame([{"key": "a"} | one, {"key": "b"} | two, {"key": "c"} | one | {"failed": "loss is nan"}])


def test_differences_above_zero_speak_for_preactivation() -> None:
    found = preactivation.difference(frame(), "a", "b")
    expected = {"gain": 0.1, "original": 0.5, "preact": 0.6, "loss_1": -0.5, "loss_5": 0.3, "train_loss": -0.1, "gap": 0.3}
    assert found == pytest.approx(expected)
    short = frame().assign(loss_by_epoch=[[1.0]] * 3)
    assert preactivation.difference(short, "a", "b")["loss_5"] is None
    with pytest.raises(ArithmeticError, match="failed"):
        preactivation.difference(frame(), "a", "c")


def test_slope_is_the_gain_per_tenfold_depth_of_one_seed() -> None:
    rows = [{"seed": s, "original.depth": d, "gain": g} for s in (0, 1) for d, g in ((10, 0.1 * s), (100, 0.02 + 0.1 * s), (1000, 0.04))]
    gains = pd.DataFrame(rows)
    assert preactivation.slope(gains, 10, 1000, 0)["slope"] == pytest.approx(0.02)
    assert preactivation.slope(gains, 10, 100, 1)["slope"] == pytest.approx(0.02)
