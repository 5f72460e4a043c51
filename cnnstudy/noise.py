"""A machine against itself: how far apart two timings of one and the same network lie by chance alone.

Copies of one network are timed against each other exactly as different networks are: warm, in turn, medians of as many
runs.  What they differ by is chance: clocks, neighbours, where the weights happen to lie in memory.  A difference
between two networks that is no larger says nothing about the networks.
"""

from __future__ import annotations

import gc
import itertools
import math
import random
from collections.abc import Callable, Sequence
from statistics import median, stdev
from typing import Any

import torch

from cnnstudy.config import Refused
from cnnstudy.runtime import threads as torch_threads
from cnnstudy.timing import _once  # one way to read the clock; renaming it would change the digest in every timed record

Case = Callable[[], object]
Clock = Callable[[Case], float]
COMPARISONS = 19  # the fewest comparisons of which the largest is a 95 % bound
COPIES = 4  # twelve ordered pairs, so that one lucky place in memory does not decide


def abba(runs: int, turn: int = 0) -> list[int]:
    """The order in which two cases take turns, ``runs`` times each: 0 1 1 0 0 1 1 0 ..., or 1 0 0 1 ... for an odd ``turn``.

    A steady drift is then as much ahead for one case as it is behind, and falls on both alike.
    """
    pair = (0, 1) if turn % 2 == 0 else (1, 0)
    return [one for i in range(runs) for one in (pair if i % 2 == 0 else pair[::-1])]


def alternate(a: Case, b: Case, runs: int, clock: Clock, turn: int = 0) -> tuple[list[float], list[float]]:
    """Time two cases in ABBA order, ``runs`` times each.  Returns milliseconds of a and of b."""
    samples: tuple[list[float], list[float]] = ([], [])
    for one in abba(runs, turn):
        samples[one].append(clock((a, b)[one]))
    return samples


def bound(ratios: Sequence[float]) -> float:
    """What the ratio r of two timings of one thing stays within: ``max(r, 1/r) - 1 <= bound``.  The larger of two bounds for one
    more comparison like the n given ones:

    - 99 %, if log r is normal about 0: ``exp(t s) - 1``, s the root mean square of log r, t Student's quantile for n degrees of freedom;
    - 95 %, whatever the distribution: the k-th smallest deviation, k = ceil(0.95 (n + 1)), which one more exchangeable value exceeds
      with probability 1 - k / (n + 1) (Wilks 1941, Ann. Math. Statist. 12).  Of 19 it is the largest.

    The first is there because a page makes many comparisons, the second because a busy machine is not normal.  Raises Refused for fewer
    than 19 ratios.
    """
    from scipy.special import stdtrit

    n = len(ratios)
    if n < COMPARISONS:
        raise Refused(f"a noise floor needs at least {COMPARISONS} comparisons, got {n}")
    normal = float(stdtrit(n, 0.995)) * math.sqrt(math.fsum(math.log(r) ** 2 for r in ratios) / n)
    ordered = sorted(abs(math.log(r)) for r in ratios)
    return math.expm1(max(normal, ordered[math.ceil(0.95 * (n + 1) - 1e-9) - 1]))


def faster(a: Sequence[float], b: Sequence[float], floor: float) -> bool | None:
    """Is a faster than b?  True or False where one median is more than ``1 + floor`` times the other, else None: it cannot be told."""
    ratio = median(b) / median(a)
    return None if max(ratio, 1 / ratio) <= 1 + floor else ratio > 1


def floor(
    make: Callable[[], Case], runs: int, comparisons: int = COMPARISONS, threads: int | None = None, cuda: bool = False, seed: int = 0,
    warmup: int = 1, clock: Clock | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The noise floor of timing what ``make()`` builds: metrics of one trial.

    ``make`` is called for each of four copies, with the same seed, so that they differ in nothing but their place in memory.
    ``comparisons`` times two of them are timed in ABBA order, ``runs`` times each, and the ratio of their medians is taken:
    that is the comparison which a page makes, with the truth known to be 1.  ``threads``: of torch, None or 0 leaves them as
    they are; ``cuda``: read the CUDA device's clock; ``clock``: another clock, milliseconds of one call.

    Returns ``floor`` (relative: 0.02 is 2 %; see :func:`bound`), ``spread`` (standard deviation of the ratios), ``median_ms``,
    ``samples`` (timed runs in all) and the ``ratios``.  Raises Refused for no run or for too few comparisons.
    """
    if runs < 1 or warmup < 0:
        raise Refused(f"a noise floor needs runs >= 1 and warmup >= 0; got runs={runs}, warmup={warmup}")
    bound([1.0] * comparisons)  # refuse too few before an hour of timing, not after it
    read: Clock = clock or (lambda case: _once(case, cuda))
    copies = []
    for _ in range(COPIES):
        torch.manual_seed(seed)
        copies.append(make())
    pairs = list(itertools.permutations(copies, 2))
    random.Random(seed).shuffle(pairs)
    ratios: list[float] = []
    times: list[float] = []
    flushed = torch.set_flush_denormal(True)  # as where networks are timed: numbers too small must not set the time
    collecting = gc.isenabled()
    try:
        with torch_threads(threads):
            for case in copies * warmup:
                case()
            gc.collect()
            gc.disable()
            for turn, (a, b) in zip(range(comparisons), itertools.cycle(pairs)):  # noqa: B905  # the pairs go round
                first, second = alternate(a, b, runs, read, turn)
                ratios.append(median(first) / median(second))
                times += first + second
    finally:
        if collecting:
            gc.enable()
        if flushed:
            torch.set_flush_denormal(False)
    return {
        "floor": round(bound(ratios), 6),
        "spread": round(stdev(ratios), 6),
        "median_ms": round(median(times), 3),
        "samples": len(times),
        "ratios": [round(r, 6) for r in ratios],
    }
