"""The same training from different initial weights, each at the best of a few learning rates.

A bad rate must not be blamed on the weights, so each start gets its own: :func:`learn` tries the rates on four fifths of the training
images, scores them on the last fifth, trains at the best one and says how it went.  Test images decide nothing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.data import CifarConfig, Data, load
from cnnstudy.models import build
from cnnstudy.models.chain import Chain
from cnnstudy.models.inits import draw
from cnnstudy.pilot import held_out
from cnnstudy.probes.gradients import first_to_last
from cnnstudy.probes.taps import outputs
from cnnstudy.runtime import device, seed_all
from cnnstudy.train import Diverged, Hook, Recipe, evaluate, fit
from cnnstudy.updates import unit_variance

LOOKED_AT = 64  # training images on which signals before training are measured
SCALED_BY = 256  # training images that a data-driven start may look at
WATCHED = 1000  # test images of the curve; the accuracy at the end is of all
CHANCE = 0.1  # accuracy of a network that guesses; what a training that diverged counts as


def begin(cfg: Any, init: str, gain: float, images: Data) -> nn.Module:
    """The network of ``cfg``, its convolutions drawn by ``init`` times ``gain``; "built": as the config says; "lsuv": orthogonal, then
    scaled layer by layer to unit variance on training images (Mishkin & Matas 2016)."""
    model = build(cfg).to(images.x_train.device)
    if init == "lsuv":
        return unit_variance(draw(model, "orthogonal"), images.x_train[:SCALED_BY])
    if init != "built":
        return draw(model, init, gain)
    if gain != 1:
        raise Refused(f"gain {gain} is not valid with init 'built'; it stands in the network's config")
    return model


class _Curve(Hook):
    """Accuracy on the first test images before training and after each epoch."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.found: list[float] = []

    def on_epoch(self, model: nn.Module, epoch: int) -> None:
        self.found.append(evaluate(model, self.x, self.y)["acc"])


@cache
def best_rate(
    cfg: Any, init: str, gain: float, data: CifarConfig, recipe: Recipe, rates: tuple[float, ...], epochs: int
) -> dict[str, float]:
    """Accuracy on held-out training images by rate, after ``epochs`` with seed 0; CHANCE where the training diverged."""
    images = held_out(load(data, device()))
    tried = {}
    for rate in rates:
        seed_all(0)
        try:
            model = fit(begin(cfg, init, gain, images), images, replace(recipe, lr=rate, epochs=epochs)).model
            scored = evaluate(model, images.x_test, images.y_test)
            tried[f"{rate:g}"] = scored["acc"] if math.isfinite(scored["loss"]) else CHANCE
        except Diverged:
            tried[f"{rate:g}"] = CHANCE
    return tried


def learn(
    cfg: Any, data: CifarConfig, recipe: Recipe, rates: Sequence[float], pilot: int, seed: int, init: str = "built", gain: float = 1.0,
    fixed: float = 0.0, tune: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Train from this start at the best of ``rates`` (``pilot`` epochs each), and at the rate ``fixed`` as well if it is not 0.

    ``tune``: at which gain the rates are tried; 0: at this start's own.

    ``lr, tried`` (held-out accuracy by rate), ``most_tried``; ``val_acc, train_loss, curve, losses, spikes, diverged`` of the training;
    ``fixed_acc`` and ``fixed_curve`` of the one at ``fixed``.  For a Chain also :func:`signals` before training.
    """
    if not rates or min(rates) <= 0:
        raise Refused(f"rates {list(rates)} must be above 0, and at least one is needed")
    tried = best_rate(cfg, init, tune or gain, data, recipe, tuple(rates), pilot) if len(rates) > 1 else {f"{rates[0]:g}": 0.0}
    lr = float(max(tried, key=lambda rate: tried[rate]))
    images = load(data, device(), seed)
    seed_all(seed)
    model = begin(cfg, init, gain, images)
    seen = images.x_train[:LOOKED_AT], images.y_train[:LOOKED_AT]
    found = {"lr": lr, "tried": tried, "most_tried": max(tried.values()), **(signals(model, *seen) if isinstance(model, Chain) else {})}
    found |= _train(copy.deepcopy(model), images, replace(recipe, lr=lr), seed)
    if fixed:
        other = found if fixed == lr else _train(model, images, replace(recipe, lr=fixed), seed)
        found |= {"fixed_acc": other["val_acc"], "fixed_curve": other["curve"], "fixed_spikes": other["spikes"]}
    return found


def _train(model: nn.Module, images: Data, recipe: Recipe, seed: int) -> dict[str, Any]:
    curve = _Curve(images.x_test[:WATCHED], images.y_test[:WATCHED])
    try:
        history = fit(model, images, recipe, hooks=[curve], seed=seed).history
        tested, trained = evaluate(model, images.x_test, images.y_test), evaluate(model, images.x_train[:2000], images.y_train[:2000])
        if not math.isfinite(tested["loss"]):
            raise Diverged(-1, tested["loss"])
    except Diverged:
        curves = [CHANCE] * (recipe.epochs + 1)
        return {"val_acc": CHANCE, "train_loss": 1e3, "curve": curves, "losses": [1e3], "spikes": True, "diverged": True}
    losses = [epoch["loss"] for epoch in history]
    spikes = any(later > 2 * min(losses[: i + 1]) for i, later in enumerate(losses))
    return {
        "val_acc": tested["acc"],
        "train_loss": trained["loss"],
        "curve": curve.found,
        "losses": losses,
        "spikes": spikes,
        "diverged": False,
    }


def signals(model: Chain, x: Tensor, y: Tensor) -> dict[str, float]:
    """Before training, in double precision, from the first layer's output to the last one's, as log10.

    ``log10_forward``: second moment, last over first; ``log10_backward``: second moment of the loss gradient there, first over last;
    ``imbalance``: the sum of their sizes; ``log10_ratio``: norm of the weights' gradient, first over last convolution.
    """
    twin = copy.deepcopy(model).double().train()
    with outputs(dict(twin.layers())) as seen:
        loss = F.cross_entropy(twin(x.double()), y)
    values = list(seen.values())
    first, last = torch.autograd.grad(loss, [values[0], values[-1]])
    forward = _log10(values[-1]) - _log10(values[0])
    backward = _log10(first) - _log10(last)
    ratio = first_to_last(copy.deepcopy(model).double(), x.double(), y)
    return {
        "log10_forward": forward, "log10_backward": backward, "imbalance": abs(forward) + abs(backward),
        "log10_ratio": ratio["log10_ratio"], "log10_first": ratio["log10_first"],
    }  # fmt: skip


def _log10(values: Tensor) -> float:
    """log10 of the second moment; an exact zero reads as 1e-300."""
    return math.log10(max(float(values.detach().square().mean()), 1e-300))


def epochs_to(curve: Sequence[float], target: float) -> float:
    """Epochs until a curve (entry 0 before training) first reaches ``target``, straight lines between; its length + 1 epochs if never."""
    for epoch, (before, after) in enumerate(zip(curve, curve[1:], strict=False)):
        if before >= target:
            return float(epoch)
        if after >= target:
            return epoch + (target - before) / (after - before)
    return float(len(curve))


def slower(he: Sequence[float], others: Sequence[Sequence[float]], share: float = 0.9) -> list[float]:
    """How many more epochs, relatively, other starts need to reach ``share`` of the accuracy at which the curve ``he`` ends."""
    goal = share * he[-1]
    base = epochs_to(he, goal)
    return [epochs_to(curve, goal) / base - 1 for curve in others]
