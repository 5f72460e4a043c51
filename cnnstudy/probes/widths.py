"""What a width multiplier does to a network: which layers follow it, and how parameters and MACs fall.

The networks are ImageNet-sized MobileNets at any multiplier (``CounterfactualConfig(name, width=alpha)``), compared with themselves
at multiplier 1; everything is counted on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from cnnstudy.config import Refused
from cnnstudy.models.counterfactual import CounterfactualConfig
from cnnstudy.probes.cost import cost
from cnnstudy.probes.layer_costs import layers

FULL = 224  # pixels at which multiplier 1 is taken for comparison
RGB = 3


@cache
def _counted(cfg: CounterfactualConfig, resolution: int) -> tuple[dict[str, Any], pd.DataFrame]:
    """``probes.cost`` and the layers of a network; read only, kept for the process."""
    return cost(cfg, resolution), layers(cfg, resolution)


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple of 8 that loses at most a tenth, as the authors' code rounds channels."""
    near = max(by, int(channels + by / 2) // by * by)
    return near + by if near < 0.9 * channels else near


def applied(cfg: CounterfactualConfig) -> dict[str, Any]:
    """Which convolutions of the network have ``width`` times the channels, in and out, that they have at width 1.

    - ``convs``; ``exact_share``: those with exactly so many; ``rounded_share``: or so many after :func:`divisible`.  The three colour
      channels count as scaled; the classifier is no convolution;
    - ``unscaled``: names of those that put out as many channels as at width 1; ``only_the_last``: there is none but the last convolution
      (or none at all: then the classifier alone stays as it is).
    """
    own, full = (_counted(c, FULL)[1] for c in (cfg, replace(cfg, width=1.0)))
    own, full = (t[~t["name"].isin(["classifier", "fc"])] for t in (own, full))
    if list(own["name"]) != list(full["name"]):
        raise Refused(f"{cfg.name} at width {cfg.width} has other layers than at width 1; valid: a network whose widths alone differ")
    pairs = [(full[c].to_numpy(), own[c].to_numpy()) for c in ("channels_in", "channels")]
    exact, rounded = np.ones(len(own), dtype=bool), np.ones(len(own), dtype=bool)
    for before, after in pairs:
        wanted = cfg.width * before
        exact &= (after == wanted) | (before == RGB)
        rounded &= (after == [divisible(w) for w in wanted]) | (after == wanted) | (before == RGB)
    names, same = list(own["name"]), pairs[1][0] == pairs[1][1]
    unscaled = [name for name, kept in zip(names, same, strict=True) if kept]
    return {
        "convs": len(own),
        "exact_share": float(exact.mean()),
        "rounded_share": float(rounded.mean()),
        "unscaled": unscaled,
        "only_the_last": set(unscaled) <= {names[-1]},
    }


def scaling(cfg: CounterfactualConfig, resolution: int = FULL) -> dict[str, Any]:
    """Costs of a network at its width and ``resolution``, relative to width 1 at 224 pixels.

    ``params``, ``macs``, ``activations``; ``params_ratio``, ``macs_ratio``, ``activations_ratio``; ``squared``: width squared, and
    ``params_error``, the relative distance of ``params_ratio`` from it; ``squares``: width squared times resolution ratio squared, and
    ``macs_error``; ``params_by_role`` (norms: "norm"), ``macs_by_role``.
    """
    own, full = _counted(cfg, resolution), _counted(replace(cfg, width=1.0), FULL)
    ratios = {f"{what}_ratio": own[0][what] / full[0][what] for what in ("params", "macs", "activations")}
    squared, squares = cfg.width**2, cfg.width**2 * (resolution / FULL) ** 2
    return {
        **{what: own[0][what] for what in ("params", "macs", "activations")},
        **ratios,
        "squared": squared,
        "params_error": abs(ratios["params_ratio"] / squared - 1),
        "squares": squares,
        "macs_error": abs(ratios["macs_ratio"] / squares - 1),
        "params_by_role": _params_by_role(*own),
        "macs_by_role": {str(k): int(v) for k, v in own[1].groupby("role", sort=False)["macs"].sum().items()},
    }


def _params_by_role(whole: Mapping[str, Any], table: pd.DataFrame) -> dict[str, int]:
    sums = (table["weights"] + table["biases"]).groupby(table["role"], sort=False).sum()
    found = {str(role): int(n) for role, n in sums.items()}
    return found | {"norm": whole["params"] - sum(found.values())}


def exponents(cfg: CounterfactualConfig, widths: Sequence[float], resolution: int = FULL) -> dict[str, Any]:
    """By which power of the width each count grows: least-squares slope of its logarithm over that of the width.

    ``params``, ``macs`` (the network), ``body_params``, ``body_macs`` (without the classifier's linear layers), and by role
    ``params_by_role``, ``macs_by_role``; ``worst_residual``: the largest factor by which the parameters miss that power law.
    """
    if len(set(widths)) < 2 or min(widths) <= 0:
        raise Refused(f"an exponent needs two widths above 0, got {list(widths)}")
    found = [scaling(replace(cfg, width=float(w)), resolution) for w in widths]
    counts: dict[str, list[float]] = {what: [one[what] for one in found] for what in ("params", "macs")}
    for what in ("params", "macs"):
        counts[f"body_{what}"] = [one[what] - one[f"{what}_by_role"]["head"] for one in found]
        for role in found[0][f"{what}_by_role"]:
            counts[f"{what}_by_role.{role}"] = [one[f"{what}_by_role"][role] for one in found]
    x = np.log2([float(w) for w in widths])
    fits = {name: np.polyfit(x, np.log2(values), 1) for name, values in counts.items()}
    off = np.log2(counts["params"]) - np.polyval(fits["params"], x)
    result: dict[str, Any] = {name: float(fit[0]) for name, fit in fits.items() if "." not in name}
    for what in ("params", "macs"):
        of_roles = {name.split(".")[1]: float(fit[0]) for name, fit in fits.items() if name.startswith(f"{what}_by_role.")}
        result[f"{what}_by_role"] = of_roles
    return result | {"worst_residual": float(2 ** np.abs(off).max()) if math.isfinite(off.max()) else None}
