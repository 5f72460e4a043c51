"""The pilot: it takes the best rate on held-out images, shares it over seeds, and never sees a test image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cnnstudy import pilot
from cnnstudy.config import Refused
from cnnstudy.data import CifarConfig, Data, load
from cnnstudy.models import MobileNetV1Config, ResNetConfig
from cnnstudy.train import Recipe

SMALL = CifarConfig(train=200, test=100)
TINY = MobileNetV1Config(width=0.1, blocks=(1, 1, 1, 1, 1))


def test_the_last_fifth_is_held_out_and_classes_stay_even() -> None:
    images = load(SMALL)
    part = pilot.held_out(images)
    assert (len(part.x_train), len(part.x_test)) == (160, 40)
    assert torch.equal(part.x_test, images.x_train[160:]) and torch.equal(part.y_test, images.y_train[160:])
    assert torch.bincount(part.y_train).tolist() == [16] * 10 and torch.bincount(part.y_test).tolist() == [4] * 10
    few = Data(images.x_train[:9], images.y_train[:9], images.x_test, images.y_test)
    with pytest.raises(Refused, match="too few"):
        pilot.held_out(few)


def test_the_best_rate_is_taken_and_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pilot._scores.cache_clear()
    tried: list[tuple[float, int, int]] = []

    def fit(model: Any, data: Data, recipe: Recipe) -> Any:
        tried.append((recipe.lr, recipe.epochs, len(data.x_train)))
        if recipe.lr == 0.3:
            raise pilot.Diverged(1, float("nan"))
        return type("Run", (), {"model": recipe.lr})

    monkeypatch.setattr(pilot, "fit", fit)
    monkeypatch.setattr(pilot, "evaluate", lambda model, x, y: {"acc": {0.01: 0.2, 0.1: 0.4}[model], "loss": 1.0})
    for _ in range(2):
        found = pilot.best_rate(TINY, SMALL, Recipe(epochs=10, lr=0.5), [0.01, 0.1, 0.3])
        assert found == {"lr": 0.1, "pilot": {"0.01": 0.2, "0.1": 0.4, "0.3": 0.0}}
    assert tried == [(0.01, 2, 160), (0.1, 2, 160), (0.3, 2, 160)]
    assert pilot.best_rate(TINY, SMALL, Recipe(), [0.2]) == {"lr": 0.2, "pilot": {}} and len(tried) == 3  # nothing to choose
    pilot._scores.cache_clear()


def test_a_rate_that_can_learn_beats_one_that_cannot() -> None:
    small = ResNetConfig(depth=8, width=4)
    found = pilot.best_rate(small, CifarConfig(train=600, test=100), Recipe(batch=16, augment=False), [1e-9, 0.05], epochs=3)
    assert found["lr"] == 0.05 and found["pilot"]["0.05"] > found["pilot"]["1e-09"]


@pytest.mark.parametrize(("rates", "epochs"), [([], 2), ([0.1, 0.0], 2), ([0.1], 0)])
def test_a_pilot_without_rates_or_epochs_is_refused(rates: list[float], epochs: int) -> None:
    with pytest.raises(Refused, match="a pilot needs"):
        pilot.best_rate(TINY, SMALL, Recipe(), rates, epochs)
