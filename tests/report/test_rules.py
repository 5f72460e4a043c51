"""The rules: each has a self-test (true, false, noisy), and what they share is tested once."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from cnnstudy.config import Refused
from cnnstudy.report.rules import RULES, Finding, Row

Rows = list[Row]


def rows(values: Mapping[Any, Any], path: str = "model.depth", metric: str = "acc", seeds: int = 3, spread: float = 0.0) -> Rows:
    """Synthetic rows: one setup per value of ``path``; seeds lie ``spread`` around the value, evenly but not together."""
    made = []
    for turn, (at, value) in enumerate(values.items()):
        offsets = [spread * (2 * i / max(1, seeds - 1) - 1) for i in range(seeds)]
        for seed, offset in enumerate(offsets[turn % seeds :] + offsets[: turn % seeds]):
            number = value + offset if isinstance(value, float) else value
            made.append(Row({path: at, "model.kind": "Net"}, seed, {metric: number}, "here", "standard"))
    return made


def trained(**fields: Any) -> dict[str, Any]:
    return {"metric": "acc", "kind": "trained", "min_seeds": 3, **fields}


@dataclass
class Case:
    """A condition with rows of which it is true, false, and undecidable (state ``open``: unclear, or missing)."""

    condition: dict[str, Any]
    true: Rows
    false: Rows
    noisy: Rows
    open: str = field(default="unclear")


TIMED = "ms"
A20, B56 = {"model.depth": 20}, {"model.depth": 56}


def timed(a: float, b: float, spread: float) -> Rows:
    return rows({20: [a + spread * i / 10 for i in range(31)], 56: [b + spread * i / 10 for i in range(31)]}, metric=TIMED, seeds=1)


def pairs(noise: float, sign: int = 1) -> Rows:
    rng = random.Random(3)
    return [
        Row({"model.name": f"n{i}"}, 0, {"macs": float(i), "acc": sign * i + noise * rng.gauss(0, 1)}, "here", "quick") for i in range(20)
    ]


SELF_TESTS: dict[str, list[Case]] = {
    "equal": [
        Case({"metric": "acc", "value": [2, 2]}, rows({1: [2, 2]}, seeds=1), rows({1: [2, 3]}, seeds=1), [], "missing"),
        Case({"metric": "acc", "same": True}, rows({1: 5, 2: 5}), rows({1: 5, 2: 6}), rows({1: 5}, seeds=1), "missing"),
    ],
    "within": [
        Case(trained(value=0.7, abs_tol=0.02), rows({1: 0.7}, spread=0.002), rows({1: 0.8}, spread=0.002), rows({1: 0.7}, spread=0.05)),
        Case(trained(low=0.5, high=0.8), rows({1: 0.7}, spread=0.002), rows({1: 0.4}, spread=0.002), rows({1: 0.8}, spread=0.002)),
    ],
    "above": [Case(trained(margin=0.7), rows({1: 0.8}, spread=0.01), rows({1: 0.6}, spread=0.01), rows({1: 0.71}, spread=0.05))],
    "below": [Case(trained(margin=0.7), rows({1: 0.6}, spread=0.01), rows({1: 0.8}, spread=0.01), rows({1: 0.71}, spread=0.05))],
    "difference_above": [
        Case(
            trained(a=A20, b=B56, margin=0.05),
            rows({20: 0.9, 56: 0.8}, spread=0.005),
            rows({20: 0.9, 56: 0.89}, spread=0.005),
            rows({20: 0.9, 56: 0.84}, spread=0.1),
        ),
        Case(  # "by at least 15 points, with an interval above 5"
            trained(a=A20, b=B56, margin=0.15, interval_above=0.05),
            rows({20: 0.9, 56: 0.7}, spread=0.02),
            rows({20: 0.9, 56: 0.8}, spread=0.005),
            rows({20: 0.9, 56: 0.7}, spread=0.2),
        ),
    ],
    "ratio_between": [
        Case(
            trained(a=A20, b=B56, low=1.25),
            rows({20: 0.9, 56: 0.6}, spread=0.01),
            rows({20: 0.9, 56: 0.9}, spread=0.01),
            rows({20: 0.8, 56: 0.62}, spread=0.2),
        ),
        Case(  # closes at least half of the gap
            trained(a={"model.depth": 3}, b={"model.depth": 2}, base={"model.depth": 1}, low=0.5),
            rows({1: 0.5, 2: 0.9, 3: 0.85}, spread=0.005),
            rows({1: 0.5, 2: 0.9, 3: 0.6}, spread=0.005),
            rows({1: 0.5, 2: 0.52, 3: 0.55}, spread=0.1),
        ),
    ],
    "equivalent_within": [
        Case(
            trained(a=A20, b=B56, margin=0.02),
            rows({20: 0.9, 56: 0.9}, spread=0.004),
            rows({20: 0.9, 56: 0.8}, spread=0.004),
            rows({20: 0.9, 56: 0.9}, spread=0.05),
        )
    ],
    "ordering": [
        Case(
            trained(groups=[A20, B56, {"model.depth": [110, 302]}], direction="decreasing", margin=0.0),
            rows({20: 0.9, 56: 0.8, 110: 0.7, 302: 0.6}, spread=0.01),
            rows({20: 0.9, 56: 0.8, 110: 0.7, 302: 0.85}, spread=0.01),
            rows({20: 0.9, 56: 0.8, 110: 0.7, 302: 0.78}, spread=0.1),
        ),
        Case(
            {"metric": TIMED, "groups": [A20, B56], "direction": "increasing", "margin": 0, "iqr": True, "kind": "hardware"},
            timed(5, 9, 0.1),
            timed(9, 5, 0.1),
            timed(5, 6, 5.0),
        ),
    ],
    "monotone_in": [
        Case(
            trained(over="model.depth", scale="log2", direction="increasing", margin=0),
            rows({8: 0.5, 16: 0.6, 32: 0.7}, spread=0.005),
            rows({8: 0.7, 16: 0.6, 32: 0.5}, spread=0.005),
            rows({8: 0.5, 16: 0.51, 32: 0.52}, spread=0.2),
        ),
        Case(
            trained(over="model.depth", direction="increasing", margin=0, saturation=0.3),
            rows({1: 0.5, 2: 0.6, 3: 0.7}, spread=0.002),
            rows({1: 0.5, 2: 0.7, 3: 0.7001}, spread=0.002),
            rows({1: 0.4, 2: 0.68, 3: 0.74}, spread=0.05),
        ),
    ],
    "correlation": [
        Case({"metric": "acc", "metric_b": "macs", "low": 0.7, "kind": "hardware"}, pairs(0.5), pairs(0.5, -1), pairs(6.0)),
    ],
    "share_of": [
        Case(
            trained(meets={"low": 0.5}, low=0.6, min_seeds=2),
            rows({1: 0.9}, seeds=30),
            rows({1: 0.1}, seeds=30),
            rows({1: 0.9, 2: 0.1}, seeds=5),
        ),
        Case(
            {"metric": "acc", "meets": True, "low": 0.9, "kind": "exact"},
            rows(dict.fromkeys(range(20), True), seeds=1),
            rows({i: i > 4 for i in range(20)}, seeds=1),
            [],
            "missing",
        ),
    ],
    "groups_differ": [
        Case(
            trained(over="model.depth", margin=0.01, alike=0.1),
            rows({1: 0.3, 2: 0.5, 3: 0.7, 4: 0.9}, spread=0.01),
            rows({1: 0.7, 2: 0.7, 3: 0.7, 4: 0.7}, spread=0.005),
            rows({1: 0.5, 2: 0.5, 3: 0.55, 4: 0.5}, spread=0.3),
        )
    ],
}
CASES = [pytest.param(name, case, id=f"{name}-{i}") for name, those in SELF_TESTS.items() for i, case in enumerate(those)]


def find(name: str, condition: Mapping[str, Any], those: Rows) -> Finding:
    return RULES[name](condition, those)


def test_every_rule_has_a_self_test_and_there_are_a_dozen() -> None:
    assert SELF_TESTS.keys() == RULES.keys()
    assert len(RULES) <= 12


@pytest.mark.parametrize(("name", "case"), CASES)
def test_a_rule_can_hold_fail_and_stay_open(name: str, case: Case) -> None:
    found = [find(name, case.condition, those) for those in (case.true, case.false, case.noisy)]
    assert [f.state for f in found] == ["holds", "fails", case.open], [f.reason for f in found]
    for one in found:
        assert one.reason.endswith(".") and one.reason[0] == one.reason[0].upper() and "\n" not in one.reason
        assert "nan" not in one.reason.lower().split() and "inf" not in one.reason.lower().split()
    assert found[0].estimate is not None or isinstance(case.condition.get("value"), list)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_no_rule_holds_without_rows_or_with_failed_ones(name: str, case: Case) -> None:
    assert find(name, case.condition, []).state == "missing"
    broken = [Row(r.setup, r.seed, {}, r.machine, r.profile, failed="loss is not finite") for r in case.true]
    found = find(name, case.condition, broken)
    assert found.state == "unclear" and "loss is not finite" in found.reason
    some = [*case.true[:-1], broken[-1]]
    assert find(name, case.condition, some).state == "unclear"


@pytest.mark.parametrize(("name", "case"), [c for c in CASES if c.values[1].condition.get("min_seeds") == 3])
def test_fewer_seeds_than_asked_for_are_missing(name: str, case: Case) -> None:
    found = find(name, case.condition, [r for r in case.true if r.seed < 2])
    assert found.state == "missing" and "2 of at least 3 seeds" in found.reason


# properties

RANK = {"holds": 2, "unclear": 1, "fails": 0}


@pytest.mark.parametrize("name", ["above", "below", "difference_above", "ratio_between", "equivalent_within", "ordering"])
def test_a_harder_margin_never_helps(name: str) -> None:
    those = rows({20: 0.9, 56: 0.8}, spread=0.02)
    shape: dict[str, Callable[[float], dict[str, Any]]] = {
        "above": lambda m: trained(at=A20, margin=m),
        "below": lambda m: trained(at=A20, margin=2 - m),
        "difference_above": lambda m: trained(a=A20, b=B56, margin=m),
        "ratio_between": lambda m: trained(a=A20, b=B56, low=m),
        "equivalent_within": lambda m: trained(a=A20, b=B56, margin=1 - m),
        "ordering": lambda m: trained(groups=[B56, A20], direction="increasing", margin=m),
    }
    states = [RANK[find(name, shape[name](m / 100), those).state] for m in range(0, 200)][: 100 if name == "equivalent_within" else None]
    assert states == sorted(states, reverse=True)
    assert set(states) == {0, 1, 2}


def test_swapping_a_and_b_flips_the_difference() -> None:
    those = rows({20: 0.9, 56: 0.8}, spread=0.02)
    one = find("difference_above", trained(a=A20, b=B56, margin=0), those)
    other = find("difference_above", trained(a=B56, b=A20, margin=0), those)
    assert (one.state, other.state) == ("holds", "fails")
    assert one.low is not None and other.high is not None and one.low == pytest.approx(-other.high)


def test_equivalence_is_two_sided_and_at_its_own_level() -> None:
    those = rows({20: 0.9, 56: 0.9}, spread=0.01)
    found = find("equivalent_within", trained(a=A20, b=B56, margin=0.03), those)
    strict = find("difference_above", trained(a=A20, b=B56, margin=0), those)
    assert found.high is not None and strict.high is not None and found.high < strict.high
    between = (found.high + strict.high) / 2  # inside for two one-sided tests at 5 %, not for a 95 % interval
    assert find("equivalent_within", trained(a=A20, b=B56, margin=between), those).state == "holds"
    apart = rows({20: 0.9, 56: 0.8}, spread=0.004)
    for a, b in ((A20, B56), (B56, A20)):
        assert find("equivalent_within", trained(a=a, b=b, margin=0.02), apart).state == "fails"
        assert find("equivalent_within", trained(a=a, b=b, rel_margin=0.5), apart).state == "holds"


def test_equal_numbers_are_not_more_than_each_other() -> None:
    those = rows({20: 7.0, 56: 7.0}, seeds=1)
    assert find("difference_above", {"metric": "acc", "a": A20, "b": B56, "margin": 0}, those).state == "fails"
    assert find("ordering", {"metric": "acc", "groups": [A20, B56], "direction": "increasing", "margin": 0}, those).state == "fails"
    assert find("above", {"metric": "acc", "margin": 7}, those[:1]).state == "holds"
    assert find("below", {"metric": "acc", "margin": 7}, those[:1]).state == "holds"


def test_rows_in_another_order_give_the_same_finding() -> None:
    for name, case in ((n, c) for n, those in SELF_TESTS.items() for c in those):
        shuffled = sorted(case.true, key=lambda r: (-r.seed, repr(r.setup)))
        assert find(name, case.condition, shuffled).state == "holds", name


# what conditions share


def test_filters() -> None:
    those = rows({8: 0.1, 20: 0.2, 56: 0.3}, seeds=1)

    def depths(wanted: Any) -> int:
        return find("share_of", {"metric": "acc", "meets": {"low": 0}, "low": 0, "at": {"model.depth": wanted}}, those).n

    assert [depths(w) for w in (8, 8.0, [8, 20], {"low": 20}, {"high": 20}, {"not": 8}, {"low": 9, "high": 30})] == [1, 1, 2, 2, 2, 2, 1]
    assert find("above", {"metric": "acc", "margin": 0, "at": {"model.depth": True}}, rows({1: 0.5})).state == "missing"
    left_out = find("above", {"metric": "acc", "margin": 0, "at": {"model.separable": None, "model.depth": 8}}, those)
    assert left_out.state == "holds"


def test_where_filters_by_metric() -> None:
    found = find("correlation", {"metric": "acc", "metric_b": "macs", "low": 0.5, "where": {"macs": {"low": 5, "high": 12}}}, pairs(0.1))
    assert found.n == 8


def test_several_setups_are_refused_unless_reduced() -> None:
    those = rows({8: 0.1, 20: 0.2, 56: 0.3})
    with pytest.raises(Refused, match=r"selects 3 setups that differ in model\.depth; narrow it or give reduce"):
        find("above", trained(margin=0), those)
    best = find("above", trained(margin=0.25, reduce="max"), those)
    assert best.state == "holds" and best.estimate == pytest.approx(0.3)
    gap = find("difference_above", trained(a={"model.depth": 56}, b={"model.depth": {"not": 56}}, reduce="max", margin=0.05), those)
    assert gap.estimate == pytest.approx(0.1)


def test_a_list_needs_reduce_and_a_nested_metric_a_dotted_name() -> None:
    listed = rows({1: [1.0, 2.0, 9.0]}, seeds=1)
    with pytest.raises(Refused, match="is a list; say how it becomes one number"):
        find("above", {"metric": "acc", "margin": 0}, listed)
    assert find("above", {"metric": "acc", "margin": 0, "reduce": "median"}, listed).estimate == 2
    assert find("above", {"metric": "acc", "margin": 0, "reduce": "last"}, listed).estimate == 9
    nested = [Row({}, 0, {"robust": {"4": 0.5}})]
    assert find("above", {"metric": "robust.4", "margin": 0.4}, nested).state == "holds"
    with pytest.raises(Refused, match=r"unknown metric of the rows 'robust\.8'"):
        find("above", {"metric": "robust.8", "margin": 0.4}, nested)


def test_a_null_metric_is_unclear() -> None:
    assert find("above", {"metric": "acc", "margin": 0}, rows({1: None}, seeds=1)).reason.startswith("1 of 1 measurements gave no number")


def test_failed_as_counts_a_failure_as_a_value() -> None:
    those = [*rows({20: 0.9}), *(Row({"model.depth": 56, "model.kind": "Net"}, s, {}, failed="diverged") for s in range(3))]
    found = find("difference_above", trained(a=A20, b=B56, margin=0.05, failed_as=0.1), those)
    assert found.state == "holds" and found.estimate == pytest.approx(0.8)


def test_unclear_as_says_not_shown() -> None:
    case = SELF_TESTS["difference_above"][0]
    found = find("difference_above", {**case.condition, "unclear_as": "fails"}, case.noisy)
    assert found.state == "fails" and found.reason.startswith("Not shown: ")
    assert find("difference_above", {**case.condition, "unclear_as": "fails"}, case.true).state == "holds"


def test_each_is_the_worst_and_any_the_best_case() -> None:
    those = rows({8: 0.9, 20: 0.8, 56: 0.2}, spread=0.01)
    assert find("above", trained(margin=0.5, each="model.depth"), those).state == "fails"
    assert find("above", trained(margin=0.5, any="model.depth"), those).state == "holds"
    assert find("above", trained(margin=0.1, each="model.depth"), those).state == "holds"
    assert find("above", trained(margin=0.95, any="model.depth"), those).state == "fails"
    worst = find("above", trained(margin=0.1, each="model.depth"), those)
    assert "all 3 cases" in worst.reason and "depth 56" in worst.reason
    few = find("above", trained(margin=0.1, each="model.depth", min_values=4), those)
    assert few.state == "missing" and "3 of at least 4 cases" in few.reason
    assert find("above", trained(margin=0.1, each="setup"), those).state == "holds"
    with pytest.raises(Refused, match=r"no setup has the path 'model\.dpth'; valid: model\.depth"):
        find("above", trained(margin=0.1, each="model.dpth"), those)


def test_one_unclear_case_leaves_each_open_but_not_any() -> None:
    those = [*rows({8: 0.9}, spread=0.01), *rows({20: 0.5}, spread=0.2)]
    assert find("above", trained(margin=0.5, each="model.depth"), those).state == "unclear"
    assert find("above", trained(margin=0.5, any="model.depth"), those).state == "holds"
    fewer = [r for r in those if r.setup["model.depth"] == 8 or r.seed == 0]
    assert find("above", trained(margin=0.5, each="model.depth"), fewer).state == "missing"


def test_each_splits_a_group_that_names_several_values_against_one_that_is_fixed() -> None:
    those = rows({"Mobile": 0.3, "Efficient": 0.35, "ResNet": 0.5, "Vgg": 0.1}, path="family", spread=0.005)
    both = trained(a={"family": "ResNet"}, b={"family": ["Mobile", "Efficient"]}, margin=0, each="family")
    found = find("difference_above", both, those)
    assert found.state == "holds" and "all 2 cases" in found.reason
    every = trained(a={"family": ["ResNet", "Vgg"]}, b={"family": ["Mobile", "Efficient"]}, margin=0, each="family")
    assert "2 of 4 cases" in find("difference_above", every, those).reason
    together = trained(a={"skip": True}, b={"skip": False}, margin=0, each="family")
    pairs_of = [Row({"family": f, "skip": s}, k, {"acc": 0.5 + 0.1 * s}) for f in "xyz" for s in (True, False) for k in range(3)]
    assert "all 3 cases" in find("difference_above", together, pairs_of).reason


def test_pick_takes_the_setup_with_the_highest_mean() -> None:
    those = [Row({"n": n}, s, {"acc": a, "robust": r}) for n, a, r in (("x", 0.9, 0.1), ("y", 0.8, 0.3), ("z", 0.7, 0.2)) for s in range(3)]
    condition = {"metric": "robust", "a": {"pick": {"max": "robust"}}, "b": {"pick": {"max": "acc"}}, "margin": 0, "kind": "trained"}
    found = find("difference_above", condition, those)
    assert found.estimate == pytest.approx(0.2)
    assert "the setup with the highest acc" in found.reason


def test_log_judges_orders_of_magnitude() -> None:
    tiny = [Row({}, s, {"norm": v}) for s, v in enumerate((1e-9, 1e-7, 0.0))]
    found = find("below", {"metric": "norm", "margin": 1e-4, "log": True, "kind": "exact"}, tiny[:2])
    assert found.state == "unclear"  # two seeds, two decades apart: the interval is wide
    steady = [Row({}, s, {"norm": v}) for s, v in enumerate((1e-9, 2e-9, 3e-9, 1e-9))]
    found = find("below", {"metric": "norm", "margin": 1e-4, "log": True, "kind": "exact"}, steady)
    assert found.state == "holds" and found.estimate == pytest.approx(1.565e-9, rel=1e-3)
    assert find("below", {"metric": "norm", "margin": 1e-4, "log": True}, tiny[2:]).state == "holds"


def test_machines_are_judged_apart_except_for_agreement() -> None:
    those = [Row({"n": 1}, 0, {"ms": v, "macs": 5}, machine) for machine, v in (("cpu", 9.0), ("gpu", 1.0))]
    found = find("below", {"metric": "ms", "margin": 5, "machines": "all", "kind": "hardware"}, those)
    assert found.state == "fails" and "machine cpu" in found.reason
    assert find("equal", {"metric": "macs", "same": True, "machines": "all"}, those).n == 2


def test_trends_need_three_values_and_accept_an_order_of_names() -> None:
    condition = {"metric": "acc", "over": "name", "order": ["s", "m", "l"], "direction": "increasing", "margin": 0, "strict": True}
    assert find("monotone_in", condition, rows({"s": 1.0, "m": 2.0, "l": 3.0}, path="name", seeds=1)).state == "holds"
    assert find("monotone_in", condition, rows({"s": 1.0, "m": 1.0, "l": 3.0}, path="name", seeds=1)).state == "fails"
    assert find("monotone_in", condition, rows({"s": 1.0, "m": 1.0}, path="name", seeds=1)).state == "missing"
    with pytest.raises(Refused, match="needs numbers along `over`"):
        find("monotone_in", {**condition, "order": None} | {}, rows({"s": 1.0, "m": 2.0, "l": 3.0}, path="name", seeds=1))


def test_a_step_back_fails_a_trend_that_rises_on_the_whole() -> None:
    condition = trained(over="model.depth", direction="increasing", margin=0)
    found = find("monotone_in", condition, rows({1: 0.1, 2: 0.5, 3: 0.4, 4: 0.9}, spread=0.002))
    assert found.state == "fails" and "the other way from depth 2 to depth 3" in found.reason


def test_published_recipes_that_lack_a_side_are_left_out() -> None:
    those = [Row({"model": m, "recipe": r}, 0, {"top1": t}) for m, r, t in (
        ("big", "x", 78.3), ("small", "x", 76.1), ("big", "y", 80.0), ("small", "y", 79.5), ("big", "z", 81.0))]  # fmt: skip
    condition = {"metric": "top1", "a": {"model": "big"}, "b": {"model": "small"}, "margin": 0, "each": "recipe", "kind": "published"}
    found = find("difference_above", condition, those)
    assert found.state == "holds" and found.estimate == pytest.approx(0.5)
    assert "0.5 points (one measurement)" in found.reason
    assert find("difference_above", {**condition, "kind": "exact"}, those).state == "missing"


def test_a_rule_rarely_holds_where_the_margin_is_the_truth() -> None:
    rng = random.Random(0)
    held = 0
    for _ in range(400):
        those = [Row({"model.depth": d}, s, {"acc": v + rng.gauss(0, 0.02)}) for d, v in ((20, 0.9), (56, 0.85)) for s in range(3)]
        held += find("difference_above", trained(a=A20, b=B56, margin=0.05), those).state == "holds"
    assert held / 400 < 0.05  # a 95 % interval lies wholly above the truth in 2.5 % of cases


def test_a_logarithmic_axis_needs_positive_values() -> None:
    with pytest.raises(Refused, match="scale log2 needs values of eps above 0, found 0"):
        condition = {"metric": "acc", "over": "eps", "scale": "log2", "direction": "increasing", "margin": 0}
        find("monotone_in", condition, rows({0: 0.1, 1: 0.2, 2: 0.3}, path="eps"))


def test_sentences_read_well() -> None:
    depth = find(
        "difference_above",
        trained(a=A20, b=B56, margin=0.05, metric="train_acc"),
        rows({20: 0.9, 56: 0.8}, metric="train_acc", spread=0.01),
    )
    assert depth.reason.startswith("Train accuracy of depth 20 less that of depth 56 is 10 points (95 % interval ")
    assert depth.reason.endswith("which does not decide whether it is more than 5 points.") or depth.reason.endswith(
        ", more than 5 points."
    )
    params = find("within", {"metric": "params", "value": 11.7e6, "rel_tol": 0.02}, [Row({}, 0, {"params": 11_689_512})])
    assert params.reason == "Parameters are 11.69 M (one measurement), within 2 % of 11.7 M (off by 0.09 %)."
