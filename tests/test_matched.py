"""Matched fit: training ends with the first epoch after which the loss of all training images is low enough, or at the cap."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cnnstudy import matched
from cnnstudy.config import Refused
from cnnstudy.data import CifarConfig, load
from cnnstudy.models import StackConfig, build
from cnnstudy.train import Recipe, evaluate, fit

SMALL = CifarConfig(train=200, test=100)
RECIPE = Recipe(epochs=20, batch=20, lr=0.1, weight_decay=0.0, schedule="constant", augment=False)
LOSS = 2.0


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(StackConfig("3-3-3", width=8))


def test_it_stops_at_the_first_epoch_below_the_threshold() -> None:
    data, model = load(SMALL), network()
    found = matched.until(model, data, RECIPE, loss=LOSS)
    losses = found["train_loss_by_epoch"]
    assert found["reached"] and 1 <= found["epochs"] < RECIPE.epochs and not model.training
    assert losses[-1] < LOSS <= min(losses[:-1])
    assert {len(found[name]) for name in found if name.endswith("_by_epoch")} == {found["epochs"] + 1}
    assert evaluate(model, data.x_train, data.y_train)["loss"] == pytest.approx(losses[-1])


def test_until_then_it_is_the_training_of_fit() -> None:
    data, model, other = load(SMALL), network(), network()
    epochs = matched.until(model, data, RECIPE, loss=LOSS)["epochs"]
    fit(other, data, replace(RECIPE, epochs=epochs))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_cap_ends_what_does_not_get_there() -> None:
    found = matched.until(network(), load(SMALL), replace(RECIPE, epochs=2), loss=1e-6)
    assert (found["epochs"], found["reached"]) == (2, False)


def test_the_watched_images_alone_do_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be fitted before the others are; the threshold is for all of them."""
    monkeypatch.setattr(matched, "WATCHED", 10)
    looked: list[int] = []

    def scored(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:
        looked.append(len(x))
        return {"loss": 0.05 if len(x) == 10 else 0.5, "acc": 0.5}

    monkeypatch.setattr(matched, "evaluate", scored)
    found = matched.until(network(), load(SMALL), replace(RECIPE, epochs=2), loss=0.1)
    assert not found["reached"] and found["train_loss_by_epoch"] == [0.05, 0.5, 0.5] and looked.count(200) == 2


@pytest.mark.parametrize("loss", [0.0, -1.0, float("nan")])
def test_a_threshold_that_no_loss_is_below_is_refused(loss: float) -> None:
    with pytest.raises(Refused, match="must be above 0"):
        matched.until(network(), load(SMALL), RECIPE, loss=loss)
