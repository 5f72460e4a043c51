"""What a benchmark found: printed, and kept as a line of ``data/benchmarks/<machine>.jsonl``.

Only ratios of what was timed in one run, in turns, are compared between machines or days.
"""

from __future__ import annotations

import datetime
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from cnnstudy.report import evidence
from cnnstudy.runtime import ROOT, commit, cores, machine_id


def in_turns(cases: Mapping[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each case; the order is turned round with every run."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for run in range(runs):
        for name in list(cases)[:: 1 if run % 2 == 0 else -1]:
            before = time.perf_counter()
            cases[name]()
            seconds[name].append(time.perf_counter() - before)
    return {name: statistics.median(those) for name, those in seconds.items()}


def keep(benchmark: str, ratios: Mapping[str, float], **about: Any) -> None:
    """Print ratios ("this is r times as fast as that", by name) and append them with where and when they were measured."""
    sha, dirty = commit()
    line = {
        "benchmark": benchmark, "machine": machine_id(), "cores": cores(), "load": round(os.getloadavg()[0], 1),
        "commit": sha, "dirty": dirty, "date": datetime.date.today().isoformat(),
        "ratios": {n: round(r, 2) for n, r in ratios.items()}, **about,
    }  # fmt: skip
    for name, ratio in ratios.items():
        print(f"{benchmark}: {name}: {ratio:.2f} times", flush=True)
    path = ROOT / "data" / "benchmarks" / f"{machine_id()}.jsonl"
    path.parent.mkdir(exist_ok=True)
    evidence.write_line(path, line)
    print(json.dumps(line))
