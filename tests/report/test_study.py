"""Study in one process, on the toy ledger: what is found, what is measured, what comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LEDGER

from cnnstudy.config import Refused, Setup, key
from cnnstudy.report import evidence, plan, study
from cnnstudy.report.study import Study


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data/claims").mkdir(parents=True)
    (tmp_path / "data/claims/q99.yaml").write_text(LEDGER)
    for module in ("claims", "plan", "verdicts"):
        monkeypatch.setattr(f"cnnstudy.report.{module}.ROOT", tmp_path)
    monkeypatch.setenv("CNNSTUDY_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(study, "machine_id", lambda: "toy")
    return tmp_path


def square(setup: Setup, seed: int) -> dict[str, Any]:
    return {"square": setup.n**2, "curve": np.arange(300.0), "few": [1.0, 2.0]}


SETUPS = [Setup(n=1), Setup(n=2)]


def test_measured_once_then_found(toy: Path) -> None:
    first = Study("q99", "quick")
    frame = first.measure("squares", SETUPS, square)
    assert frame["square"].tolist() == [1, 4] and frame["machine"].tolist() == ["toy", "toy"]
    assert len(evidence.read("toy", "q99")) == 2
    assert first.arrays(frame["key"][0], "toy")["curve"].shape == (300,)
    again = Study("q99", "quick")
    again.measure("squares", [*SETUPS, Setup(n=3)], lambda setup, seed: {"square": -1})
    assert len(evidence.read("toy", "q99")) == 3
    assert again.frame("squares")["square"].tolist() == [1, 4, -1]


def test_only_the_keys_asked_for_are_measured(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = toy / "keys"
    wanted.write_text(key("squares", SETUPS[1], 0, 1) + "\n")
    monkeypatch.setenv("CNNSTUDY_KEYS", str(wanted))
    assert Study("q99", "quick").measure("squares", SETUPS, square)["n"].tolist() == [2]


def test_two_calls_of_one_experiment_add_up(toy: Path) -> None:
    one = Study("q99", "quick")
    one.measure("squares", SETUPS[:1], square)
    assert one.measure("squares", SETUPS[1:], square)["n"].tolist() == [1, 2]


def test_a_setup_on_two_grids_is_measured_once(toy: Path) -> None:
    assert len(Study("q99", "quick").measure("squares", [*SETUPS, *SETUPS], square)) == 2


def test_a_setup_of_two_calls_is_expected_once() -> None:
    """Else its record would stand in a page's table twice, and in an interval as two seeds."""
    one = plan.Experiment("squares")
    one.expect("quick", SETUPS, [0, 1])
    one.expect("quick", SETUPS[:1], [1, 2, 2])
    assert [(e["setup"]["n"], e["seed"]) for e in one.entries("quick")] == [(1, 0), (1, 1), (2, 0), (2, 1), (1, 2)]


def test_what_is_shown_is_read_back(toy: Path) -> None:
    one = Study("q99", "quick")
    frame = one.measure("squares", SETUPS, square)
    evidence.retract(frame["key"][0], "for the test", "toy", "q99")
    assert len(one.measure("squares", SETUPS, square)) == 2  # measured anew, not remembered
    assert len((toy / "records/toy/q99.jsonl").read_text().splitlines()) == 4


def test_together_measures_groups_that_differ_in_one_part(toy: Path) -> None:
    calls = []

    def both(setups: list[Setup], seed: int) -> list[dict[str, int]]:
        calls.append([s.n for s in setups])
        return [{"square": s.n * s.m} for s in setups]

    setups = [Setup(n=n, m=m) for m in (10, 20) for n in (1, 2)]
    frame = Study("q99", "quick").measure("squares", setups, both, together="n")
    assert calls == [[1, 2], [1, 2]] and frame["square"].tolist() == [10, 20, 20, 40]


