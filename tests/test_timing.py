from __future__ import annotations

import time

import pytest

from cnnstudy.config import Refused
from cnnstudy.timing import benchmark, summary


def test_slower_is_slower_and_counts_are_right() -> None:
    calls = {"fast": 0, "slow": 0}

    def case(name: str, seconds: float) -> object:
        def run() -> None:
            calls[name] += 1
            time.sleep(seconds)

        return run

    found = benchmark({"fast": case("fast", 0.001), "slow": case("slow", 0.01)}, runs=5, warmup=2)  # type: ignore[dict-item]
    assert calls == {"fast": 7, "slow": 7}
    assert min(found["slow"]) >= 10 > summary(found["fast"])["median_ms"]  # type: ignore[operator]


@pytest.mark.parametrize("change", [{"runs": 0}, {"warmup": -1}, {"cases": {}}])
def test_refusals(change: dict[str, object]) -> None:
    with pytest.raises(Refused, match="needs a case"):
        benchmark(**({"cases": {"a": lambda: None}} | change))  # type: ignore[arg-type]


def test_summary() -> None:
    assert summary([1.0, 2.0, 3.0, 4.0, 5.0]) == {
        "median_ms": 3.0, "q25_ms": 2.0, "q75_ms": 4.0, "runs": 5, "samples_ms": [1.0, 2.0, 3.0, 4.0, 5.0],
    }  # fmt: skip
