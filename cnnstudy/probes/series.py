"""Series of networks trained alike: how accuracy follows a size, and what one series saves against another at equal accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from cnnstudy.config import Refused


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of ``y`` on ``x``.  Raises Refused for fewer than two different x."""
    spread, together = _moments(x, y)
    if spread == 0:
        raise Refused(f"a slope needs two different x; got {list(x)}")
    return together / spread


def saved(
    sizes: Sequence[float], accuracies: Sequence[float], other_sizes: Sequence[float], other_accuracies: Sequence[float]
) -> dict[str, Any]:
    """How much smaller the ``other`` series may be for the accuracy of the first.

    Two parallel straight lines, accuracy against the logarithm of the size, fitted by least squares.

    - ``per_doubling``: their common slope, accuracy for each doubling of the size;
    - ``gap``: how much more accurate the other series is at equal size;
    - ``log2_saved``: doublings of size that the other series does without at equal accuracy, ``gap / per_doubling``; below 0 it
      needs more.  None where a larger size does not bring accuracy: then there is nothing to interpolate;
    - ``ratio``: size of the other series over the first's, at equal accuracy; None likewise.
    """
    x, other_x = ([math.log2(size) for size in some] for some in (sizes, other_sizes))
    parts = [_moments(x, accuracies), _moments(other_x, other_accuracies)]
    spread, together = (sum(part[i] for part in parts) for i in (0, 1))
    if spread == 0:
        raise Refused("a series needs two different sizes")
    rise = together / spread
    gap = fmean(other_accuracies) - fmean(accuracies) - rise * (fmean(other_x) - fmean(x))
    doublings = gap / rise if rise > 0 else None
    return {"per_doubling": rise, "gap": gap, "log2_saved": doublings, "ratio": None if doublings is None else 2.0**-doublings}


def spread(values: Sequence[float]) -> float:
    """How far the largest lies above the smallest, as a share of the smallest."""
    return max(values) / min(values) - 1


def _moments(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    if len(x) != len(y) or len(x) < 2:
        raise Refused(f"a series needs as many values as sizes, and at least two; got {len(y)} and {len(x)}")
    centre = fmean(x)
    return math.fsum((v - centre) ** 2 for v in x), math.fsum((v - centre) * w for v, w in zip(x, y, strict=True))