def test_a_failed_measurement_is_a_record_without_numbers(toy: Path) -> None:
    def diverges(setup: Setup, seed: int) -> dict[str, float]:
        raise ArithmeticError("loss became nan at step 3")

    frame = Study("q99", "quick").measure("squares", SETUPS, diverges)
    assert frame["failed"].tolist() == ["loss became nan at step 3"] * 2


def test_any_other_error_is_no_record(toy: Path) -> None:
    def broken(setup: Setup, seed: int) -> dict[str, float]:
        return {"square": 1 if setup.n == 1 else 1 // "two"}  # type: ignore[operator]

    with pytest.raises(TypeError):
        Study("q99", "quick").measure("squares", SETUPS, broken)
    assert len(evidence.read("toy", "q99")) == 1  # the one before it is kept


def test_seeds_of_the_profile_for_trained_experiments(toy: Path) -> None:
    frame = Study("q99", "standard").measure("noise", SETUPS, lambda setup, seed: {"noise": seed})
    assert frame["seed"].tolist() == [0, 1, 2, 0, 1, 2]


def test_recorded_measures_nothing(toy: Path) -> None:
    Study("q99", "quick").measure("squares", SETUPS, square)
    with pytest.raises(Refused, match="no plan"):
        Study("q99").measure("squares", SETUPS, square)


@pytest.mark.parametrize(
    ("measured", "shown", "profile"),
    [([], 0, None), ([1], 1, "quick"), ([1, 2], 2, "standard"), ([1, 2, 3], 3, "full"), ([2], 1, "standard"), ([1, 3], 2, "full")],
)
def test_what_is_drawn_is_named_by_the_least_profile_that_plans_it(
    toy: Path, measured: list[int], shown: int, profile: str | None
) -> None:
    setups = [{"n": n} for n in (1, 2, 3)]
    plans = {"quick": [[0, [0]]], "standard": [[0, [0]], [1, [0]]], "full": [[0, [0]], [1, [0]], [2, [0]]]}
    body = {"protocol": 1, "trial": "0", "modules": [], "kinds": {}, "setups": setups, "profiles": plans}
    (toy / "data/plans").mkdir()
    (toy / "data/plans/q99.json").write_text(json.dumps({"question": "q99", "experiments": {"squares": body}}))
    if measured:
        Study("q99", "full").measure("squares", [Setup(n=n) for n in measured], square)
    frame = Study("q99", machine="this").frame("squares")
    assert len(frame) == shown and set(frame["profile"]) == ({profile} if profile else set())


def test_not_finite_numbers_become_null(toy: Path) -> None:
    frame = Study("q99", "quick").measure("squares", SETUPS, lambda setup, seed: {"square": float("inf")})
    assert frame["square"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"profile": "qick"}, "unknown profile"),
        ({"overrides": {"numbers": [1]}}, "need a profile that measures"),
        ({"profile": "quick", "overrides": {"nmbers": [1]}}, "valid: numbers, seeds, pause"),
        ({"profile": "quick", "overrides": {"numbers": 1}}, "expected something like"),
        ({"profile": "quick", "machine": "elsewhere"}, "measuring happens on this machine"),
        ({"machine": "elsewhere"}, "unknown machine"),
    ],
)
def test_refusals(toy: Path, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        Study("q99", **arguments)


def test_unknown_names_are_refused(toy: Path) -> None:
    one = Study("q99", "quick")
    with pytest.raises(Refused, match="unknown parameter 'depths'.*numbers"):
        one.p.depths  # noqa: B018
    with pytest.raises(Refused, match="unknown experiment"):
        one.measure("cubes", SETUPS, square)
    with pytest.raises(Refused, match="unknown claim"):
        one.verdicts(written_for={"q99.three": "confirmed"})
    with pytest.raises(Refused, match="as NumPy arrays"):
        one.measure("squares", SETUPS, lambda setup, seed: {"long": list(range(999))})


@pytest.mark.parametrize(("kind", "watched"), [("hardware", True), ("exact", False)])
def test_what_else_the_machine_did_is_kept_beside_timed_records(toy: Path, kind: str, watched: bool) -> None:
    ledger = toy / "data/claims/q99.yaml"
    ledger.write_text(ledger.read_text().replace("squares: {kind: exact", f"squares: {{kind: {kind}"))
    frame = Study("q99", "quick").measure("squares", SETUPS[:1], square)
    (record,) = evidence.find(frame["key"], "toy").values()
    assert ("load" in record["provenance"]) is watched
    assert not watched or {"samples", "disturbed", "throttled"} <= record["provenance"]["load"].keys()


def test_what_is_not_finite_is_null_in_lists_of_lists_too(toy: Path) -> None:
    def trial(setup: Setup, seed: int) -> dict[str, Any]:
        return {"ratios": [[1.0, float("inf")], (np.float64("nan"), np.float32(2))], "last": float("nan")}

    Study("q99", "quick").measure("squares", SETUPS[:1], trial)
    assert evidence.read("toy", "q99")[0]["metrics"] == {"ratios": [[1.0, None], [None, 2.0]], "last": None}


# what looks up other measurements -------------------------------------------------------------------------------------------


def half_and_square(setup: Setup) -> list[Setup]:
    return [Setup(n=setup.n), Setup(n=setup.n + 1)]


def sums(one: Study, n: int = 1) -> None:
    """A second experiment, whose trial looks up two squares."""
    table = one.frame("squares").set_index("key")["square"]
    looked = [Setup(of="squares", n=n)]
    one.measure(
        "noise", looked, lambda s, seed: {"noise": float(sum(table[key("squares", q, seed, 1)] for q in half_and_square(s)))},
        seeds=[0], reads={"squares": half_and_square},
    )  # fmt: skip


def test_what_a_trial_looks_up_is_measured_before_it_or_one_line_says_so(toy: Path) -> None:
    one = Study("q99", "quick")
    one.measure("squares", SETUPS[:1], square)
    with pytest.raises(Refused, match="noise looks up 1 measurements of squares that are not recorded here; measure squares too"):
        sums(one)
    one.measure("squares", SETUPS[1:], square)
    sums(one)
    assert one.frame("noise")["noise"].tolist() == [5.0]


def test_a_plan_knows_what_is_looked_up(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squares, noise = plan.Experiment("squares"), plan.Experiment("noise")
    both = {"squares": squares, "noise": noise, "sum": plan.Experiment("sum")}
    squares.expect("quick", SETUPS, [0, 1])
    squares.expect("standard", SETUPS, [0, 1, 2])
    for name, setup, what in (("noise", Setup(m=1), {"squares": SETUPS}), ("sum", Setup(k=1), {"noise": [Setup(m=1)]})):
        both[name].expect("quick", [setup], [0, 1])
        both[name].expect("standard", [setup], [0])
        for _ in range(2):  # profiles share setups
            both[name].read(setup, what, both)
    _, entry = both["sum"].entries("quick")
    squared = [key("squares", s, 1, 1) for s in SETUPS]
    assert plan.behind(both, "sum", entry, "quick") == [*squared, key("noise", Setup(m=1), 1, 1)]
    assert plan.behind(both, "squares", squares.entries("quick")[0], "quick") == []
    (alone,) = both["noise"].entries("standard")  # one seed: about all seeds
    assert len(plan.behind(both, "noise", alone, "standard")) == 6
    monkeypatch.setattr(plan, "plans_root", lambda: toy)
    (toy / "q99.json").write_text(plan.dump("q99", both))
    assert plan.behind(plan.load("q99"), "sum", entry, "quick") == plan.behind(both, "sum", entry, "quick")
    with pytest.raises(Refused, match="noise reads squares with a setup that is not measured before it"):
        noise.read(Setup(m=1), {"squares": [Setup(n=7)]}, both)
