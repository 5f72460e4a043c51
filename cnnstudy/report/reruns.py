"""Where one more training would end up: an interval for a single re-run, wider than that of the mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from cnnstudy import stats
from cnnstudy.stats import Interval


def rerun_interval(values: Sequence[float], level: float = stats.LEVEL) -> Interval:
    """The mean of trainings that differ in their seeds, and the interval in which one more should fall: mean +- t s sqrt(1 + 1/n).

    A single training says nothing about the next: its interval is infinite.
    """
    numbers, n = [float(v) for v in values], len(values)
    if n == 0:
        raise ValueError("no trainings to predict another one from")
    if n == 1:
        return Interval(numbers[0], -math.inf, math.inf, 1)
    half = stats._t(level, n - 1) * math.sqrt(stats._variance(numbers) * (1 + 1 / n))
    return Interval(fmean(numbers), fmean(numbers) - half, fmean(numbers) + half, n)


def rerun_text(values: Sequence[float], scale: float = 100, digits: int = 1) -> str:
    """ "71.3 (69.8 to 72.8)": mean and interval for a re-run, times ``scale``; the mean alone for a single training."""
    found = rerun_interval(values)
    mean = f"{scale * found.estimate:.{digits}f}"
    return mean if found.n == 1 else f"{mean} ({scale * found.low:.{digits}f} to {scale * found.high:.{digits}f})"
