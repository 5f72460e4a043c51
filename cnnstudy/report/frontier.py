"""Accuracy against cost: who is on the Pareto front, how far off the others are, and how well one cost foretells another."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Any

from cnnstudy.config import Refused, digest
from cnnstudy.report import published

Point = tuple[float, float]  # cost (less is better), accuracy (more is better)


def pareto(points: Mapping[str, Point]) -> list[str]:
    """The names that no other point beats: none costs at most as much and is at least as accurate, one of both strictly.

    In order of rising cost.
    """

    def beaten(name: str) -> bool:
        cost, accuracy = points[name]
        return any(c <= cost and a >= accuracy and (c, a) != (cost, accuracy) for c, a in points.values())

    return sorted((name for name in points if not beaten(name)), key=lambda name: points[name])


def excess(points: Mapping[str, Point], name: str) -> float:
    """A point's cost over the least cost of any point (itself included) of at least its accuracy; 1 on the front."""
    cost, accuracy = points[name]
    return cost / min(c for c, a in points.values() if a >= accuracy)


def one_recipe(recipe: str, names: Collection[str], families: Collection[str] | None = None) -> list[published.PublishedRow]:
    """The published ImageNet rows of one recipe, trained on ImageNet-1k alone, for the networks named; one row each."""
    found = [
        row for row in published.rows("imagenet")
        if row["recipe"] == recipe and row["train_data"] == "in1k" and row["model"] in names
        and (families is None or row["family"] in families)
    ]  # fmt: skip
    twice = {row["model"] for row in found if sum(other["model"] == row["model"] for other in found) > 1}
    if twice:
        raise Refused(f"recipe {recipe!r} has several rows of {', '.join(sorted(twice))}")
    return found


def digest_of(rows: Sequence[published.PublishedRow]) -> str:
    """A digest of what a derived figure takes from published rows: model, resolution and top-1."""
    return digest(sorted([row["model"], row["resolution"], row["top1"]] for row in rows))


def standing(costs: Mapping[str, float], rows: Sequence[published.PublishedRow], name: str, families: Collection[str]) -> dict[str, Any]:
    """Where a network stands among published ``rows``: is it on the front of all, and its excess within ``families`` and itself.

    ``costs``: the cost of every network of ``rows``, by model.
    """
    points = {row["model"]: (costs[row["model"]], row["top1"]) for row in rows}
    among = {row["model"]: points[row["model"]] for row in rows if row["family"] in families or row["model"] == name}
    return {"on_front": name in pareto(points), "excess": excess(among, name)}


def power_law(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Least squares of log y on log x: ``slope``, ``scale`` (y at x = 1), ``fitted``, and by which ``factors`` (>= 1) it errs.

    ``median_factor``: half of the points are foretold better than within this factor.  Raises Refused below 3 points.
    """
    return _fit([[math.log(v)] for v in x], y)


def power_law_of_two(x: Sequence[float], z: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """The same on log x and log z together; ``slope`` is a list of two."""
    return _fit([[math.log(a), math.log(b)] for a, b in zip(x, z, strict=True)], y)


def _fit(logs: Sequence[Sequence[float]], y: Sequence[float]) -> dict[str, Any]:
    import numpy as np

    if len(y) < 3:
        raise Refused(f"a power law needs at least 3 points, got {len(y)}")
    design = np.column_stack([np.asarray(logs, float), np.ones(len(y))])
    target = np.log(np.asarray(y, float))
    weights, *_ = np.linalg.lstsq(design, target, rcond=None)
    fitted = design @ weights
    factors = np.exp(np.abs(fitted - target)).tolist()
    slopes = weights[:-1].tolist()
    return {
        "slope": slopes[0] if len(slopes) == 1 else slopes,
        "scale": float(np.exp(weights[-1])),
        "fitted": np.exp(fitted).tolist(),
        "factors": factors,
        "median_factor": median(factors),
    }
