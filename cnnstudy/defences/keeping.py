"""Hooks that keep a state of the network while it learns: at a given accuracy, or where it withstands attacks best."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch  # noqa: F401
from torch import Tensor, nn

from cnnstudy.attacks.ball import AttackConfig, check
from cnnstudy.attacks.gradient import pgd
from cnnstudy.attacks.strength import robustness
from cnnstudy.config import Refused
from cnnstudy.data import Data
from cnnstudy.models import build
from cnnstudy.train import Hook, evaluate

WATCH_STEPS = 10  # of the PGD that watches an adversarial training: enough to see single-step training collapse


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


class MatchAccuracy(Hook):
    """Keeps the last state whose accuracy on ``x``, ``y`` lies within ``within`` of ``level`` (shares, 0..1).

    Networks that are compared at equal clean accuracy are taken from their own training at that level.  Looks every
    ``every`` updates, before the update.  ``x``: (N, C, H, W) images that are attacked nowhere.
    """

    def __init__(self, x: Tensor, y: Tensor, level: float, every: int = 20, within: float = 0.01) -> None:
        check(x, y)
        if not 0 < level < 1:
            raise Refused(f"accuracy to match is {level}; it must lie between 0 and 1")
        if every < 1:
            raise Refused(f"updates between two looks are {every}; it must be at least 1")
        self.x, self.y, self.level, self.every, self.within = x, y, level, every, within
        self.kept: dict[str, Tensor] = {}
        self.accuracy = float("nan")

    def on_backward(self, model: nn.Module, step: int) -> None:
        if step % self.every:
            return
        accuracy = evaluate(model, self.x, self.y)["acc"]
        if abs(accuracy - self.level) <= self.within + 1e-9:
            self.kept, self.accuracy = _copy(model), accuracy

    def network(self, cfg: Any) -> nn.Module | None:
        """The kept network of the config ``cfg``, in evaluation mode; None where training never passed the level."""
        if not self.kept:
            return None
        model = build(cfg).to(self.x.device)
        model.load_state_dict(self.kept)
        return model.eval()


class KeepMostRobust(Hook):
    """Keeps the state after the epoch with the highest accuracy under PGD on held-out ``x``, ``y``: early stopping.

    Single-step adversarial training can lose all its robustness within an epoch (Wong et al. 2020, section 5).
    Uses eps and seed of ``cfg``; ten steps of a quarter eps on the margin from one random start, in float32.
    """

    def __init__(self, x: Tensor, y: Tensor, cfg: AttackConfig) -> None:
        check(x, y)
        self.x, self.y = x, y
        self.cfg = replace(cfg, steps=WATCH_STEPS, step=0.25, restarts=1, loss="margin", random_start=True, precision="fp32")
        self.robust: list[float] = []
        self.kept: dict[str, Tensor] = {}

    def on_epoch(self, model: nn.Module, epoch: int) -> None:
        if epoch == 0:
            return
        points = pgd(model, self.x, self.y, self.cfg)
        self.robust.append(evaluate(model, points, self.y)["acc"])
        if self.robust[-1] >= max(self.robust):
            self.kept = _copy(model)

    def restore(self, model: nn.Module) -> None:
        """Give ``model`` the weights of the best epoch; nothing where the hook was not used."""
        if self.kept:
            model.load_state_dict(self.kept)

    def summary(self) -> dict[str, object]:
        """``best_epoch`` (from 1; the later of equals), ``watched`` (one accuracy an epoch) and ``overfitted``.

        ``overfitted``: the last epoch kept less than half of the best one's robust accuracy.  Empty where the hook was not used.
        """
        if not self.robust:
            return {}
        best = max(self.robust)
        epoch = max(i for i, value in enumerate(self.robust, 1) if value == best)
        return {"best_epoch": epoch, "watched": self.robust, "overfitted": self.robust[-1] < best / 2}


def matched(model: nn.Module | None, data: Data, attacked: int, cfg: AttackConfig) -> dict[str, dict[str, float]]:
    """The quick part of :func:`robustness` for a network kept by :class:`MatchAccuracy`, as ``{"matched": {...}}``.

    ``val_acc``: share of all test images; ``median_eps`` and ``kept_<eps>``: on the first ``attacked`` of them.  Empty
    where no network was kept.
    """
    if model is None:
        return {}
    found = robustness(model, data.x_test[:attacked], data.y_test[:attacked], [], cfg)
    kept, median = found["kept"], found["median_eps"]
    assert isinstance(kept, dict) and isinstance(median, float)
    shares = {f"kept_{name}": share for name, share in kept.items()}
    return {"matched": {"val_acc": evaluate(model, data.x_test, data.y_test)["acc"], "median_eps": median, **shares}}
