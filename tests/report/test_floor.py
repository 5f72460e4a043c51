"""The noise floor in the rules: a difference that the machine makes by itself is undecided, and none is judged without a floor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from cnnstudy.config import Refused, key
from cnnstudy.report import claims, conditions
from cnnstudy.report.claims import Experiment
from cnnstudy.report.rules import RULES, Finding, Row
from cnnstudy.report.verdicts import Verdict, judge_question
from cnnstudy.report.wording import timed

A, B = {"name": "a"}, {"name": "b"}


def rows(a: Any, b: Any, floor: float, metric: str = "latency_ms") -> list[Row]:
    return [Row({"name": name}, 0, {metric: value}, "cpu", "quick", floor=floor) for name, value in (("a", a), ("b", b))]


def timed_condition(**fields: Any) -> dict[str, Any]:
    return {"metric": "latency_ms", "kind": "hardware", "min_seeds": 1, **fields}


def samples(middle: float) -> list[float]:
    """Thirty-one timed runs, half of them within half a percent of the middle."""
    return [middle * (1 + (i - 15) / 1500) for i in range(31)]


ORDER = {"groups": [B, A], "direction": "increasing", "margin": 0}
# each with its numbers: a difference of about 3 %, and one of 20 %
CASES = [
    ("ratio_between", timed_condition(a=A, b=B, low=1.0), (103.0, 100.0), (120.0, 100.0)),
    ("ratio_between", timed_condition(a=B, b=A, high=1.0, log=True), (103.0, 100.0), (120.0, 100.0)),
    ("ratio_between", timed_condition(a=A, b=B, low=0.97, interval_above=0.9), (97.5, 100.0), (120.0, 100.0)),
    ("ratio_between", timed_condition(a=B, b=A, high=1.03, interval_below=1.2), (100.0, 101.0), (120.0, 100.0)),
    ("difference_above", timed_condition(a=A, b=B, margin=2), (105.0, 100.0), (120.0, 100.0)),
    ("difference_above", timed_condition(a=A, b=B, margin=2, interval_above=-10), (105.0, 100.0), (120.0, 100.0)),
    ("equivalent_within", timed_condition(a=A, b=B, rel_margin=0.06), (103.0, 100.0), (100.0, 100.0)),
    ("ordering", timed_condition(**ORDER), (103.0, 100.0), (120.0, 100.0)),
    ("ordering", timed_condition(**ORDER, iqr=True), (samples(103), samples(100)), (samples(120), samples(100))),
    ("above", timed_condition(at=A, margin=100), (103.0, 1.0), (120.0, 1.0)),
    ("below", timed_condition(at=B, margin=103), (1.0, 100.0), (1.0, 80.0)),
    ("above", timed_condition(at=A, margin=100, interval_above=90), (103.0, 1.0), (120.0, 1.0)),
    ("below", timed_condition(at=B, margin=103, interval_below=120), (1.0, 100.0), (1.0, 80.0)),
    ("within", timed_condition(at=A, value=100, rel_tol=0.06), (103.0, 1.0), (100.0, 1.0)),
    ("within", timed_condition(at=A, low=100, log=True), (103.0, 1.0), (120.0, 1.0)),
]
CASES = [pytest.param(*case, id=f"{case[0]}-{i}") for i, case in enumerate(CASES)]  # type: ignore[misc]


@pytest.mark.parametrize(("name", "condition", "near", "far"), CASES)
def test_a_difference_below_the_floor_is_undecided_and_one_above_it_stands(
    name: str, condition: dict[str, Any], near: tuple[Any, Any], far: tuple[Any, Any]
) -> None:
    def judged(numbers: tuple[Any, Any], floor: float) -> Finding:
        return RULES[name](condition, rows(*numbers, floor))

    without, beneath, beyond = judged(near, 0), judged(near, 0.05), judged(far, 0.05)
    assert (without.state, beneath.state, beyond.state) == ("holds", "unclear", "holds"), (without, beneath, beyond)
    assert beneath.reason.endswith(": it is within this machine's noise floor of 5 %.")
    assert beyond.reason.endswith(" (with this machine's noise floor of 5 %).")
    assert "noise floor" not in without.reason
    assert beneath.low is not None or beneath.high is not None
    for one in (beneath, beyond):
        assert one.reason.count("noise floor") == 1 and "nan" not in one.reason


@pytest.mark.parametrize(("name", "condition", "near", "far"), CASES)
def test_a_higher_floor_never_decides_more(name: str, condition: dict[str, Any], near: tuple[Any, Any], far: tuple[Any, Any]) -> None:
    for numbers in (near, far, near[::-1], far[::-1]):
        states = [RULES[name](condition, rows(*numbers, floor / 100)).state for floor in range(0, 60)]
        decided = [s != "unclear" for s in states]
        assert decided == sorted(decided, reverse=True) and len({s for s in states if s != "unclear"}) <= 1


def test_what_fails_without_a_floor_may_be_undecided_too() -> None:
    assert RULES["ratio_between"](timed_condition(a=A, b=B, low=1.02), rows(101.0, 100.0, 0)).state == "fails"
    assert RULES["ratio_between"](timed_condition(a=A, b=B, low=1.02), rows(101.0, 100.0, 0.03)).state == "unclear"
    assert RULES["ordering"](timed_condition(**ORDER, iqr=True), rows(samples(97), samples(100), 0)).state == "fails"
    assert RULES["ordering"](timed_condition(**ORDER, iqr=True), rows(samples(97), samples(100), 0.05)).state == "unclear"


def test_the_interval_that_is_stored_is_the_widened_one() -> None:
    found = RULES["ratio_between"](timed_condition(a=A, b=B, low=1.0), rows(150.0, 100.0, 0.02))
    assert (found.estimate, found.low, found.high) == (1.5, pytest.approx(1.5 / 1.02), pytest.approx(1.5 * 1.02))
    assert "1.5 (one measurement), at least 1 (with this machine's noise floor of 2 %)" in found.reason


def test_the_largest_floor_of_the_rows_counts_but_only_of_those_that_are_compared() -> None:
    those = [*rows(103.0, 100.0, 0.01), Row({"name": "c"}, 0, {"latency_ms": 1.0}, "cpu", "quick", floor=0.5)]
    assert RULES["ratio_between"](timed_condition(a=A, b=B, low=1.0), those).state == "holds"
    uneven = [rows(103.0, 100.0, 0.01)[0], rows(103.0, 100.0, 0.05)[1]]
    assert RULES["ratio_between"](timed_condition(a=A, b=B, low=1.0), uneven).state == "unclear"


def test_every_machine_has_its_own_floor() -> None:
    those = rows(103.0, 100.0, 0.01) + [Row(r.setup, 0, r.metrics, "busy", "quick", floor=0.05) for r in rows(103.0, 100.0, 0)]
    found = RULES["ratio_between"](timed_condition(a=A, b=B, low=1.0, machines="all"), those)
    assert found.state == "unclear" and "machine busy" in found.reason and "noise floor of 5 %" in found.reason


def test_a_share_of_a_gap_feels_the_floor_as_often_as_its_times_exceed_their_difference() -> None:
    condition = timed_condition(a=A, b=B, base={"name": "base"}, low=0.5)
    base = Row({"name": "base"}, 0, {"latency_ms": 100.0}, "cpu", "quick")
    # a is 0.75 of the way from 100 to 140; (130 + 100) / 30 + (140 + 100) / 40 = 13.7 times the floor
    judged = [RULES["ratio_between"](condition, [base, *rows(130.0, 140.0, floor)]).state for floor in (0, 0.03, 0.04)]
    assert judged == ["holds", "holds", "unclear"]


def test_a_trend_counts_no_step_back_that_is_noise() -> None:
    def judged(values: list[float], floor: float, **more: Any) -> Finding:
        those = [Row({"n": n}, 0, {"latency_ms": v}, "cpu", "quick", floor=floor) for n, v in enumerate(values)]
        return RULES["monotone_in"](timed_condition(over="n", direction="increasing", margin=0, **more), those)

    assert [judged([100, 150, 149, 200], f).state for f in (0, 0.02)] == ["fails", "holds"]
    assert [judged([100, 101, 102, 103], f).state for f in (0, 0.05)] == ["holds", "unclear"]
    assert [judged([100, 110, 111, 130], f, strict=True).state for f in (0, 0.02)] == ["holds", "unclear"]
    assert judged([100, 150, 120, 200], 0.02).state == "fails"
    slope = judged([100.0, 100.0, 104.0], 0.02)  # between two times the floor of their difference, over their distance
    assert slope.low == pytest.approx(2 - 0.02 * (100**2 / 2 + 104**2 / 2) ** 0.5 / 2)


@pytest.mark.parametrize("metric", ["latency_ms", "samples_ms", "cost_per_point", "gain_per_cost", "train_seconds", "images_per_second"])
def test_times_and_what_is_made_of_them(metric: str) -> None:
    assert timed(metric)


@pytest.mark.parametrize("metric", ["macs", "params", "memory_mb", "val_acc", "share.fc_share", "top1", "layers"])
def test_what_no_clock_touches(metric: str) -> None:
    assert not timed(metric)


# the ledger

EXPERIMENTS = {
    "speed": Experiment("speed", "hardware", "times", exclusive=True, floor="noise_floor"),
    "noise_floor": Experiment("noise_floor", "hardware", "floor"),
}


def checked(**fields: Any) -> dict[str, Any]:
    return conditions.check({"experiment": "speed", "metric": "latency_ms", **fields}, EXPERIMENTS)


def test_a_condition_asks_for_the_floor_of_its_experiment_if_it_is_about_a_time() -> None:
    assert checked(rule="below", margin=5)["floor"] == "noise_floor"
    assert "floor" not in checked(rule="below", margin=5, metric="memory_mb")
    assert "floor" not in checked(rule="correlation", over="macs", low=0.9)
    with pytest.raises(Refused, match="unknown field of below 'floor'"):
        checked(rule="below", margin=5, floor="other")


def test_what_is_timed_alone_decides_nothing_without_a_floor() -> None:
    with pytest.raises(Refused, match="^speed is timed alone and names no noise floor; give it floor: <"):
        conditions.check(
            {"rule": "below", "experiment": "speed", "metric": "latency_ms", "margin": 5},
            {"speed": Experiment("speed", "hardware", "times", exclusive=True)},
        )
    alone = EXPERIMENTS | {"noise_floor": Experiment("noise_floor", "hardware", "floor", exclusive=True)}
    of_floor = {"rule": "below", "experiment": "noise_floor", "metric": "floor", "margin": 0.1}
    assert "floor" not in conditions.check(of_floor, alone)  # a floor has none itself


def test_a_rule_that_cannot_take_the_floor_into_account_is_refused() -> None:
    with pytest.raises(Refused, match="share_of cannot take the noise floor of speed into account; rules that can: within, above,"):
        checked(rule="share_of", meets={"high": 5}, low=0.5)
    with pytest.raises(Refused, match="saturation cannot take"):
        checked(rule="monotone_in", over="n", direction="increasing", margin=0, saturation=0.2)


LEDGER = """\
question: q07
slug: slug
title: Title
part: Part
profiles: {quick: {}, standard: {}, full: {}}
experiments:
  noise_floor: {kind: hardware, exclusive: true, shows: the machine against itself}
  speed: {kind: hardware, exclusive: true, floor: noise_floor, shows: times, differences: {gain: {larger: ms, difference: extra_ms}}}
  cost: {kind: exact, shows: counts}
