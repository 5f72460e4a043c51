"""Estimates with intervals, on scipy; nothing here knows what the numbers mean.

Every function returns an :class:`Interval`.  Exact data (identical values, or one value that is said to be
``exact``) give an interval that is a point; one value that is not exact gives an unbounded interval, never a
pretended one.  Randomised methods take a seed and are deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; ``n`` independent values stand behind it."""

    estimate: float
    low: float
    high: float
    n: int


def _t(level: float, df: float) -> float:
    """The two-sided quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(df, 0.5 + level / 2))


def _variance(values: Sequence[float]) -> float:
    centre = fmean(values)
    return math.fsum((v - centre) ** 2 for v in values) / (len(values) - 1)


def _same(values: Sequence[float]) -> bool:
    """Identical, but for the rounding of a subtraction."""
    return max(values) - min(values) <= 1e-12 * max(abs(v) for v in values)


def mean(values: Sequence[float], level: float = LEVEL, exact: bool = False) -> Interval:
    """The mean with its t interval.  ``exact``: a single value is the truth, not a sample of one."""
    n = len(values)
    if n == 0:
        raise ValueError("the mean of no values")
    if n == 1 and not exact:
        return Interval(values[0], -math.inf, math.inf, n)
    if _same(values):
        return Interval(values[0], values[0], values[0], n)
    centre, half = fmean(values), _t(level, n - 1) * math.sqrt(_variance(values) / n)
    return Interval(centre, centre - half, centre + half, n)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], level: float = LEVEL, exact: bool = False) -> Interval:
    """Mean of ``a - b`` over the seeds that both have."""
    return mean([a[s] - b[s] for s in sorted(a.keys() & b.keys())], level, exact)


def welch_difference(a: Sequence[float], b: Sequence[float], level: float = LEVEL, exact: bool = False) -> Interval:
    """Difference of two independent means, variances unequal (Welch 1947, Biometrika 34)."""
    estimate = fmean(a) - fmean(b)
    n = min(len(a), len(b))
    if n == 1 and not exact:
        return Interval(estimate, -math.inf, math.inf, n)
    parts = [(_variance(v) / len(v) if len(v) > 1 else 0.0, len(v) - 1) for v in (a, b)]
    total = parts[0][0] + parts[1][0]
    if total == 0:
        return Interval(estimate, estimate, estimate, n)
    df = total**2 / sum(p**2 / d for p, d in parts if p > 0)
    half = _t(level, df) * math.sqrt(total)
    return Interval(estimate, estimate - half, estimate + half, n)


def ratio_of_means(a: Mapping[int, float], b: Mapping[int, float], level: float = LEVEL, exact: bool = False) -> Interval:
    """mean(a) / mean(b), paired by seed, with Fieller's interval (Fieller 1954, J. R. Statist. Soc. B 16).

    Fieller's rather than the logarithm's or the delta method's: it is right for three seeds, and it also takes
    differences that may be negative (a share of a gap).  Where the denominator cannot be told from 0 the interval
    is unbounded.
    """
    seeds = sorted(a.keys() & b.keys())
    x, y = [a[s] for s in seeds], [b[s] for s in seeds]
    n = len(seeds)
    top, bottom = fmean(x), fmean(y)
    if bottom == 0:
        return Interval(math.nan, -math.inf, math.inf, n)
    ratio = top / bottom
    if n == 1 and not exact:
        return Interval(ratio, -math.inf, math.inf, n)
    if _same(x) and _same(y):
        return Interval(ratio, ratio, ratio, n)
    k = _t(level, n - 1) ** 2 / n
    s_xx, s_yy = _variance(x), _variance(y)
    s_xy = math.fsum((p - top) * (q - bottom) for p, q in zip(x, y, strict=True)) / (n - 1)
    # the ratios r for which the mean of x - r y is not significantly different from 0
    lead, half, rest = bottom**2 - k * s_yy, top * bottom - k * s_xy, top**2 - k * s_xx
    if lead <= 0:
        return Interval(ratio, -math.inf, math.inf, n)
    root = math.sqrt(max(0.0, half**2 - lead * rest))
    return Interval(ratio, (half - root) / lead, (half + root) / lead, n)


def equivalence(a: Mapping[int, float], b: Mapping[int, float], alpha: float = 0.05, exact: bool = False) -> Interval:
    """The interval of two one-sided tests (Schuirmann 1987): a and b are equivalent at ``alpha`` if it lies within
    the margins.  Paired by seed where both have the same seeds, else Welch's; its level is ``1 - 2 alpha``.
    """
    if a.keys() == b.keys():
        return paired_difference(a, b, 1 - 2 * alpha, exact)
    return welch_difference(list(a.values()), list(b.values()), 1 - 2 * alpha, exact)


def slope(x: Sequence[float], y: Mapping[int, Sequence[float]], level: float = LEVEL, exact: bool = False) -> Interval:
    """Least-squares slope of y on x: one slope per seed, and the interval of their mean over seeds.

    ``y``: per seed one value for each x.  The spread between seeds is the noise; curvature is not counted as noise.
    """
    centre = fmean(x)
    spread = math.fsum((v - centre) ** 2 for v in x)
    if spread == 0:
        raise ValueError("a slope needs two different x")
    slopes = [math.fsum((v - centre) * w for v, w in zip(x, one, strict=True)) / spread for one in y.values()]
    return mean(slopes, level, exact)


def spearman(a: Sequence[float], b: Sequence[float], level: float = LEVEL, resamples: int = 2000, seed: int = 0) -> Interval:
    """Spearman's rank correlation with a percentile bootstrap interval over the pairs.

    Constant data have no rank correlation: the estimate is NaN, the interval [-1, 1].
    """
    import numpy as np

    n = len(a)
    x, y = np.asarray(a, float), np.asarray(b, float)
    if n < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Interval(math.nan, -1.0, 1.0, n)
    estimate = float(_rank_correlation(x[None], y[None])[0])
    draws = np.random.default_rng(seed).integers(0, n, (resamples, n))
    values = _rank_correlation(x[draws], y[draws])
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), n)


def _rank_correlation(x, y):  # type: ignore[no-untyped-def]  # (rows, n) arrays; numpy is not imported at the top
    import numpy as np
    from scipy.stats import rankdata

    rx, ry = rankdata(x, axis=1), rankdata(y, axis=1)
    rx, ry = rx - rx.mean(1, keepdims=True), ry - ry.mean(1, keepdims=True)
    norm = np.sqrt((rx**2).sum(1) * (ry**2).sum(1))
    with np.errstate(invalid="ignore", divide="ignore"):  # a resample of one repeated pair has no correlation
        return np.where(norm > 0, (rx * ry).sum(1) / norm, np.nan)


def permutation(groups: Sequence[Sequence[float]], resamples: int = 9999, seed: int = 0) -> float:
    """p value of "the groups have one distribution": the variance between group means under random relabelling.

    With the observed arrangement counted once (Phipson and Smyth 2010), so that p is never 0.
    """
    import numpy as np

    sizes = [len(g) for g in groups]
    if len(groups) < 2 or min(sizes) == 0:
        raise ValueError("a permutation test needs two groups that are not empty")
    values = np.concatenate([np.asarray(g, float) for g in groups])
    edges = np.cumsum([0, *sizes[:-1]])
    rng = np.random.default_rng(seed)
    shuffled = rng.permuted(np.tile(values, (resamples, 1)), axis=1)
    weights = np.asarray(sizes, float)

    def between(rows):  # type: ignore[no-untyped-def]
        means = np.add.reduceat(rows, edges, axis=1) / weights
        return (weights * (means - values.mean()) ** 2).sum(1)

    seen = float(between(values[None])[0])
    tolerance = 1e-9 * max(abs(seen), 1e-300)
    return float((np.count_nonzero(between(shuffled) >= seen - tolerance) + 1) / (resamples + 1))


def proportion(k: int, n: int, level: float = LEVEL, exact: bool = False) -> Interval:
    """The share k / n with Wilson's interval (Wilson 1927); ``exact``: all there is was counted, not a sample."""
    from scipy.special import ndtri

    if not 0 <= k <= n or n == 0:
        raise ValueError(f"a share of {k} in {n}")
    p = k / n
    if exact:
        return Interval(p, p, p, n)
    z = float(ndtri(0.5 + level / 2))
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return Interval(p, max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale), n)
