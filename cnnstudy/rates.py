"""The same training at each of a few learning rates, and what the best of them came to.

For networks that may not learn at all: a short pilot says nothing where nothing moves at first, so each rate gets the whole training.
The training loss decides, never a test image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from cnnstudy import pool
from cnnstudy.config import Refused, Setup, choose
from cnnstudy.data import Data, load
from cnnstudy.models import build
from cnnstudy.probes.gradients import first_to_last
from cnnstudy.runtime import device, seed_all
from cnnstudy.train import Diverged, Hook, Recipe, evaluate, fit
from cnnstudy.updates import Adam, WeightChange, freeze

WATCHED = 2000  # training images on which losses are compared, unaugmented
LOOKED_AT = 64  # training images on which the gradients before training are measured
OPTIMISERS = ("sgd", "adam")
FROZEN = ("none", "first half", "all")  # which convolutions of a chain keep their random weights; the linear layer always learns
WORST = 1e3  # the loss of a training that diverged


def best_of(
    start: Callable[[], nn.Module], images: Data, recipe: Recipe, rates: Sequence[float], seed: int, optimiser: str = "sgd"
) -> dict[str, Any]:
    """Train ``start()`` at each of ``rates``, always from the same weights, and describe the run with the lowest training loss.

    ``lr``; ``train_loss, train_acc`` (first WATCHED training images) and ``val_loss, val_acc`` (all test images) after the last update;
    ``loss_by_epoch`` (mean over each epoch of training); ``late_fall`` (see :func:`fall`; 0 for a single epoch); ``tried`` (final
    training loss by rate, WORST if it diverged);
    ``log10_ratio, log10_first`` (gradients before training, in double precision); ``first_change, last_change, change_ratio`` (how far
    the first and the last convolution have moved, as :class:`cnnstudy.updates.WeightChange` says); ``log10_ratio_after``.
    Raises Diverged if no rate comes to an end.
    """
    choose("optimiser", optimiser, OPTIMISERS)
    if not rates or min(rates) <= 0:
        raise Refused(f"rates {list(rates)} must be above 0, and at least one is needed")
    seen = images.x_train[:LOOKED_AT].double(), images.y_train[:LOOKED_AT]
    seed_all(seed)
    model = start().to(images.x_train.device)
    before = first_to_last(copy.deepcopy(model).double(), *seen)
    tried: dict[str, float] = {}
    best: dict[str, Any] | None = None
    for rate in rates:
        twin, change = copy.deepcopy(model), WeightChange()
        hooks: list[Hook] = [change, Adam()] if optimiser == "adam" else [change]
        tried[f"{rate:g}"] = WORST
        try:
            history = fit(twin, images, replace(recipe, lr=rate), hooks=hooks, seed=seed).history
        except Diverged:
            continue
        trained_on = evaluate(twin, images.x_train[:WATCHED], images.y_train[:WATCHED])
        if not math.isfinite(trained_on["loss"]):
            continue
        tried[f"{rate:g}"] = trained_on["loss"]
        if best is None or trained_on["loss"] < best["train_loss"]:
            best = {"lr": rate, "train_loss": trained_on["loss"], "train_acc": trained_on["acc"], "model": twin, "change": change}
            best["loss_by_epoch"] = [epoch["loss"] for epoch in history]
            best["late_fall"] = fall(best["loss_by_epoch"]) if len(history) > 1 else 0.0
    if best is None:
        raise Diverged(-1, math.nan)
    twin, change = best.pop("model"), best.pop("change")
    tested = evaluate(twin, images.x_test, images.y_test)
    first, last = (float(change.by_epoch[-1][i]) for i in (0, -1))
    after = first_to_last(copy.deepcopy(twin).double(), *seen)
    return best | {
        "val_loss": tested["loss"], "val_acc": tested["acc"], "tried": tried, "log10_ratio": before["log10_ratio"],
        "log10_first": before["log10_first"], "log10_ratio_after": after["log10_ratio"], "first_change": first, "last_change": last,
        "change_ratio": change.first_to_last(),
    }  # fmt: skip


def frozen_chain(model: nn.Module, frozen: str) -> nn.Module:
    """A chain (``models.ChainConfig``) with the part FROZEN names kept at its random weights.  Returns the same model."""
    layers = list(model.layers())  # type: ignore[operator]
    count = {"none": 0, "first half": len(layers) // 2, "all": len(layers)}[choose("frozen", frozen, FROZEN)]
    return freeze(model, layers[:count])


def fall(losses: Sequence[float]) -> float:
    """Share of the loss at half time that the second half of training has still taken away; negative if it rose."""
    if len(losses) < 2:
        raise Refused(f"a loss over {len(losses)} epochs has no second half")
    middle = losses[(len(losses) - 1) // 2] if len(losses) % 2 else losses[len(losses) // 2 - 1]
    return 1 - losses[-1] / middle


def variant(chosen: Setup, seed: int, labels: str = "true", frozen: Sequence[str] = ()) -> nn.Module:
    """The base network of a setup (``pool.setup``) trained otherwise: on random ``labels``, or with modules ``frozen`` at random weights.

    From the same initial weights, at the learning rate chosen for the base network; with neither it is the base network itself.  In
    evaluation mode.
    """
    if labels == "true" and not frozen:
        return pool.network(chosen, seed).model
    lr = pool.rate(chosen)["lr"]
    images = load(replace(chosen.data, labels=labels), device(), seed)
    seed_all(seed)
    return fit(freeze(build(chosen.model), frozen), images, replace(chosen.recipe, lr=lr), seed=seed).model