claims:
  - id: q07.faster
    statement: A is faster than B.
    kind: ordering
    evidence: [hardware]
    test: Confirmed if so.
    conditions:
      faster: {rule: ratio_between, experiment: speed, metric: ms, a: {name: b}, b: {name: a}, low: 1.0, each: batch, machines: all}
    confirmed: faster
    refuted: not faster
  - id: q07.gain
    statement: A gains more than 3.
    kind: value
    evidence: [hardware]
    test: Confirmed if so.
    conditions:
      more: {rule: above, experiment: speed, metric: gain, at: {name: a, batch: 1}, margin: 3}
    confirmed: more
    refuted: not more
citations: []
"""


def parse(old: str = "", new: str = "") -> claims.Ledger:
    assert old in LEDGER
    return claims.parse(LEDGER.replace(old, new, 1) if old else LEDGER, Path("q07.yaml"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("floor: noise_floor", "floor: nose_floor", r"q07.yaml:8: experiment speed: unknown experiment as floor 'nose_floor'"),
        ("floor: noise_floor", "floor: cost", "floor is 'cost'; expected, for an experiment of kind hardware, another of that kind"),
        ("floor: noise_floor", "floor: speed", "floor is 'speed'; expected"),
        ("cost: {kind: exact,", "cost: {kind: exact, floor: noise_floor,", "experiment cost: floor is 'noise_floor'; expected, for an exp"),
        (" floor: noise_floor,", "", "differences say how a noise floor grows; this experiment names no floor"),
        (
            "floor: noise_floor, shows: times, differences: {gain: {larger: ms, difference: extra_ms}}", "shows: times",
            "q07.yaml:17: q07.faster: condition faster: speed is timed alone and names no noise floor",
        ),
        ("{larger: ms, difference: extra_ms}", "{larger: ms}", "differences of gain lacks its 'difference'"),
        ("{larger: ms, difference: extra_ms}", "ms", "differences of gain is 'ms'; expected a mapping"),
    ],
)  # fmt: skip
def test_ledger_refusals(old: str, new: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        parse(old, new)


def test_the_digest_of_a_rule_does_not_hang_on_the_floor() -> None:
    """The floor belongs to the machine and the experiment; conditions, margins and expressions are what they were."""
    bare = parse(", differences: {gain: {larger: ms, difference: extra_ms}}", "").claims
    assert [c.written for c in bare] == [c.written for c in parse().claims]


# end to end: timed records with and without the floor of their machine


class Plan:
    def __init__(self, name: str, setups: list[dict[str, Any]]) -> None:
        self.name, self.setups = name, setups

    def entries(self, profile: str) -> list[dict[str, Any]]:
        wanted = [s for s in self.setups if profile != "quick" or s["runs"] < 10]
        return [{"setup": s, "seed": 0, "key": key(self.name, s, 0)} for s in wanted if profile == "quick" or s["runs"] >= 10]

    def records(self, metrics: Mapping[str, Any], **only: Any) -> list[dict[str, Any]]:
        those = [s for s in self.setups if all(s[n] == v for n, v in only.items())]
        return [{"key": key(self.name, s, 0), "setup": s, "seed": 0, "metrics": dict(metrics)} for s in those]


SPEED = Plan("speed", [{"name": n, "batch": b, "runs": r, "threads": 1} for n in "ab" for b in (1, 32) for r in (3, 30)])
FLOOR = Plan("noise_floor", [
    {"model": {"name": n}, "batch": b, "runs": r, "threads": 1, "comparisons": 19}
    for n in ("small", "large") for b, r in ((1, 3), (32, 3), (1, 30), (32, 10))
])  # fmt: skip
PLAN = {"speed": SPEED, "noise_floor": FLOOR}


def speed(b: float, runs: int = 30) -> list[dict[str, Any]]:
    """Times of a (100 ms) and b; a's gain of 3.2 hangs on a difference of 25 ms."""
    gain = {"gain": 3.2, "extra_ms": 25.0}
    return SPEED.records({"ms": 100.0, **gain}, name="a", runs=runs) + SPEED.records({"ms": b, **gain}, name="b", runs=runs)


