"""The best of a few learning rates, chains frozen in part, and base networks trained otherwise."""

from __future__ import annotations

import math

import pytest
import torch

from cnnstudy import pool
from cnnstudy.config import Refused
from cnnstudy.data import CifarConfig, load
from cnnstudy.models import ChainConfig, build
from cnnstudy.rates import WORST, best_of, fall, frozen_chain, variant
from cnnstudy.train import Diverged, Recipe

SMALL = ChainConfig(depth=2, width=4, stages=1, stride=4, kernel=5)
FEW = CifarConfig(train=200, test=100)


def test_the_lowest_training_loss_decides_and_a_diverged_rate_counts_as_worst() -> None:
    images = load(FEW)
    recipe = Recipe(epochs=2, batch=50, weight_decay=0.0, augment=False)
    bare = ChainConfig(depth=2, width=4, stages=1, stride=4, kernel=5, norm="none")
    found = best_of(lambda: build(bare), images, recipe, [1e-6, 0.05, 1e30], seed=0)
    assert found["lr"] == 0.05 and found["train_loss"] == found["tried"]["0.05"] < found["tried"]["1e-06"]
    assert found["tried"]["1e+30"] == WORST
    first, second = found["loss_by_epoch"]
    assert found["late_fall"] == pytest.approx(1 - second / first)
    assert found["change_ratio"] == pytest.approx(found["first_change"] / found["last_change"])
    with pytest.raises(Diverged):
        best_of(lambda: build(bare), images, recipe, [1e30], seed=0)
    with pytest.raises(Refused, match="above 0"):
        best_of(lambda: build(bare), images, recipe, [], seed=0)


def test_adam_moves_every_layer_alike() -> None:
    images = load(FEW)
    recipe = Recipe(epochs=1, batch=50, momentum=0.0, weight_decay=0.0, schedule="constant", augment=False)
    sick = ChainConfig(depth=5, width=4, stages=1, act="sigmoid", init="xavier", norm="none", stride=4, kernel=5)
    sgd, adam = (best_of(lambda: build(sick), images, recipe, [1e-3], 0, how) for how in ("sgd", "adam"))
    assert sgd["log10_ratio"] == adam["log10_ratio"] < -1
    assert sgd["change_ratio"] < 0.1 < adam["change_ratio"]


@pytest.mark.parametrize(("frozen", "still"), [("none", 0), ("first half", 2), ("all", 5)])
def test_frozen_part_of_a_chain(frozen: str, still: int) -> None:
    model = frozen_chain(build(ChainConfig(depth=5, width=4, stages=1)), frozen)
    assert [all(p.requires_grad for p in layer.parameters()) for layer in model.layers().values()] == [False] * still + [True] * (5 - still)
    assert model.head.weight.requires_grad


def test_fall_is_what_the_second_half_takes() -> None:
    assert fall([4.0, 2.0, 2.0, 1.0]) == 0.5
    assert fall([3.0, 2.0, 1.0]) == 0.5
    with pytest.raises(Refused):
        fall([1.0])


def test_variants_start_from_the_base_networks_weights(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(pool, "cache_root", lambda: tmp_path)
    chosen = pool.setup(SMALL, 200, 100, 1)
    base = variant(chosen, 0)
    assert all(torch.equal(a, b) for a, b in zip(base.parameters(), pool.network(chosen, 0).model.parameters(), strict=True))
    still = variant(chosen, 0, frozen=["stages.0.0"])
    torch.manual_seed(0)
    fresh = build(SMALL)
    assert torch.equal(still.stages[0][0].body.conv.weight.cpu(), fresh.stages[0][0].body.conv.weight)
    assert not torch.equal(still.stages[0][1].body.conv.weight.cpu(), fresh.stages[0][1].body.conv.weight)
    noise = variant(chosen, 0, labels="random")
    assert not torch.equal(noise.head.weight, base.head.weight) and math.isfinite(float(noise.head.weight.detach().sum()))
