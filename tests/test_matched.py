"""Matched fit: training ends with the first epoch after which the loss of all training images is low enough, or at the cap."""

from __future__ import annotations

import pytest
import torch

from cnnstudy import matched
from cnnstudy.config import Refused
from cnnstudy.data import CifarConfig, Data, load
from cnnstudy.models import StackConfig, build
from cnnstudy.train import Recipe, evaluate, fit

SMALL = CifarConfig(train=200, test=100)
RECIPE = Recipe(epochs=12, batch=20, lr=0.05, schedule="constant", augment=False)


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build(StackConfig("3-3-3", width=8))


def test_it_stops_at_the_first_epoch_below_the_threshold() -> None:
    data, model = load(SMALL), network()
    found = matched.until(model, data, RECIPE, loss=1.5)
    losses = found["train_loss_by_epoch"]
    assert found["reached"] and 1 <= found["epochs"] < RECIPE.epochs and not model.training
    assert losses[-1] < 1.5 <= min(losses[:-1])
    assert {len(found[name]) for name in found if name.endswith("_by_epoch")} == {found["epochs"] + 1}
    assert evaluate(model, data.x_train, data.y_train)["loss"] == pytest.approx(losses[-1])


def test_until_then_it_is_the_training_of_fit() -> None:
    data, model, other = load(SMALL), network(), network()
    epochs = matched.until(model, data, RECIPE, loss=1.5)["epochs"]
    fit(other, data, Recipe(**{**vars(RECIPE), "epochs": epochs}))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_the_cap_ends_what_does_not_get_there() -> None:
    found = matched.until(network(), load(SMALL), Recipe(**{**vars(RECIPE), "epochs": 2}), loss=1e-6)
    assert (found["epochs"], found["reached"]) == (2, False)


def test_a_few_easy_images_do_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watched images may be fitted before the others are; the threshold is for all."""
    monkeypatch.setattr(matched, "WATCHED", 10)
    data = load(SMALL)
    easy = torch.cat([torch.zeros_like(data.x_train[:10]), data.x_train[10:]])
    labels = torch.cat([torch.zeros_like(data.y_train[:10]), data.y_train[10:]])
    hard = Data(easy, labels, data.x_test, data.y_test)
    found = matched.until(network(), hard, RECIPE, loss=1.5)
    assert found["reached"] and evaluate(matched_model := network(), easy, labels)["loss"] > 1.5
    assert matched_model is not None and found["train_loss_by_epoch"][-1] < 1.5 and found["epochs"] > 0


@pytest.mark.parametrize("loss", [0.0, -1.0, float("nan")])
def test_a_threshold_that_no_loss_is_below_is_refused(loss: float) -> None:
    with pytest.raises(Refused, match="must be above 0"):
        matched.until(network(), load(SMALL), RECIPE, loss=loss)
