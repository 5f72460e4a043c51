"""How long measuring takes, and what to measure first."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import pytest
from toyhouse import CLAIMS, HERE, THERE, House, experiments, training

from cnnstudy.config import Refused
from cnnstudy.report import choosing, plan, standing
from cnnstudy.report.choosing import choose_within
from cnnstudy.report.estimates import Durations, estimate, missing
from cnnstudy.runtime import ROOT


def seconds(profile: str = "standard", experiment: str = "training", nth: int = 0) -> float | None:
    return Durations().seconds("q91", experiment, plan.load("q91")[experiment].entries(profile)[nth])


# durations --------------------------------------------------------------------------------------------------------------


def test_an_empty_store_knows_nothing_and_says_so(house: House) -> None:
    todo = missing("q91", "standard")
    assert len(todo) == 3 + 6 + 2
    assert estimate("q91", todo) is None and estimate("q91", []) == 0
    choice = choose_within(60, ["q91"], "standard")
    assert choice.entries == () and len(choice.unknown) == 5 and choice.seconds == 0


def test_what_is_recorded_here_comes_first(house: House) -> None:
    entries = house.entries("q91", "training", "standard")
    house.record("q91", "training", entries, THERE, seconds=2)
    house.record("q91", "training", entries[:1], HERE, seconds=50)
    assert seconds() == 50
    assert [entry["key"] for e, entry in missing("q91", "standard") if e.name == "training"] == [e["key"] for e in entries[1:]]
    assert len(missing("q91", "standard", THERE)) == 11 - 6


def test_another_machine_counts_by_how_much_slower_this_one_is(house: House) -> None:
    entries = house.entries("q91", "training", "standard")
    house.record("q91", "training", entries, THERE, seconds=2)
    assert seconds(nth=5) == 2  # nothing in common: as fast as there
    squares = house.entries("q91", "squares", "quick")
    for machine, time in ((THERE, 1), (HERE, 7)):
        house.record("q91", "squares", squares, machine, seconds=time)
    assert seconds(nth=5) == 14  # what the page has in common
    for entry, time in zip(entries, (60, 80, 1000), strict=False):
        house.record("q91", "training", [entry], HERE, seconds=time)
    assert seconds(nth=5) == 80  # the experiment's own median ratio: 40


def test_the_nearest_setup_is_scaled_by_its_work(house: House) -> None:
    house.record("q91", "training", house.entries("q91", "training", "quick"), HERE, seconds=4)
    # 5 times the pictures, 5 times the epochs
    assert seconds(nth=0) == pytest.approx(4 * 25) and seconds(nth=5) == pytest.approx(4 * 25)
    house.record("q91", "training", house.entries("q91", "training", "standard")[:1], HERE, seconds=90)
    assert seconds(nth=1) == 90  # another seed of the same setup
    assert seconds(nth=5) == pytest.approx(360)  # the same size at a quarter of the depth, rather than a 25th of the size


def test_steps_count_where_they_cap_the_epochs(house: House) -> None:
    one = experiments()["training"]
    one.setups += [training(2, 2000, 10, steps=10), training(2, 10000, 10, steps=300)]
    one.profiles = {"quick": [(4, [0])], "standard": [(5, [0, 1, 2])], "full": []}
    house.page("q92", plans={"training": one})
    house.record("q92", "training", house.entries("q92", "training", "quick"), seconds=2)
    entry = house.entries("q92", "training", "standard")[0]
    assert Durations().seconds("q92", "training", entry) == pytest.approx(60)


def test_a_regression_takes_as_long_as_its_steps_and_units(house: House) -> None:
    one = plan.Experiment("regression", trial="dd")
    one.setups = [{"how": {"steps": steps}, "units": {"units": units}} for steps, units in ((100, 1), (2000, 4))]
    one.profiles = {"quick": [(0, [0])], "standard": [(1, [0])], "full": []}
    house.page("q92", plans={"regression": one})
    house.record("q92", "regression", house.entries("q92", "regression", "quick"), seconds=2)
    entry = house.entries("q92", "regression", "standard")[0]
    assert Durations().seconds("q92", "regression", entry) == pytest.approx(2 * 20 * 4)


def test_another_kind_of_model_gives_the_mean_of_the_experiment(house: House) -> None:
    one = experiments()["training"]
    one.setups += [training(2, kind="Other")]
    one.profiles = {"quick": [(0, [0]), (1, [0]), (4, [0])], "standard": [], "full": []}
    house.page("q92", plans={"training": one})
    shallow, deep, other = house.entries("q92", "training", "quick")
    house.record("q92", "training", [shallow], seconds=1)
    house.record("q92", "training", [deep], seconds=8)
    assert Durations().seconds("q92", "training", other) == pytest.approx((1 + 8 / 4) / 2)  # the deep one has 4 times the work


# what to measure first --------------------------------------------------------------------------------------------------


def known(house: House) -> None:
    """Quick records of everything but squares, and one of squares: all durations can be told."""
    house.record("q91", "training", house.entries("q91", "training", "quick"), seconds=4)
    house.record("q91", "squares", house.entries("q91", "squares", "quick")[:1], seconds=1)
    house.record("q91", "clock", house.entries("q91", "clock", "quick")[1:], seconds=30)


def test_most_claims_per_minute_and_shared_measurements_once(house: House) -> None:
    known(house)
    none = choose_within(0.001, ["q91"], "standard")
    assert none.entries == () and len(none.later) == 5
    short = choose_within(1, ["q91"], "standard")
    assert short.claims == ("q91.fast", "q91.two-squared") and short.seconds == pytest.approx(31)
    # one depth takes 3 x 100 s and decides one claim; both take 600 s and decide three, so both come at once
    middle = choose_within(6, ["q91"], "standard")
    assert len(middle.claims) == 3 and middle.seconds == pytest.approx(331) and set(middle.later.values()) == {300}
    whole = choose_within(11, ["q91"], "standard")
    assert len(whole.claims) == 5 and whole.seconds == pytest.approx(631) and len(whole.entries) == 8 == len(whole.keys)
    assert whole.rows()[0]["question"] == "q91" and sum(row["to_measure"] for row in whole.rows()) == 8
    assert whole.profiles == ("standard",) and whole.pages("standard") == ["q91"]


def test_a_profile_below_what_a_claim_needs_cannot_decide_it(house: House) -> None:
    known(house)
    quick = choose_within(1e6, ["q91"], "quick")
    assert quick.claims == ("q91.fast", "q91.two-squared") and set(quick.beyond) == {
        "q91.deep-learns", "q91.shallow-learns", "q91.depth-does-not-matter"
    }  # fmt: skip
    with pytest.raises(Refused, match="valid: quick, standard, full"):
        choose_within(1, ["q91"], "fast")


def test_what_it_promises_comes_true(house: House) -> None:
    known(house)
    choice = choose_within(6, ["q91"], "standard")
    for profile in plan.PROFILES:
        for name in plan.load("q91"):
            todo = {e["key"]: e for e in house.entries("q91", name, profile) if e["key"] in choice.keys}
            house.record("q91", name, todo.values())
    outcomes = standing.judge("q91", HERE).outcomes
    assert choice.claims and {claim for claim, outcome in outcomes.items() if outcome != "untested"} == set(choice.claims)


def test_only_conditions_that_matter_are_measured(house: House) -> None:
    both = {"four": CLAIMS["two-squared"]["four"].replace("value: 4", "value: 5"), "learns": CLAIMS["deep-learns"]["learns"]}
    house.page("q91", {"both": both})
    known(house)
    house.record("q91", "squares", house.entries("q91", "squares", "quick"))
    assert standing.judge("q91", HERE).outcomes == {"q91.both": "refuted"}  # 4 is not 5: training cannot change that
    assert choose_within(1e6, ["q91"], "standard").claims == ()


def test_a_condition_that_cannot_change_the_outcome_any_more_is_left_out(house: House) -> None:
    """fast holds, so that deep-learns decides nothing: what shallow-learns needs is enough."""
    conditions = {name: next(iter(CLAIMS[name].values())) for name in ("fast", "shallow-learns", "deep-learns")}
    house.page("q91", {"one": conditions})
    ledger = house.root / "data/claims/q91.yaml"
    head, _, tail = ledger.read_text().partition("    confirmed: ")
    expressions = "confirmed: shallow-learns and fast\n    refuted: not shallow-learns\n    mixed: not fast and deep-learns\n"
    ledger.write_text(f"{head}    {expressions}citations: []\n")
    assert tail
    known(house)
    assert len(choose_within(1e6, ["q91"], "standard").entries) == 1 + 3 + 3
    house.record("q91", "clock", house.entries("q91", "clock", "quick")[:1])
    choice = choose_within(1e6, ["q91"], "standard")
    assert choice.claims == ("q91.one",) and {entry.experiment for entry in choice.entries} == {"training"} and len(choice.entries) == 3


def test_close_to_the_best_of_all_choices(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against every subset of claims, on random pages: never over the budget, and almost always as good as the best."""
    random.seed(3)
    one = plan.Experiment("squares", setups=[{"n": n} for n in range(14)])
    one.profiles = {p: [(i, [0]) for i in range(14)] for p in plan.PROFILES}
    house.page("q91", plans={"squares": one})
    keys = [entry["key"] for entry in one.entries("quick")]
    shares = []
    for _ in range(150):
        times, budget = {key: random.choice([1, 5, 20, 60]) for key in keys}, random.choice([40, 100, 200])
        needs = {f"q91.c{i}": frozenset(random.sample(keys, random.choice([1, 2, 4, 6]))) for i in range(8)}
        made = standing.Standing({}, {claim: {"only": {"quick": sorted(k)}} for claim, k in needs.items()})
        monkeypatch.setattr(choosing, "standing", lambda *_, made=made: made)
        monkeypatch.setattr(Durations, "seconds", lambda _, question, experiment, entry, times=times: times[entry["key"]])
        choice = choose_within(budget / 60, ["q91"], "quick")
        assert choice.seconds <= budget and set(choice.claims) == {c for c, k in needs.items() if k <= choice.keys}
        subsets = (some for n in range(1, 9) for some in itertools.combinations(needs.values(), n))
        best = max((len(some) for some in subsets if sum(times[k] for k in frozenset[str]().union(*some)) <= budget), default=0)
        shares.append(len(choice.claims) / best if best else 1.0)
    assert sum(shares) / len(shares) > 0.998 and min(shares) >= 0.75


def test_the_books_own_ledgers_without_torch() -> None:
    """Every untested claim is somewhere in the answer, and once it is kept, the answer takes no time."""
    code = """
import sys, time
from cnnstudy.report import choosing, standing
from cnnstudy.runtime import machine_id
pages = ["q03", "q20", "q33", "q42"]
for _ in range(2):
    start = time.process_time()
    choice = choosing.choose_within(60, pages, "full")
    took = time.process_time() - start
there = standing.recorded(machine_id())
needs = {claim for q in pages for claim in standing.standing(q, machine_id(), there).needs}
assert needs == {*choice.claims, *choice.later, *choice.unknown, *choice.beyond}, needs
assert choice.seconds <= 3600
assert not {"torch", "pandas"} & set(sys.modules)
assert took < 1.5, took
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
