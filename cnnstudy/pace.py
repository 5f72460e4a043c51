"""Does width make a network fast?  Training steps of networks with equal multiply-adds, on one thread and on more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cnnstudy.config import Refused, Setup
from cnnstudy.probes.thickness import costs
from cnnstudy.stopwatch import zoo_latency

PASSES = 3  # multiply-adds of a training step over those of a forward pass: the usual estimate


def thread_gain(setups: Sequence[Setup], seed: int) -> list[dict[str, Any]]:
    """Hardware, ``together="model"``: setups of ``networks.timed`` with more than one thread, that differ in ``model`` alone.

    For each ``single_ms`` (median step on one thread) and ``latency_ms`` (on ``threads``), ``thread_gain`` = the first over the second,
    ``gain_over_thinnest`` = that over the gain of the network with the fewest channels; ``single_pace`` and ``pace``: 10^9 multiply-adds
    a second; ``layers``, ``width`` (channels of the first stage's 3x3), ``macs`` (of one image).  A GPU is timed on one thread of the CPU
    both times; its gain means nothing.
    """
    alone, together = (zoo_latency(some, seed) for some in ([s.replace({"threads": 1}) for s in setups], setups))
    found = []
    for setup, one, more in zip(setups, alone, together, strict=True):
        counted = costs(setup.model, setup.resolution)
        work = PASSES * setup.batch * counted["macs"] / 1e6
        found.append({
            "single_ms": one["latency_ms"], "latency_ms": more["latency_ms"], "thread_gain": one["latency_ms"] / more["latency_ms"],
            "single_pace": work / one["latency_ms"], "pace": work / more["latency_ms"], "macs": counted["macs"],
            "layers": counted["layers"], "width": counted["widths"][0],
        })  # fmt: skip
    thinnest = min(found, key=lambda row: row["width"])["thread_gain"]
    return [row | {"gain_over_thinnest": row["thread_gain"] / thinnest} for row in found]


def trends(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Rank correlations (Spearman) over what :func:`thread_gain` returned.

    ``width_pace``, ``width_gain``: of the width with the pace and with the gain from threads; ``layers_time``, ``macs_time``: size of the
    correlation of the step's time with each; ``layers_lead``: the first less the second.  Raises Refused for fewer than three networks.
    """
    from scipy.stats import spearmanr

    if len(rows) < 3:
        raise Refused(f"a rank correlation needs at least three networks, got {len(rows)}")

    def rho(a: str, b: str) -> float:
        return float(spearmanr([row[a] for row in rows], [row[b] for row in rows]).statistic)

    layers, macs = abs(rho("layers", "latency_ms")), abs(rho("macs", "latency_ms"))
    return {
        "width_pace": rho("width", "pace"), "width_gain": rho("width", "thread_gain"), "layers_time": layers, "macs_time": macs,
        "layers_lead": layers - macs,
    }  # fmt: skip
