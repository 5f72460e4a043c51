"""Train until the training loss is low enough: networks are compared at the same fit, whatever number of epochs each needs.

The gap between training and test accuracy grows while a network is trained; compared after equal epochs, the faster learner looks as
if it overfitted more.  So each is stopped at the first epoch after which its loss on the training images is below a threshold.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from cnnstudy.config import Refused
from cnnstudy.data import Data
from cnnstudy.train import Hook, Recipe, evaluate, fit

WATCHED = 500  # images, of the training set and of the test set, that are looked at after every epoch


class Fitted(Exception):
    """The training loss is below the threshold; ends the training, and never leaves this module."""


class Curve(Hook):
    """Loss and accuracy after every epoch, in evaluation mode; raises Fitted once the loss of all training images is below ``target``.

    The first images stand for all of them until theirs is below it.
    """

    def __init__(self, data: Data, target: float) -> None:
        self.data, self.target = data, target
        self.found: dict[str, list[float]] = {name: [] for name in ("train_loss_by_epoch", "train_acc_by_epoch", "test_acc_by_epoch")}

    def on_epoch(self, model: nn.Module, epoch: int) -> None:
        data = self.data
        seen = evaluate(model, data.x_train[:WATCHED], data.y_train[:WATCHED])
        if epoch and seen["loss"] < self.target and len(data.x_train) > WATCHED:
            seen = evaluate(model, data.x_train, data.y_train)
        self.found["train_loss_by_epoch"].append(seen["loss"])
        self.found["train_acc_by_epoch"].append(seen["acc"])
        self.found["test_acc_by_epoch"].append(evaluate(model, data.x_test[:WATCHED], data.y_test[:WATCHED])["acc"])
        if epoch and seen["loss"] < self.target:
            raise Fitted


def until(model: nn.Module, data: Data, recipe: Recipe, loss: float, seed: int = 0) -> dict[str, Any]:
    """Train ``model`` in place until its mean loss on all training images, in evaluation mode, is below ``loss`` (nats).

    At most ``recipe.epochs`` epochs.  Returns ``epochs`` (done), ``reached`` (whether it got there), and before training and after each
    epoch ``train_loss_by_epoch``, ``train_acc_by_epoch``, ``test_acc_by_epoch`` (of the first WATCHED images; the last training figures
    are of all images where the threshold was reached).  Raises Refused for a threshold that no loss is below.
    """
    if not loss > 0:
        raise Refused(f"loss {loss} of a matched fit must be above 0")
    curve = Curve(data, loss)
    reached = False
    try:
        fit(model, data, recipe, hooks=[curve], seed=seed)
    except Fitted:
        reached = True
    model.eval()
    return {"epochs": len(curve.found["train_loss_by_epoch"]) - 1, "reached": reached, **curve.found}
