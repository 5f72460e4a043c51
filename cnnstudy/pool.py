"""The base networks that many questions look at, each trained once, at the best of its own learning rates, and kept by key.

``base`` is the measurement that pages share (experiment ``base_networks``: same setup, same record); ``network`` gives the trained
network itself to a page that probes it.  A setup is ``setup(model, train, test, epochs)``: three rates, tried as
:mod:`cnnstudy.pilot` does, then the ResNet recipe at the best of them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy import pilot
from cnnstudy.config import Refused, Setup, key
from cnnstudy.data import CifarConfig, load
from cnnstudy.fetch import cache_root
from cnnstudy.models import build
from cnnstudy.probes.gradients import first_to_last
from cnnstudy.probes.signal import block_gradients, stage_ratios
from cnnstudy.runtime import device, seed_all
from cnnstudy.train import Hook, Recipe, Run, evaluate, fit, scores
from cnnstudy.weights import read_weights

PROTOCOL = 1  # raised when the meaning of a checkpoint changes
WATCHED = 1000  # test images of the curve; the accuracy at the end is of all


@dataclass(frozen=True)
class PilotConfig:
    """The learning rates tried for a network, for ``epochs`` each, on four fifths of the training images."""

    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    epochs: int = 2


def setup(model: Any, train: int, test: int, epochs: int) -> Setup:
    """The setup of a base network of config ``model``: ``epochs`` on ``train`` images, scored on ``test``; SGD, one cycle, batch 128."""
    return Setup(
        model=model, data=CifarConfig(train=train, test=test), recipe=Recipe(epochs=epochs), pilot=PilotConfig(), signal_images=128
    )  # fmt: skip


@dataclass
class Base:
    """A trained base network, and what was logged on the way.

    Before training and after each epoch: ``test_loss_by_epoch`` and ``test_acc_by_epoch`` (WATCHED images), ``log10_ratio_by_epoch``
    (weight gradient, first to last convolution), ``stage_ratio_by_epoch`` (for each stage the loss gradient at the first block's output
    over that at the last's), ``block_gradients`` (epochs, blocks).  Means over each epoch of training: ``loss_by_epoch``,
    ``acc_by_epoch``.  Once: ``lr``, ``pilot`` (accuracy on held-out images, by rate).
    """

    model: nn.Module
    log: dict[str, Any]


class Log(Hook):
    """Looks at the gradients of ``x, y`` and at the first test images after every epoch."""

    def __init__(self, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> None:
        self.x, self.y, self.x_test, self.y_test = x, y, x_test, y_test
        self.found: dict[str, list[Any]] = {
            name: []
            for name in ("log10_ratio_by_epoch", "stage_ratio_by_epoch", "test_loss_by_epoch", "test_acc_by_epoch", "block_gradients")
        }

    def on_epoch(self, model: nn.Module, epoch: int) -> None:
        seen = evaluate(model, self.x_test, self.y_test)
        self.found["test_loss_by_epoch"].append(seen["loss"])
        self.found["test_acc_by_epoch"].append(seen["acc"])
        self.found["log10_ratio_by_epoch"].append(first_to_last(model, self.x, self.y)["log10_ratio"])
        profile = block_gradients(model, self.x, self.y)
        self.found["stage_ratio_by_epoch"].append(stage_ratios(profile))
        self.found["block_gradients"].append([float(norm) for stage in profile for norm in stage])


def rate(chosen: Setup) -> dict[str, Any]:
    """``lr`` and ``pilot`` of a setup, from the cache if an earlier seed tried the rates."""
    parts = Setup(**{name: getattr(chosen, name) for name in ("model", "data", "recipe", "pilot")})
    path = cache_root() / "checkpoints" / f"{key('pilot', parts, 0, PROTOCOL)}.json"
    return _kept(path, lambda: pilot.best_rate(chosen.model, chosen.data, chosen.recipe, chosen.pilot.rates, chosen.pilot.epochs))


def network(chosen: Setup, seed: int) -> Base:
    """The trained network of a setup, from the cache or trained now; on the default device, in evaluation mode.

    A damaged checkpoint is refused by name, never silently trained again.
    """
    from safetensors.torch import save_file

    path = cache_root() / "checkpoints" / f"{key('base', chosen, seed, PROTOCOL)}.safetensors"
    if path.exists():
        seed_all(seed)
        model = build(chosen.model)
        try:
            model.load_state_dict(read_weights(path))
            log = json.loads(path.with_suffix(".json").read_text("utf-8"))
        except (RuntimeError, OSError, ValueError) as error:
            raise Refused(f"checkpoint {path.name} cannot be read ({error}); delete it to train anew") from None
        model.to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Base(model.eval(), log)
    found = rate(chosen)
    run, log = _train(chosen, seed, found["lr"])
    log = found | log
    _kept(path.with_suffix(".json"), lambda: log)
    part = path.with_suffix(f".{os.getpid()}")
    save_file({name: value.contiguous() for name, value in run.model.state_dict().items()}, part)
    os.replace(part, path)
    return Base(run.model, log)


def base(chosen: Setup, seed: int) -> dict[str, Any]:
    """Trial of the shared experiment ``base_networks``: the log of Base, and ``train_acc, train_loss, val_acc, val_loss`` at the end."""
    made = network(chosen, seed)
    found = scores(made.model, load(chosen.data, device(), seed)) | made.log
    return found | {"block_gradients": np.array(made.log["block_gradients"])}


def _train(chosen: Setup, seed: int, lr: float) -> tuple[Run, dict[str, Any]]:
    images = load(chosen.data, device(), seed)
    log = Log(
        images.x_train[: chosen.signal_images], images.y_train[: chosen.signal_images], images.x_test[:WATCHED], images.y_test[:WATCHED]
    )
    seed_all(seed)
    run = fit(build(chosen.model), images, replace(chosen.recipe, lr=lr), hooks=[log], seed=seed)
    curves = {f"{name}_by_epoch": [epoch[name] for epoch in run.history] for name in ("loss", "acc")}
    return run, {**curves, **log.found}


def _kept(path: Any, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    if path.exists():
        return json.loads(path.read_text("utf-8"))
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(made))
    os.replace(part, path)
    return made
