"""Batch norm before the activation, after it, or not at all: what trained networks look like inside, and how two designs compare.

The networks are those of :mod:`cnnstudy.pool`; the exact side of the same question is :mod:`cnnstudy.probes.normplace`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnstudy import pool
from cnnstudy.config import Setup, choose
from cnnstudy.data import load
from cnnstudy.models import build
from cnnstudy.probes import normplace
from cnnstudy.probes.gradients import first_to_last
from cnnstudy.probes.saturation import saturation
from cnnstudy.probes.signal import block_gradients
from cnnstudy.runtime import device, seed_all
from cnnstudy.train import scores

PARTS = ("model", "data", "recipe", "pilot", "signal_images")  # of a base network's setup
LOOKED_AT = 256  # training images for gradients
HARM = ("", "noise", "half contrast")


def saturated(base: Setup, state: str, images: int, edges: np.ndarray, seed: int) -> dict[str, Any]:
    """Flat inputs of the activations of a base network, ``state`` "start" or "trained", on its first training ``images``.

    Means over layers: ``flat``, ``dead``, ``dead_channels`` (shares, as :func:`saturation` says); ``log10_ratio``: gradient of the first
    over that of the last convolution; ``train_loss``; arrays ``flat_by_layer`` and ``histogram`` (layers, bins between ``edges``).
    """
    fresh = choose("state", state, ("start", "trained")) == "start"
    chosen = Setup(**{name: base.parts[name] for name in PARTS})
    data = load(chosen.data, device(), seed)
    seed_all(seed)
    model = build(chosen.model).to(device()) if fresh else pool.network(chosen, seed).model
    found = saturation(model, data.x_train[:images], train=fresh, edges=edges)
    loss = scores(model, data)["train_loss"]
    x, y = data.x_train[:LOOKED_AT].double(), data.y_train[:LOOKED_AT]
    ratio = first_to_last(model.double(), x, y)["log10_ratio"]
    means = {name: float(found[name].mean()) for name in ("flat", "dead", "dead_channels")}
    return means | {"log10_ratio": ratio, "train_loss": loss, "flat_by_layer": found["flat"], "histogram": found["histogram"]}


def harmed(x: Tensor, how: str) -> Tensor:
    """Images ``x`` (N, C, H, W) in [0, 1] as they are (""), with normal "noise" of standard deviation 0.1, or at "half contrast"."""
    choose("harm", how, HARM)
    return {"": x, "noise": x + 0.1 * torch.randn_like(x), "half contrast": 0.5 * x + 0.25}[how]


def statistics(base: Setup, train: bool, harm: str, images: int, seed: int) -> dict[str, float]:
    """Channels behind the norms of a trained base network on its first test ``images``: :func:`normplace.normal_share` before the learned
    scale and shift (``share_before``, ...) and at the output (``share_output``, ...).  ``train``: statistics of the batch, not the stored
    ones.
    """
    chosen = Setup(**{name: base.parts[name] for name in PARTS})
    x = load(chosen.data, device(), seed).x_test[:images]
    seed_all(seed)
    found = normplace.channels(pool.network(chosen, seed).model, harmed(x, harm), train)
    before = normplace.normal_share(found["before_mean"], found["before_std"])
    output = normplace.normal_share(found["mean"], found["std"])
    return {f"{name}_before": v for name, v in before.items()} | {f"{name}_output": v for name, v in output.items()}


def block_spread(norms: Sequence[float] | np.ndarray, stages: int = 3) -> dict[str, float]:
    """Of the gradient norms of a network's blocks, input to output, ``stages`` of equally many: ``log10_ratio`` mean of the first stage
    over mean of the last, and ``variation``, their coefficient of variation over all blocks."""
    values = np.array(norms, dtype=float)
    n = len(values) // stages
    return {"log10_ratio": float(np.log10(values[:n].mean() / values[-n:].mean())), "variation": float(values.std() / values.mean())}


def start_gradients(designs: Mapping[str, Any], x: Tensor, y: Tensor, seed: int) -> dict[str, float]:
    """:func:`block_spread` of both designs ("original", "preact": configs) before training, and ``closer``: how much closer to 1 (in
    log10) the ratio of pre-activation is."""
    found: dict[str, float] = {}
    for name, cfg in designs.items():
        seed_all(seed)
        spread = block_spread(np.concatenate(block_gradients(build(cfg), x.cpu(), y.cpu())))
        found |= {f"{name}_{what}": value for what, value in spread.items()}
    return found | {"closer": abs(found["original_log10_ratio"]) - abs(found["preact_log10_ratio"])}


def gradient_flow(pair: Mapping[str, Setup], epochs: Sequence[int], seed: int) -> dict[str, float]:
    """The same of two trained base networks, after each of ``epochs``: names end in the epoch (``closer_5``)."""
    found: dict[str, float] = {}
    logs = {name: pool.network(one, seed).log["block_gradients"] for name, one in pair.items()}
    for epoch in epochs:
        for name, log in logs.items():
            found |= {f"{name}_{what}_{epoch}": value for what, value in block_spread(log[epoch]).items()}
        found[f"closer_{epoch}"] = abs(found[f"original_log10_ratio_{epoch}"]) - abs(found[f"preact_log10_ratio_{epoch}"])
    return found


def loss_at(train: Sequence[float], test: Sequence[float], level: float) -> float:
    """Test loss when the training loss first falls to ``level``: straight lines between epochs.  Both curves begin after epoch 1.

    A training loss that never falls so low gives the last test loss.
    """
    for (a, b), (c, d) in zip(itertools.pairwise(train), itertools.pairwise(test), strict=True):
        if a <= level:
            return float(c)
        if b <= level:
            return float(c + (d - c) * (a - level) / (a - b))
    return float(test[-1])


def gap_at_loss(original: Mapping[str, Any], preact: Mapping[str, Any]) -> dict[str, float]:
    """Logs of two base networks at the same training loss, ``level``: the higher of the two last epochs'.  ``gap``: test loss of the
    original less that of the pre-activation network there; above 0 the generalisation gap is smaller with pre-activation."""
    curves = [(one["loss_by_epoch"], one["test_loss_by_epoch"][1:]) for one in (original, preact)]
    level = max(train[-1] for train, _ in curves)
    old, new = (loss_at(train, test, level) for train, test in curves)
    return {"gap": old - new, "level": level, "original_loss": old, "preact_loss": new}