def floors(value: float, **only: Any) -> list[dict[str, Any]]:
    return FLOOR.records({"floor": value}, **only)


def verdict(number: int = 0, **machines: list[dict[str, Any]]) -> Verdict:
    return judge_question(parse(), PLAN, machines, list(machines), {})[number]


def test_the_same_difference_is_decided_on_a_quiet_machine_and_undecided_on_a_noisy_one() -> None:
    calm, noisy = (verdict(cpu=speed(103.0) + floors(value)) for value in (0.01, 0.05))
    assert calm.outcome == "confirmed" and "1.03 (one measurement), at least 1 (with this machine's noise floor of 1 %)" in calm.reason
    assert noisy.outcome == "undecided" and noisy.reason.endswith("it is within this machine's noise floor of 5 %.")
    assert verdict(cpu=speed(120.0) + floors(0.05)).outcome == "confirmed"
    assert verdict(cpu=speed(80.0) + floors(0.05)).outcome == "refuted"
    assert verdict(cpu=speed(97.0) + floors(0.05)).outcome == "undecided"


def test_without_its_floor_a_machine_is_not_judged() -> None:
    """A verdict must not silently be as strong as before."""
    bare = verdict(cpu=speed(200.0))
    assert bare.outcome == "untested"
    assert bare.reason == "Missing: no noise floor is recorded on cpu for batch 1, threads 1, profile standard."
    part = verdict(cpu=speed(200.0) + floors(0.01, batch=1))
    assert part.outcome == "untested" and "for batch 32" in part.reason
    one_network = [r for r in floors(0.01) if r["setup"]["model"]["name"] == "small"]
    assert verdict(cpu=speed(200.0) + one_network).outcome == "untested"
    failed = [r | {"metrics": {}, "failed": "no"} for r in floors(0.01)]
    assert verdict(cpu=speed(200.0) + failed).outcome == "untested"


