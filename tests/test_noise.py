"""The noise floor: on a clock that is made up, drifts and stumbles, so that no test hangs on how busy the machine is."""

from __future__ import annotations

import math
import random

import pytest

from cnnstudy import noise
from cnnstudy.config import Refused


class Clock:
    """A bad clock: a case says what it takes (ms); added are a slow drift, a jitter of 3 %, and now and then a long pause."""

    def __init__(self, seed: int, jitter: float = 0.03, drift: float = 0.15, spikes: float = 0.04) -> None:
        self.rng, self.now = random.Random(seed), 0.0
        self.jitter, self.drift, self.spikes = jitter, drift, spikes
        self.calls: list[float] = []

    def __call__(self, case: noise.Case) -> float:
        work = float(case())  # type: ignore[arg-type]
        slow = 1 + self.drift * math.sin(self.now / 5000) + abs(self.rng.gauss(0, self.jitter))
        took = work * slow + (self.rng.expovariate(1 / work) if self.rng.random() < self.spikes else 0)
        self.now += took
        self.calls.append(work)
        return took


def copy(ms: float, seed: int, luck: float = 0.002) -> noise.Case:
    """A network that takes ``ms``, give or take the luck of its place in memory."""
    took = ms * (1 + random.Random(seed).gauss(0, luck))
    return lambda: took


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise.gc, "collect", lambda: 0)  # 0.2 s each time, and nothing is timed in earnest here


def measured(seed: int, **given: float) -> tuple[float, Clock]:
    clock, places = Clock(seed, **given), iter(range(100 * seed, 100 * seed + 100))
    return noise.floor(lambda: copy(10, next(places)), runs=30, clock=clock)["floor"], clock


def test_the_order_is_abba_and_its_mirror() -> None:
    assert noise.abba(4) == [0, 1, 1, 0, 0, 1, 1, 0]
    assert noise.abba(3, turn=1) == [1, 0, 0, 1, 1, 0]
    a, b = noise.alternate(lambda: 1.0, lambda: 2.0, 5, lambda case: float(case()))  # type: ignore[arg-type]
    assert (a, b) == ([1.0] * 5, [2.0] * 5)


def test_a_steady_drift_falls_on_both_alike() -> None:
    """The clock slows by 1 % at every reading; in ABBA order nothing of it is left, in the order ABAB half a percent would be."""
    ticks = iter(range(10_000))

    def slowing(case: noise.Case) -> float:
        return 10 + 0.1 * next(ticks)

    a, b = noise.alternate(lambda: 0, lambda: 0, 40, slowing)
    assert sum(a) == pytest.approx(sum(b), abs=1e-6)


def test_the_bound_is_the_larger_of_two() -> None:
    calm = [1.001, 1 / 1.001] * 9
    assert noise.bound([*calm, 1.03]) == pytest.approx(0.03)  # one outlier: the largest of nineteen
    assert noise.bound([1 / r for r in calm] + [1 / 1.03]) == pytest.approx(0.03)  # either may be the faster
    assert noise.bound([*calm, 1.001]) == pytest.approx(2.861 * 0.001, rel=1e-3)  # Student's t, 19 degrees of freedom, 99 %
    many = [*calm, *calm, 1.02, 1.03, 1.001]
    assert noise.bound(many) == pytest.approx(0.02)  # of 39 the second largest
    with pytest.raises(Refused, match="needs at least 19 comparisons, got 18"):
        noise.bound(calm)


@pytest.mark.parametrize(("tails", "low", "high"), [(1.0, 0.003, 0.02), (5.0, 0.01, 0.06)])
def test_how_often_a_further_comparison_is_above_the_bound(tails: float, low: float, high: float) -> None:
    """Normal: one time in a hundred; with heavy tails less than one time in twenty."""
    rng = random.Random(1)

    def draw() -> float:
        return math.exp(rng.gauss(0, 0.01) * (tails if rng.random() < 0.05 else 1))

    above = sum((lambda r: max(r, 1 / r) - 1 > noise.bound([draw() for _ in range(19)]))(draw()) for _ in range(3000))
    assert low < above / 3000 < high


def test_a_planted_5_percent_is_found_and_half_a_percent_is_not_claimed() -> None:
    found = claimed = wrong = 0
    for seed in range(60):
        floor, clock = measured(seed)
        plain, slower, hardly = copy(10, seed), copy(10.5, seed + 1000), copy(10.05, seed + 2000)
        found += noise.faster(*noise.alternate(plain, slower, 30, clock), floor) is True
        verdict = noise.faster(*noise.alternate(plain, hardly, 30, clock), floor)
        claimed += verdict is True
        wrong += verdict is False
    assert found >= 57
    assert claimed <= 2 and wrong == 0


def test_without_the_floor_half_a_percent_would_be_claimed() -> None:
    """The test above can fail: medians alone always name a winner."""
    claims = 0
    for seed in range(40):
        claims += noise.faster(*noise.alternate(copy(10, seed), copy(10.05, seed + 1000), 30, Clock(seed)), floor=0) is True
    assert claims > 20


def test_a_noisier_machine_has_a_higher_floor_and_finds_less() -> None:
    calm = [measured(seed, jitter=0.01)[0] for seed in range(10)]
    busy = [measured(seed, jitter=0.15, spikes=0.3)[0] for seed in range(10)]
    assert max(calm) < min(busy)
    assert all(noise.faster([10.0], [10.5], f) is None for f in busy)
    assert all(noise.faster([10.0], [10.5], f) is True and noise.faster([10.5], [10.0], f) is False for f in calm)


def test_what_a_trial_records() -> None:
    clock = Clock(0)
    made: list[int] = []

    def make() -> noise.Case:
        made.append(len(made))
        return copy(10, len(made))

    metrics = noise.floor(make, runs=4, comparisons=20, clock=clock)
    assert len(made) == noise.COPIES and len(clock.calls) == metrics["samples"] == 2 * 4 * 20
    assert len(metrics["ratios"]) == 20 and metrics["floor"] == pytest.approx(noise.bound(metrics["ratios"]), abs=1e-5)
    assert metrics["spread"] > 0 and 9 < metrics["median_ms"] < 14
    assert len(set(clock.calls)) == noise.COPIES  # every copy takes part


def test_copies_are_built_from_one_seed() -> None:
    import torch

    drawn: list[float] = []

    def make() -> noise.Case:
        drawn.append(float(torch.rand(1)))
        return lambda: 1.0

    noise.floor(make, runs=1, seed=7, clock=lambda case: 1.0)
    assert len(set(drawn)) == 1


@pytest.mark.parametrize(
    ("change", "message"), [({"runs": 0}, "runs >= 1"), ({"warmup": -1}, "warmup >= 0"), ({"comparisons": 18}, "at least 19")]
)
def test_refusals(change: dict[str, int], message: str) -> None:
    built = []
    with pytest.raises(Refused, match=message):
        noise.floor(lambda: built.append(1) or (lambda: 1.0), **({"runs": 2} | change))  # type: ignore[arg-type]
    assert not built  # refused before anything is built or timed


def test_the_real_clock_is_read() -> None:
    """Nothing is said about how large the floor is: that depends on who else is at work."""
    metrics = noise.floor(lambda: lambda: sum(range(20_000)), runs=2, threads=1)
    assert metrics["floor"] >= 0 and metrics["median_ms"] > 0 and metrics["samples"] == 76
