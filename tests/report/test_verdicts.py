"""Verdicts: three-valued expressions, the choice of rows, outcomes end to end, and what is remembered."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnnstudy.config import Refused, key
from cnnstudy.report import claims, outcomes, verdicts
from cnnstudy.report.rules import Finding
from cnnstudy.report.verdicts import Verdict, judge_question

LEDGERS = Path(__file__).parent / "ledgers"
THREE = (True, False, None)

# expressions


def kleene_and(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def kleene_not(a: bool | None) -> bool | None:
    return None if a is None else not a


@pytest.mark.parametrize(("a", "b"), list(itertools.product(THREE, THREE)))
def test_kleene_truth_tables(a: bool | None, b: bool | None) -> None:
    states = {"a": a, "b": b}
    assert outcomes.parse("a and b").value(states) is kleene_and(a, b)
    assert outcomes.parse("a or b").value(states) is kleene_not(kleene_and(kleene_not(a), kleene_not(b)))
    assert outcomes.parse("not a").value(states) is kleene_not(a)


@pytest.mark.parametrize("values", list(itertools.product(THREE, repeat=3)))
def test_an_expression_is_known_exactly_as_far_as_every_completion_agrees(values: tuple[bool | None, ...]) -> None:
    states = dict(zip("abc", values, strict=True))
    for text in ("a and (b or not c)", "count(a, b, c) >= 2", "not a or b and c", "count(not a, not b, not c) >= 1"):
        expression = outcomes.parse(text)
        completions = {
            expression.value(dict(zip("abc", full, strict=True)))
            for full in itertools.product((True, False), repeat=3)
            if all(v is None or v == f for v, f in zip(values, full, strict=True))
        }
        assert expression.value(states) is (completions.pop() if len(completions) == 1 else None)


def test_precedence_and_names() -> None:
    assert outcomes.parse("a or b and not c").tree == outcomes.parse("a or (b and (not c))").tree
    assert outcomes.parse("not not deep-plain and x_1 or deep-plain").names == ("deep-plain", "x_1")
    assert outcomes.parse("otherwise").value({}) is True


@pytest.mark.parametrize(
    "text",
    ["", "a b", "a and", "(a", "a)", "and a", "count(a)", "count(a) >= 2", "count(a, b) >= 0", "count() >= 1", "a > 1", "otherwise and a",
     "__import__('os')", "a.b", "a; b", 3, None],
)  # fmt: skip
def test_anything_else_is_refused(text: object) -> None:
    with pytest.raises(Refused, match="expression "):
        outcomes.parse(text)


def exprs(**texts: str) -> dict[str, outcomes.Expression]:
    return {name: outcomes.parse(text) for name, text in texts.items()}


def test_a_later_outcome_waits_for_an_earlier_one_that_is_open() -> None:
    those = exprs(confirmed="a and b", refuted="not a", mixed="otherwise")
    assert outcomes.outcome(those, {"a": True, "b": None}) is None
    assert outcomes.outcome(those, {"a": True, "b": False}) == "mixed"
    assert outcomes.outcome(those, {"a": False, "b": None}) == "refuted"
    assert outcomes.outcome(exprs(confirmed="a", refuted="b"), {"a": False, "b": False}) == "none"


def test_relevant_are_the_unknowns_that_could_still_turn_the_outcome() -> None:
    those = exprs(confirmed="a and b or c", refuted="not c")
    assert outcomes.relevant(those, {"a": None, "b": False, "c": None}) == {"c"}
    assert outcomes.relevant(those, {"a": None, "b": True, "c": None}) == {"a", "c"}
    assert outcomes.relevant(exprs(confirmed="a or not a", refuted="not a"), {"a": None}) == set()
    assert outcomes.relevant(exprs(confirmed="a and not b or b and not a", refuted="a"), {"a": None, "b": None}) == {"a", "b"}


# one claim

STATE = {"h": "holds", "f": "fails", "u": "unclear", "m": "missing"}


def claim(confirmed: str, refuted: str, mixed: str | None = None) -> claims.Claim:
    those = exprs(confirmed=confirmed, refuted=refuted) | (exprs(mixed=mixed) if mixed else {})
    names = sorted({n for e in those.values() for n in e.names})
    conditions = {n: {"rule": "above", "experiment": "e", "metric": "acc", "margin": 0.5} for n in names}
    written = {"conditions": conditions, **{n: e.text for n, e in those.items()}}
    return claims.Claim("q01.x", "S.", "value", ("exact",), "t", conditions, those, written=written)


def finding(letter: str) -> Finding:
    n = 0 if letter == "m" else 3
    estimate = None if letter == "m" else 0.7
    return Finding(STATE[letter], estimate, estimate, estimate, n, f"Reason {letter}.")  # type: ignore[arg-type]


def judged(one: claims.Claim, **letters: str) -> Verdict:
    return verdicts.judge(one, {n: finding(s) for n, s in letters.items()})


@pytest.mark.parametrize(
    ("a", "b", "outcome"),
    [("h", "h", "confirmed"), ("h", "f", "mixed"), ("f", "h", "refuted"), ("f", "f", "refuted"), ("f", "u", "refuted"),
     ("f", "m", "refuted"), ("h", "u", "undecided"), ("h", "m", "untested"), ("u", "m", "untested"), ("m", "u", "untested"),
     ("u", "f", "undecided"), ("m", "m", "untested")],
)  # fmt: skip
def test_outcomes_of_two_conditions(a: str, b: str, outcome: str) -> None:
    verdict = judged(claim("a and b", "not a", "a and not b"), a=a, b=b)
    assert verdict.outcome == outcome
    assert verdict.reason.endswith(".") and "\n" not in verdict.reason
    if outcome == "untested":
        assert verdict.reason.startswith("Missing for ")


def test_a_missing_condition_that_no_longer_matters_does_not_untest() -> None:
    verdict = judged(claim("(a and b) or c", "not c"), a="m", b="f", c="u")
    assert verdict.outcome == "undecided"
    assert "c is unclear" in verdict.reason and "missing" not in verdict.reason.lower()


def test_a_combination_that_is_none_of_the_outcomes_is_undecided() -> None:
    verdict = judged(claim("a and b", "not a and not b"), a="h", b="f")
    assert verdict.outcome == "undecided" and "none of the outcomes" in verdict.reason


def test_an_outcome_that_every_completion_shares_stands() -> None:
    assert judged(claim("a and b or a and not b", "not a"), a="h", b="u").outcome == "confirmed"


def test_the_reason_names_what_the_outcome_hangs_on() -> None:
    verdict = judged(claim("a and b", "not a", "a and not b"), a="h", b="f")
    assert verdict.reason == "Condition a holds: reason h; condition b fails: reason f."
    assert (verdict.estimate, verdict.n, verdict.rule) == (0.7, 3, "above")
    single = judged(claim("a", "not a"), a="f")
    assert single.reason == "Reason f."


def test_untested_by_nature_says_why() -> None:
    one = replace(claim("a", "not a"), conditions={}, expressions={}, untested="no machine is large enough")
    verdict = verdicts.judge(one, {})
    assert (verdict.outcome, verdict.reason, verdict.n) == ("untested", "No machine is large enough.", 0)


# end to end: plan and records of the fixture ledgers


class Plan:
    """What ``plan.Experiment`` offers: the expected measurements of each profile."""

    def __init__(self, name: str, profiles: Mapping[str, list[tuple[dict[str, Any], list[int]]]]) -> None:
        self.name, self.profiles = name, profiles

    def entries(self, profile: str) -> list[dict[str, Any]]:
        return [
            {"setup": setup, "seed": seed, "key": key(self.name, setup, seed)}
            for setup, seeds in self.profiles.get(profile, [])
            for seed in seeds
        ]

    def records(self, profile: str, measure: Callable[[dict[str, Any], int], dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"key": e["key"], "experiment": self.name, "setup": e["setup"], "seed": e["seed"], "metrics": measure(e["setup"], e["seed"])}
            for e in self.entries(profile)
        ]


SEEDS = {"quick": [0], "standard": [0, 1, 2], "full": [0, 1, 2, 3, 4]}


def everywhere(name: str, setups: list[dict[str, Any]], seeds: Mapping[str, list[int]] = SEEDS) -> Plan:
    return Plan(name, {p: [(s, those) for s in setups] for p, those in seeds.items()})


FAMILIES = ("Vgg", "ResNet", "MobileNetV2", "EfficientNet")
HARDENED = everywhere("hardened", [{"model": {"kind": k}, "training": t} for k in FAMILIES for t in ("standard", "adversarial")])
DEPTHS = everywhere("depth_sweep", [{"model": {"depth": d, "skip": s}} for d in (20, 110) for s in (True, False)])
INITS = everywhere("better_init", [{"model": {"depth": d, "init": i}} for d, i in ((20, "he"), (110, "he"), (110, "delta"))])
GRADIENTS = everywhere(
    "gradient_by_depth", [{"model": {"depth": d, "skip": False, "norm": n}} for d in (8, 56, 110) for n in ("batch", "none")]
)


def q42(gains: Mapping[str, float], noise: float = 0.01, profile: str = "standard", drop: int = 0) -> Verdict:
    def measure(setup: dict[str, Any], seed: int) -> dict[str, Any]:
        gain = gains[setup["model"]["kind"]] if setup["training"] == "adversarial" else 0
        return {"robust_acc": {"4": 0.05 + gain + noise * (seed - 1) * (1 if gain else -1)}}

    records = HARDENED.records(profile, measure)
    ledger = claims.load("q42", LEDGERS)
    found = judge_question(ledger, {"hardened": HARDENED}, {"cpu": records[drop:]}, ["cpu"], {})
    return next(v for v in found if v.id == "q42.adversarial-training-all-architectures")


def test_four_families_confirmed_mixed_refuted_undecided_untested() -> None:
    good = dict.fromkeys(FAMILIES, 0.3)
    assert q42(good).outcome == "confirmed"
    assert q42(good | {"Vgg": 0.05}).outcome == "mixed"
    assert q42(good | {"Vgg": 0.05, "ResNet": 0.02}).outcome == "refuted"
    assert q42(good, noise=0.3).outcome == "undecided"
    part = q42(good, drop=6)
    assert part.outcome == "untested"
    assert part.reason == "Missing for vgg: needs standard: 0 of 6 measurements recorded."
    quick = q42(good, profile="quick")
    assert quick.outcome == "untested" and "needs standard: 2 of 6 measurements recorded" in quick.reason


def test_the_best_complete_profile_and_the_first_machine_are_taken() -> None:
    def verdict(records: Mapping[str, list[dict[str, Any]]], machines: list[str]) -> Verdict:
        ledger = claims.load("q42", LEDGERS)
        return judge_question(ledger, {"hardened": HARDENED}, records, machines, {})[1]

    def good(setup: dict[str, Any], seed: int) -> dict[str, Any]:
        return {"robust_acc": {"4": 0.4 + seed / 100 if setup["training"] == "adversarial" else 0.1 - seed / 100}}

    full, standard = HARDENED.records("full", good), HARDENED.records("standard", good)
    assert (verdict({"a": standard, "b": full}, ["a", "b"]).machine, verdict({"a": standard, "b": full}, ["a", "b"]).profile) == (
        "b",
        "full",
    )
    assert verdict({"a": full, "b": full}, ["b", "a"]).machine == "b"
    partly = verdict({"a": standard, "b": full[:-1]}, ["b", "a"])  # only the last family falls back
    assert (partly.machine, partly.profile, partly.n) == ("b", "full", 5)
    assert {n: (s.machines, s.profiles) for n, s in partly.sources.items()}["efficientnet"] == (("b",), ("standard",))


def test_difficult_but_repaired_is_mixed_and_failures_count() -> None:
    ledger = claims.load("q33", LEDGERS)
    plan = {"depth_sweep": DEPTHS, "better_init": INITS}

    def verdict(plain110: float | None, repaired: float) -> Verdict:
        def sweep(setup: dict[str, Any], seed: int) -> dict[str, Any]:
            return {"train_acc": 0.9 + 0.01 * (seed % 2) if setup["model"]["depth"] == 20 else plain110 or 0.0}

        def inits(setup: dict[str, Any], seed: int) -> dict[str, Any]:
            return {
                "train_acc": {("he", 20): 0.9 + 0.01 * (seed % 2), ("he", 110): 0.5}.get(
                    (setup["model"]["init"], setup["model"]["depth"]), repaired
                )
            }

        records = DEPTHS.records("standard", sweep) + INITS.records("standard", inits)
        if plain110 is None:
            broken = [
                r | {"metrics": {}, "failed": "loss is not finite"}
                for r in records
                if r["setup"]["model"]["depth"] == 110 and "skip" in r["setup"]["model"]
            ]
            records = [r for r in records if r["key"] not in {b["key"] for b in broken}] + broken
        return judge_question(ledger, plan, {"cpu": records}, ["cpu"], {})[1]

    assert verdict(0.5, 0.85).outcome == "mixed"
    assert verdict(0.5, 0.55).outcome == "confirmed"
    assert verdict(0.89, 0.85).outcome == "refuted"
    failed = verdict(None, 0.55)
    assert failed.outcome == "confirmed" and failed.findings["difficult"].estimate == pytest.approx(0.8, abs=0.02)


def test_gradients_that_leave_the_band_at_every_depth() -> None:
    ledger, plan = claims.load("q33", LEDGERS), {"gradient_by_depth": GRADIENTS}

    def verdict(batch: float, none: float) -> str:
        def measure(setup: dict[str, Any], seed: int) -> dict[str, Any]:
            return {"first_last_ratio": (batch if setup["model"]["norm"] == "batch" else none) * (1 + 0.05 * seed)}

        return judge_question(ledger, plan, {"cpu": GRADIENTS.records("standard", measure)}, ["cpu"], {})[0].outcome

    assert verdict(1e5, 1e-9) == "confirmed"
    assert verdict(1.0, 1e-9) == "mixed"
    assert verdict(1.0, 2.0) == "refuted"


def test_latency_is_judged_on_every_machine_and_agreement_needs_two() -> None:
    models = ("resnet18", "resnet50", "resnet101")
    cost = everywhere("resnet_cost", [{"model": {"name": m}} for m in models], dict.fromkeys(SEEDS, [0]))
    speed = everywhere(
        "resnet_latency", [{"model": {"name": m}, "timing": {"batch": b}} for m in models for b in (1, 32)], dict.fromkeys(SEEDS, [0])
    )

    def slow(setup: dict[str, Any], seed: int) -> dict[str, Any]:
        return {"samples_ms": [5.0 * (1 + models.index(setup["model"]["name"])) + i / 50 for i in range(30)]}

    def odd(setup: dict[str, Any], seed: int) -> dict[str, Any]:
        return {"samples_ms": [9.0 - models.index(setup["model"]["name"]) + i / 50 for i in range(30)]}

    sizes = cost.records("quick", lambda s, _: {m: 7 + models.index(s["model"]["name"]) for m in ("params", "macs")} | {"blocks": [2]})
    plan = {"resnet_cost": cost, "resnet_latency": speed}
    ledger = claims.load("q03", LEDGERS)

    def verdict(**machines: list[dict[str, Any]]) -> Verdict:
        return judge_question(ledger, plan, machines, list(machines), {})[2]

    both = verdict(cpu=sizes + speed.records("quick", slow), gpu=speed.records("quick", slow))
    assert both.outcome == "confirmed" and both.sources["fastest"].machines == ("cpu", "gpu")
    assert both.profile == "quick"  # every profile plans the same here; the least of them is named
    other = verdict(cpu=sizes + speed.records("quick", slow), gpu=speed.records("quick", odd))
    assert other.outcome == "mixed" and "machine gpu" in other.findings["fastest"].reason

    zoo = everywhere("zoo_cost", [{"model": {"name": m}, "batch": b} for m in models for b in (1, 8)], dict.fromkeys(SEEDS, [0]))
    macs = zoo.records("quick", lambda s, _: {"macs": 100 + models.index(s["model"]["name"])})
    wrong = [r | {"metrics": {"macs": 100}} for r in macs]
    q20 = claims.load("q20", LEDGERS)

    def agree(**machines: list[dict[str, Any]]) -> Verdict:
        q20_only = replace(q20, claims=q20.claims[2:])
        return judge_question(q20_only, {"zoo_cost": zoo}, machines, list(machines), {})[0]

    assert agree(cpu=macs).outcome == "untested" and "1 of at least 2 machines" in agree(cpu=macs).reason
    assert agree(cpu=macs, gpu=macs).outcome == "confirmed"
    assert agree(cpu=macs, gpu=wrong).outcome == "refuted"


def test_published_figures_are_judged_without_a_plan() -> None:
    ledger = claims.load("q03", LEDGERS)
    verdict = next(v for v in judge_question(ledger, {}, {}, [], {}) if v.id == "q03.resnet101-more-accurate")
    assert verdict.machine == verdict.profile == "published"
    assert verdict.outcome in ("confirmed", "mixed", "undecided", "untested")


def test_a_path_that_no_planned_setup_has_is_refused_with_claim_and_condition() -> None:
    plan = everywhere("depth_sweep", [{"model": {"depht": d, "skip": False}} for d in (20, 110)])
    with pytest.raises(
        Refused,
        match=r"very-deep-plain-untrainable: condition difficult: no setup of depth_sweep has the path 'model\.depth'; valid: model\.depht",
    ):
        judge_question(claims.load("q33", LEDGERS), {"depth_sweep": plan}, {}, [], {})


def test_a_profile_that_does_not_plan_a_side_is_passed_over() -> None:
    plan = Plan("depth_sweep", {"full": [({"model": {"depth": 20, "skip": False}}, [0, 1, 2])], "standard": DEPTHS.profiles["standard"]})
    records = DEPTHS.records("standard", lambda s, seed: {"train_acc": 0.95 if s["model"]["depth"] == 20 else 0.5 + seed / 100})
    found = judge_question(claims.load("q33", LEDGERS), {"depth_sweep": plan}, {"cpu": records}, ["cpu"], {})[1]
    assert found.sources["difficult"].profiles == ("standard",)
    only = Plan("depth_sweep", {"quick": DEPTHS.profiles["quick"]})
    found = judge_question(claims.load("q33", LEDGERS), {"depth_sweep": only}, {"cpu": records}, ["cpu"], {})[1]
    assert "no profile from standard up measures this selection of depth_sweep" in found.reason


# what is printed and what is remembered


def test_json_has_exactly_the_promised_fields() -> None:
    (row,) = verdicts.to_json([judged(claim("a", "not a"), a="h")])
    assert list(row) == ["id", "outcome", "estimate", "low", "high", "n", "machine", "profile", "rule", "reason"]
    json.dumps(row, allow_nan=False)


def test_the_board_counts_every_outcome() -> None:
    those = [judged(claim("a", "not a"), a=s) for s in "hhfum"]
    assert verdicts.board(those) == {"claims": 5, "confirmed": 2, "mixed": 0, "refuted": 1, "undecided": 1, "untested": 1}


def test_the_digest_changes_with_the_rule_and_with_nothing_else() -> None:
    one = claim("a", "not a")
    same = replace(one, statement="Other words.", test="other", note="n")
    harder = replace(one, written={**one.written, "conditions": {"a": {**one.conditions["a"], "margin": 0.6}}})
    assert verdicts.rule_digest(one) == verdicts.rule_digest(same)
    assert verdicts.rule_digest(one) != verdicts.rule_digest(harder)
    assert verdicts.rule_digest(one) != verdicts.rule_digest(replace(one, written={**one.written, "refuted": "not a and not a"}))
    assert len(verdicts.rule_digest(one)) == 12


def test_a_rule_changed_after_records_exist_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "q01.json"
    before, now = judged(claim("a", "not a"), a="h"), judged(claim("a", "not a and not a"), a="h")
    unmeasured = replace(judged(claim("a", "not a"), a="m"), id="q01.y")
    assert verdicts.write_history("q01", [before, unmeasured], "2026-01-05", path)
    history = verdicts.read_history("q01", path)
    assert history == {"q01.x": {"digest": before.digest, "first_judged": "2026-01-05", "outcome": "confirmed"}}
    assert not verdicts.write_history("q01", [before], "2026-01-09", path)
    assert verdicts._changed(history["q01.x"], before.digest) is None
    assert verdicts._changed(history["q01.x"], now.digest) == "The rule was changed after records existed (first judged on 2026-01-05)."
    verdicts.write_history("q01", [now], "2026-02-01", path)
    again = verdicts.read_history("q01", path)["q01.x"]
    assert again["first_judged"] == "2026-01-05"
    assert verdicts._changed(again, now.digest) == "The rule was changed on 2026-02-01 after records existed (first judged on 2026-01-05)."
    path.write_text("{")
    with pytest.raises(Refused, match="q01.json is damaged"):
        verdicts.read_history("q01", path)
