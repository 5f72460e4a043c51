"""Wall-clock timing that can be trusted: warm, synchronised, interleaved.

The cases of one call are timed in turn, run by run, in an order that changes with every round, so that a drift
of the machine (clock, neighbours) touches all of them alike.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from cnnstudy.config import Refused


def _once(case: Callable[[], object], cuda: bool) -> float:
    """Milliseconds of one call; on CUDA between two events, so that launch time is not mistaken for work."""
    if cuda:
        first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        first.record()
        case()
        last.record()
        torch.cuda.synchronize()
        return float(first.elapsed_time(last))
    before = time.perf_counter()
    case()
    return (time.perf_counter() - before) * 1e3


def benchmark(
    cases: Mapping[str, Callable[[], object]], runs: int = 30, warmup: int = 3, seed: int = 0, cuda: bool = False
) -> dict[str, list[float]]:
    """Time each case ``runs`` times, interleaved.  Returns milliseconds per call, in order of measuring.

    ``cuda``: the cases work on a CUDA device, whose clock is read instead of the processor's.  Garbage collection is off
    while the clock runs.  Raises Refused for fewer than one run or no case.
    """
    if runs < 1 or warmup < 0 or not cases:
        raise Refused(f"benchmark needs a case, runs >= 1 and warmup >= 0; got {len(cases)} cases, runs={runs}, warmup={warmup}")
    for case in cases.values():
        for _ in range(warmup):
            case()
    samples: dict[str, list[float]] = {name: [] for name in cases}
    order, shuffle = list(cases), random.Random(seed)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for _ in range(runs):
            shuffle.shuffle(order)
            for name in order:
                samples[name].append(_once(cases[name], cuda))
    finally:
        if collecting:
            gc.enable()
    return samples


def summary(samples: Sequence[float]) -> dict[str, float | int | list[float]]:
    """``median_ms, q25_ms, q75_ms, runs`` and the samples themselves, rounded to a microsecond."""
    values = torch.tensor(samples, dtype=torch.float64)
    quartiles = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    return {
        "median_ms": round(quartiles[1], 3),
        "q25_ms": round(quartiles[0], 3),
        "q75_ms": round(quartiles[2], 3),
        "runs": len(samples),
        "samples_ms": [round(s, 3) for s in samples],
    }
