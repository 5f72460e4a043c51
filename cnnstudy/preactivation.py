"""Activation before or after: a network's blocks in one line, and what the ReLU behind the sums takes from the signal.

The two designs are those of He et al. 2015 (arXiv:1512.03385) and He et al. 2016 (arXiv:1603.05027).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from cnnstudy import pool
from cnnstudy.config import Setup, choose
from cnnstudy.data import load
from cnnstudy.models import build
from cnnstudy.probes import branches, routes
from cnnstudy.probes.jacobians import calibrated
from cnnstudy.runtime import device, seed_all

PARTS = ("model", "data", "recipe", "pilot", "signal_images")  # of a base network's setup


def blocks(model: Any, resolution: int = 32, seed: int = 0) -> dict[str, Any]:
    """How the blocks of a network or a config are put together, and what they add up on signed random input.

    Different ones among the blocks, in their order: ``branches``, ``shortcuts``, ``shared``, ``last`` (operation of the branch),
    ``after`` (the sum); ``head``: operations behind the last block.  ``blocks``; with ReLU after the sum: ``relu_after``.
    ``inside``: operations on the way from a sum to the next sum's shortcut inside a stage, ``boundary``: the same where a stage begins.
    ``branch_min``: smallest value that a branch puts out; ``negative_blocks``: blocks whose branch goes below 0.  Over the blocks with
    identity shortcuts: ``raw_difference`` largest |what is added - x|, ``norm_difference`` smallest over the blocks of the largest
    |what is added - norm(x)| (None where branches don't begin with a norm).
    """
    order, value = routes.orders(model, resolution), routes.block_outputs(model, resolution, seed)
    first = ~order["stage"].duplicated()
    between = order["between"].shift(fill_value="")  # what the block before left on the way here
    on_way = [len(f"{b} {s} {a}".split()) for b, s, a in zip(between, order["shortcut"], order["after"].shift(fill_value=""), strict=True)]
    own = value[value["identity"].astype(bool)]
    normed = own["norm_difference"].dropna()
    kinds = {name: list(dict.fromkeys(order[column])) for name, column in _KINDS.items()}
    return kinds | {
        "blocks": len(order), "relu_after": int((order["after"] == "relu").sum()), "head": order["between"].iloc[-1],
        "inside": sum(n for n, at_start in zip(on_way, first, strict=True) if not at_start),
        "boundary": sum(n for n, at_start in zip(on_way, first, strict=True) if at_start),
        "branch_min": float(value["branch_min"].min()), "negative_blocks": int((value["branch_min"] < 0).sum()),
        "raw_difference": float(own["shortcut_difference"].max()),
        "norm_difference": float(normed.min()) if len(normed) else None,
    }  # fmt: skip


_KINDS = {"branches": "branch", "shortcuts": "shortcut", "shared": "shared", "last": "last", "after": "after"}


def silent_stages(model: Any, resolution: int = 32, seed: int = 0) -> dict[str, Any]:
    """With all branches silent: is the gradient at a stage's input the one at its output?  Stages of shape-keeping blocks.

    ``stages`` that have such blocks; largest |difference| of gradients, over the stages: ``backward_max``, ``backward_min``; of
    activations: ``forward_max``.  0 is the identity; the gradient that is sent back is standard normal.
    """
    table = routes.stage_identity(model, resolution, seed)
    found = table[table["backward"].notna()]
    return {
        "stages": int((found["stage"] != "all").sum()), "forward_max": float(found["forward"].max()),
        "backward_max": float(found["backward"].max()), "backward_min": float(found["backward"].min()),
    }  # fmt: skip


def relu_loss(base: Setup, state: str, images: int, seed: int) -> dict[str, Any]:
    """What the ReLU after each sum removes in a base network, ``state`` "start" or "trained", on the first test images.

    Columns of :func:`branches.profile` as lists over blocks (``removed_units``, ``removed_squared``, ``changed``, ...), and ``zeroed``:
    share of the loss gradient's entries that the ReLU sets to 0 on the way back.  ``start``: batch norms hold these images' statistics.
    """
    choose("state", state, ("start", "trained"))
    chosen = Setup(**{name: base.parts[name] for name in PARTS})
    data = load(chosen.data, device(), seed)
    x, y = data.x_test[:images], data.y_test[:images]
    if state == "trained":
        model = pool.network(chosen, seed).model
    else:
        seed_all(seed)
        model = calibrated(build(chosen.model).to(device()), x).to(x.dtype)
    return branches.summary(model, x) | {"zeroed": branches.gradient_zeroed(model, x, y)["zeroed"].tolist()}


def difference(runs: pd.DataFrame, original: str, preact: str) -> dict[str, float | None]:
    """Two rows of base networks, by record key, as differences; above 0 speaks for the pre-activation.

    ``gain``: test accuracy, pre-activation less original.  Original less pre-activation: ``loss_1``, ``loss_5`` mean training loss of
    the first and the fifth epoch (None in shorter trainings), ``train_loss`` after the last, ``gap`` test less training loss.
    ``original``, ``preact``: test accuracies.  Raises ArithmeticError if one of the trainings failed.
    """
    one, two = (runs.set_index("key").loc[name].to_dict() for name in (original, preact))
    if pd.notna(one["failed"]) or pd.notna(two["failed"]):
        raise ArithmeticError("one of the two trainings failed")

    def at(epoch: int) -> float | None:
        a, b = one["loss_by_epoch"], two["loss_by_epoch"]
        return a[epoch - 1] - b[epoch - 1] if epoch <= len(a) else None

    return {
        "gain": two["val_acc"] - one["val_acc"], "original": one["val_acc"], "preact": two["val_acc"],
        "loss_1": at(1), "loss_5": at(5), "train_loss": one["train_loss"] - two["train_loss"],
        "gap": (one["val_loss"] - one["train_loss"]) - (two["val_loss"] - two["train_loss"]),
    }  # fmt: skip


def slope(gains: pd.DataFrame, shallowest: int, deepest: int, seed: int) -> dict[str, float]:
    """Least-squares slope of ``gain`` over log10 of ``original.depth`` for one seed: gain per tenfold depth."""
    own = gains[gains["seed"].eq(seed) & gains["original.depth"].between(shallowest, deepest)]
    return {"slope": float(np.polyfit(np.log10(own["original.depth"].astype(float)), own["gain"].astype(float), 1)[0])}