def test_the_floor_of_another_machine_or_profile_does_not_count() -> None:
    assert verdict(cpu=speed(200.0), gpu=floors(0.01)).outcome == "untested"
    both = verdict(cpu=speed(200.0), gpu=speed(200.0) + floors(0.01))
    assert both.outcome == "confirmed" and both.machine == "gpu"
    quick = verdict(cpu=speed(200.0) + floors(0.01, runs=3))
    assert quick.outcome == "untested"
    # standard lacks its floor: the quick records, which have one, decide
    fallen_back = verdict(cpu=speed(200.0) + speed(200.0, runs=3) + floors(0.01, runs=3))
    assert (fallen_back.outcome, fallen_back.profile) == ("confirmed", "quick")


def test_the_largest_floor_of_the_same_conditions_counts() -> None:
    calm = floors(0.001)
    large = [r | {"metrics": {"floor": 0.05}} for r in calm if r["setup"]["model"]["name"] == "large" and r["setup"]["batch"] == 32]
    found = verdict(cpu=speed(103.0) + calm + large).findings["faster"]
    assert found.state == "unclear" and "batch 32" in found.reason  # at batch 1 the floor is 0.1 %
    assert "noise floor of 5 %" in found.reason


def test_a_floor_of_more_runs_than_were_timed_is_too_low_to_count() -> None:
    few = {"speed": SPEED, "noise_floor": Plan("noise_floor", [s | {"runs": 31} for s in FLOOR.setups])}
    records = {"cpu": speed(200.0) + few["noise_floor"].records({"floor": 0.01})}
    assert judge_question(parse(), few, records, ["cpu"], {})[0].outcome == "untested"


