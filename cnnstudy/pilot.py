"""A learning rate for each network before it is trained: the best of a few in short trainings, on images that decide nothing else.

Two networks compared at one rate are compared at the rate that suits one of them.  So each gets its own, chosen the same way: trained
for an epoch or two on four fifths of the training images, scored on the last fifth.  Test images are never looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from cnnstudy.config import Refused
from cnnstudy.data import CifarConfig, Data, load
from cnnstudy.models import build
from cnnstudy.runtime import device, seed_all
from cnnstudy.train import Diverged, Recipe, evaluate, fit

HELD = 5  # one image of so many is held out


def held_out(data: Data) -> Data:
    """The first four fifths of the training images to train on, the last fifth in place of the test images (classes take turns)."""
    kept = len(data.x_train) * (HELD - 1) // HELD // 10 * 10
    if not 0 < kept < len(data.x_train):
        raise Refused(f"{len(data.x_train)} training images are too few to hold some out; at least 20 are needed")
    return Data(data.x_train[:kept], data.y_train[:kept], data.x_train[kept:], data.y_train[kept:])


def best_rate(model: Any, data: CifarConfig, recipe: Recipe, rates: Sequence[float], epochs: int = 2) -> dict[str, Any]:
    """The best of ``rates`` for the network of config ``model``: ``{"lr": rate, "pilot": {rate: accuracy on the held-out images}}``.

    Each is tried for ``epochs`` epochs of ``recipe`` (its schedule shrinks with it), always with seed 0, so that all seeds of a
    comparison share one choice; a training that diverges scores 0.  A single rate is taken untried.  The result is kept for the process.
    """
    if not rates or min(rates) <= 0 or epochs < 1:
        raise Refused(f"a pilot needs rates above 0 and at least one epoch; got rates {list(rates)} and epochs {epochs}")
    if len(rates) == 1:
        return {"lr": rates[0], "pilot": {}}
    tried = _scores(model, data, recipe, tuple(rates), epochs)
    return {"lr": max(rates, key=lambda rate: tried[rate]), "pilot": {f"{rate:g}": accuracy for rate, accuracy in tried.items()}}


@cache
def _scores(model: Any, data: CifarConfig, recipe: Recipe, rates: tuple[float, ...], epochs: int) -> dict[float, float]:
    images = held_out(load(data, device()))
    tried = {}
    for rate in rates:
        seed_all(0)
        try:
            run = fit(build(model), images, replace(recipe, lr=rate, epochs=epochs))
            scored = evaluate(run.model, images.x_test, images.y_test)
            tried[rate] = scored["acc"] if math.isfinite(scored["loss"]) else 0.0
        except Diverged:
            tried[rate] = 0.0
    return tried
