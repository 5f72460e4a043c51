"""Trained networks with batch norm in one place or another, and two designs side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cnnstudy import placement, pool
from cnnstudy.config import Refused, Setup
from cnnstudy.data import load
from cnnstudy.models import ChainConfig, VariantConfig
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.pool import PilotConfig
from cnnstudy.probes import normplace
from cnnstudy.probes.saturation import saturation


def tiny(model: object) -> Setup:
    return Setup(**dict(pool.setup(model, 60, 20, 1).parts) | {"pilot": PilotConfig(rates=(0.05,))})


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "cache_root", lambda: tmp_path)


def test_saturation_is_looked_at_before_and_after_training() -> None:
    base = Setup(**tiny(ChainConfig(3, 4, 1, act="tanh", stride=4)).parts, where="before")
    edges = np.linspace(-6, 6, 13)
    start, trained = (placement.saturated(base, state, 20, edges, 0) for state in ("start", "trained"))
    assert start["histogram"].shape == (3, 12)
    assert start["histogram"].sum(1) == pytest.approx(1)
    assert start["flat"] == pytest.approx(start["flat_by_layer"].mean())
    assert 0.005 < start["flat"] < 0.1  # normal inputs: 2.9 % beyond 2.18
    assert trained["train_loss"] != start["train_loss"]
    x = load(base.data).x_train[:20]
    stored = saturation(pool.network(tiny(base.model), 0).model, x, train=False, edges=edges)
    assert trained["flat_by_layer"] == pytest.approx(stored["flat"])
    assert np.abs(trained["histogram"] - stored["histogram"]).max() < 1e-9
    with pytest.raises(Refused, match="state"):
        placement.saturated(base, "later", 20, edges, 0)


def test_channel_statistics_of_a_trained_network() -> None:
    base = tiny(VariantConfig(8, width=4))
    batch = placement.statistics(base, True, "", 20, 0)
    stored = placement.statistics(base, False, "noise", 20, 0)
    assert batch["share_before"] > 0.9 > stored["share_before"]
    x = load(base.data).x_test[:20]
    found = normplace.channels(pool.network(base, 0).model, x, train=True)
    assert batch["median_mean_before"] == np.median(np.abs(found["before_mean"])) != np.median(np.abs(found["mean"]))
    assert batch["median_std_output"] == np.median(np.abs(found["std"] - 1)) != np.median(np.abs(found["before_std"] - 1))


def test_images_are_harmed_as_said() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(placement.harmed(x, ""), x)
    assert float((placement.harmed(x, "noise") - x).std()) == pytest.approx(0.1, abs=0.01)
    assert float(placement.harmed(x, "half contrast").std() / x.std()) == pytest.approx(0.5)


def test_the_spread_over_blocks() -> None:
    found = placement.block_spread([100.0, 100.0, 5.0, 5.0, 10.0, 10.0])
    assert found["log10_ratio"] == pytest.approx(1.0)
    assert placement.block_spread([3.0] * 9) == {"log10_ratio": 0.0, "variation": 0.0}


def test_closer_means_nearer_to_an_even_gradient() -> None:
    two = {"original": ResNetConfig(8, width=4), "preact": ResNetConfig(8, width=4, preact=True)}
    x, y = torch.rand(8, 3, 32, 32), torch.arange(8)
    found = placement.start_gradients(two, x, y, 0)
    assert found["closer"] == pytest.approx(abs(found["original_log10_ratio"]) - abs(found["preact_log10_ratio"]))
    same = placement.start_gradients({"original": two["preact"], "preact": two["preact"]}, x, y, 0)
    assert same["closer"] == 0
    later = placement.gradient_flow({name: tiny(cfg) for name, cfg in two.items()}, (0, 1), 0)
    assert later["closer_1"] == pytest.approx(abs(later["original_log10_ratio_1"]) - abs(later["preact_log10_ratio_1"]))
    assert later["closer_0"] != later["closer_1"]


def test_losses_are_compared_where_training_losses_are_equal() -> None:
    assert placement.loss_at([2.0, 1.0, 0.5], [2.2, 1.4, 1.2], 1.5) == pytest.approx(1.8)
    assert placement.loss_at([2.0, 1.0, 0.5], [2.2, 1.4, 1.2], 3.0) == 2.2
    assert placement.loss_at([2.0, 1.0, 0.5], [2.2, 1.4, 1.2], 0.1) == 1.2
    old = {"loss_by_epoch": [2.0, 1.0, 0.5], "test_loss_by_epoch": [9.0, 2.2, 1.4, 1.2]}
    new = {"loss_by_epoch": [2.0, 1.2, 1.0], "test_loss_by_epoch": [9.0, 2.0, 1.2, 1.1]}
    found = placement.gap_at_loss(old, new)
    assert (found["level"], found["original_loss"], found["preact_loss"]) == (1.0, 1.4, 1.1)
    assert found["gap"] == pytest.approx(0.3)