def test_what_hangs_on_a_difference_of_times_feels_the_floor_more_often() -> None:
    """(100 + 75) / 25 = 7 times: a floor of 0.5 % moves a gain of 3.2 by 3.5 %, one of 1 % by 7 %, and the margin is 6.7 % away."""
    assert verdict(1, cpu=speed(200.0) + floors(0.005)).outcome == "confirmed"
    assert verdict(1, cpu=speed(200.0) + floors(0.01)).outcome == "undecided"


DESCRIBED = {  # timed alone, and compared with nothing: what they found is shown, and no verdict may rest on it
    "q05.roofline", "q05.matched_latency", "q08.block_latency", "q20.zoo_settings", "q23.step_latency", "q23.zoo_latency", "q27.step_time",
    "q34.small_step_time", "q34.recompute_time",
}  # fmt: skip


def test_every_timed_experiment_of_the_book_has_a_floor() -> None:
    bare = set()
    for question in claims.questions():
        experiments = claims.load(question).experiments
        named = {one.floor for one in experiments.values()}
        timed_alone = (e for e in experiments.values() if e.kind == "hardware" and e.exclusive and e.name not in named)
        bare |= {f"{question}.{e.name}" for e in timed_alone if not e.floor}
    assert bare <= DESCRIBED, "an experiment that is timed alone names its noise floor"
