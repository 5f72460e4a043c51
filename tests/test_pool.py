"""Base networks: trained at the best of their rates, the same with and without anybody looking, kept by key."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnstudy import pool
from cnnstudy.config import Refused, Setup
from cnnstudy.data import load
from cnnstudy.models import build
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.runtime import seed_all
from cnnstudy.train import fit


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setup:
    monkeypatch.setenv("CNNSTUDY_CACHE", str(tmp_path))
    return pool.setup(ResNetConfig(depth=8, width=4), 640, 100, 2)


def test_watching_changes_nothing_and_the_rate_is_the_pilots_best(small: Setup) -> None:
    made = pool.network(small, 3)
    tried = made.log["pilot"]
    assert len(tried) == 3 and tried[f"{made.log['lr']:g}"] == max(tried.values())
    seed_all(3)
    alone = fit(build(small.model), load(small.data, "cpu", 3), replace(small.recipe, lr=made.log["lr"]), seed=3)
    assert all(torch.equal(a, b) for a, b in zip(made.model.state_dict().values(), alone.model.state_dict().values(), strict=True))
    assert made.log["loss_by_epoch"] == [epoch["loss"] for epoch in alone.history]


def test_curves_begin_before_training(small: Setup) -> None:
    found = pool.base(small, 0)
    epochs = small.recipe.epochs + 1
    for name in ("test_loss_by_epoch", "test_acc_by_epoch", "log10_ratio_by_epoch", "stage_ratio_by_epoch", "block_gradients"):
        assert len(found[name]) == epochs, name
    assert found["block_gradients"].shape == (epochs, 3)
    assert found["test_acc_by_epoch"][-1] == pytest.approx(found["val_acc"])  # fewer test images than WATCHED: all of them


def test_a_network_is_trained_once(small: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    first = pool.base(small, 0)

    def never(*args: Any, **more: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(pool, "fit", never)
    again = pool.base(small, 0)
    assert {k: str(v) for k, v in again.items()} == {k: str(v) for k, v in first.items()}


def test_seeds_share_one_pilot(small: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    rate = pool.network(small, 0).log["lr"]
    monkeypatch.setattr(pool.pilot, "best_rate", lambda *args: pytest.fail("tried again"))
    assert pool.network(small, 1).log["lr"] == rate


def test_a_damaged_checkpoint_is_refused_by_name(small: Setup, tmp_path: Path) -> None:
    pool.network(small, 0)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(b"torn")
    with pytest.raises(Refused, match=f"{path.name}.*delete"):
        pool.network(small, 0)
