"""The ledger: real claims load, and whatever is wrong is refused in one line that says where and what is valid."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cnnstudy.config import Refused
from cnnstudy.report import claims
from cnnstudy.report.rules import RULES

LEDGERS = Path(__file__).parent / "ledgers"
GOOD = """\
question: q07
slug: slug
title: Title
part: Part
profiles: {quick: {seeds: [0]}, standard: {seeds: [0, 1, 2]}, full: {seeds: [0, 1, 2, 3, 4]}}
experiments:
  sweep: {kind: trained, shows: accuracy against depth}
  cost: {kind: exact, shows: parameters}
claims:
  - id: q07.first
    statement: A statement.
    kind: value
    evidence: [exact]
    test: Confirmed if so.
    conditions:
      small: {rule: below, experiment: cost, metric: params, margin: 1e6}
      good: {rule: above, experiment: sweep, metric: acc, margin: 0.9, min_seeds: 3}
    confirmed: small and good
    refuted: not small or not good
  - id: q07.second
    statement: Another.
    kind: trend
    evidence: [trained]
    test: None.
    untested: No profile of ours could ever decide it.
citations: [a paper]
"""


def parse(old: str = "", new: str = "", text: str = GOOD) -> claims.Ledger:
    assert old in text
    return claims.parse(text.replace(old, new, 1) if old else text, Path("q07.yaml"))


@pytest.mark.parametrize("question", ["q03", "q20", "q33", "q42"])
def test_real_claims_can_be_expressed(question: str) -> None:
    ledger = claims.load(question, LEDGERS)
    assert ledger.question == question and ledger.claims
    for claim in ledger.claims:
        assert claim.untested or {"confirmed", "refuted"} <= claim.outcomes.keys()
        for condition in claim.conditions.values():
            assert condition["rule"] in RULES
            assert condition["needs"] in ("quick", "standard", "full")


def test_the_fixtures_use_most_rules() -> None:
    used = {c["rule"] for q in claims.questions(LEDGERS) for claim in claims.load(q, LEDGERS).claims for c in claim.conditions.values()}
    assert len(used) >= 8


def test_defaults_come_from_the_experiment() -> None:
    first = parse().claims[0].conditions
    assert (first["small"]["needs"], first["small"]["min_seeds"], first["small"]["kind"]) == ("quick", 1, "exact")
    assert (first["good"]["needs"], first["good"]["min_seeds"], first["good"]["kind"]) == ("standard", 3, "trained")
    told = parse("kind: trained,", "kind: trained, needs: full,").claims[0].conditions
    assert told["good"]["needs"] == "full"
    assert parse("1e6", "1e6, needs: standard").claims[0].conditions["small"]["needs"] == "standard"


def test_the_digest_material_is_what_is_written() -> None:
    first = parse().claims[0].written
    assert "needs" not in first["conditions"]["small"] and first["confirmed"] == "small and good"


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert parse("margin: 1e6", "margin: 1e-4").claims[0].conditions["small"]["margin"] == 1e-4
    assert parse("margin: 1e6", "margin: 2.5E+3").claims[0].conditions["small"]["margin"] == 2500


SMALL = "{rule: below, experiment: cost, metric: params, margin: 1e6}"
REFUSALS = [
    ("question: q07", "question: q08", "q07.yaml:1: question is 'q08' in the file of q07"),
    ("slug: slug\n", "", "q07.yaml:1: the ledger lacks its 'slug'"),
    ("part: Part", "prat: Part", "unknown field of the ledger 'prat' (did you mean part?); valid: question, slug, title, part,"),
    ("standard: {seeds: [0, 1, 2]}", "standard: {epochs: 2}", "profile 'standard': parameter 'epochs' is not in both"),
    (", full: {seeds: [0, 1, 2, 3, 4]}", "", "profiles lacks 'full'"),
    (
        "kind: exact, shows: parameters",
        "kind: exakt, shows: parameters",
        "q07.yaml:8: experiment cost: unknown experiment kind 'exakt' (did you mean exact?)",
    ),
    ("kind: exact, shows: parameters", "kind: exact", "experiment cost lacks its 'shows'"),
    ("kind: exact, shows: parameters", "kind: exact, shows: p, protocol: 0", "protocol is 0; expected 1, 2, ..."),
    ("kind: exact, shows: parameters", "kind: exact, shows: p, exclusive: 1", "exclusive is 1; expected true or false"),
    ("kind: exact, shows: parameters", "kind: published, shows: p, table: nope", "unknown published table 'nope'"),
    ("kind: exact, shows: parameters", "kind: exact, shows: p, table: imagenet", "table is for experiments of kind published"),
    ("q07.second", "q07.first", "q07.yaml:20: q07.first: this id is given twice"),
    ("id: q07.first", "id: q08.first", "q07.yaml:10: q08.first: id 'q08.first' does not match its question; expected q07."),
    ("id: q07.first", "id: q07.First_one", "does not match its question"),
    ("kind: value", "kind: valued", "q07.first: unknown claim kind 'valued' (did you mean value?); valid: value, mechanism,"),
    ("evidence: [exact]", "evidence: [exact, measured]", "q07.first: unknown evidence 'measured'; valid: exact, hardware, trained,"),
    ("    test: Confirmed if so.\n", "", "q07.first: a claim lacks its 'test'"),
    ("    kind: value\n", "    kind: value\n    expect: 3\n", "q07.first: unknown field of a claim 'expect'"),
    ("    untested: No", "    confirmed: a\n    untested: No", "untested claims have no 'confirmed'"),
    ("    untested: No profile of ours could ever decide it.\n", "", "q07.second: a claim needs conditions, or untested:"),
    (
        "rule: below",
        "rule: bellow",
        "q07.yaml:16: q07.first: condition small: unknown rule 'bellow' (did you mean below?); valid: equal, within,",
    ),
    ("experiment: cost", "experiment: costs", "condition small: unknown experiment 'costs' (did you mean cost?); valid: sweep, cost"),
    (", margin: 1e6", "", "q07.yaml:16: q07.first: condition small: below lacks its 'margin'"),
    ("margin: 1e6", "margin: much", "margin is 'much'; expected a number"),
    ("margin: 1e6", "margin: true", "margin is True; expected a number"),
    ("margin: 1e6", "margin: 1e6, treshold: 3", "condition small: unknown field of below 'treshold'"),
    ("margin: 1e6", "margin: 1e6, a: {x: 1}", "unknown field of below 'a'"),
    ("margin: 1e6", "margin: 1e6, reduce: average", "unknown reduce 'average'; valid: mean, median, min, max, last"),
    ("margin: 1e6", "margin: 1e6, needs: overnight", "unknown needs 'overnight'; valid: quick, standard, full"),
    ("margin: 1e6", "margin: 1e6, at: depth", "at is 'depth'; expected {path: value}"),
    ("margin: 1e6", "margin: 1e6, at: {depth: {from: 3}}", "unknown comparison of depth 'from'; valid: low, high, not"),
    ("margin: 1e6", "margin: 1e6, at: {pick: {max: acc}}", "pick is"),
    ("margin: 1e6", "margin: 1e6, log: yes please", "log is 'yes please'; expected true"),
    ("margin: 1e6", "margin: 1e6, interval_below: 3", "interval_below 3 must not be under the margin"),
    ("margin: 1e6", "margin: 1e6, min_machines: 2", "min_machines needs machines: all"),
    ("margin: 1e6", "margin: 1e6, min_seeds: 0", "min_seeds is 0; expected 1, 2, ..."),
    ("margin: 1e6", "margin: 1e6, margin: 2e6", "q07.yaml:16: 'margin' is given twice"),
    ("min_seeds: 3", "min_seeds: 1", "min_seeds is 1 for a trained experiment; one seed has no interval"),
    (SMALL, "{rule: equal, experiment: cost, metric: params}", "equal needs exactly one of value, same"),
    (SMALL, "{rule: equal, experiment: cost, metric: params, value: 3, same: true}", "equal needs exactly one of value, same"),
    (SMALL, "{rule: within, experiment: cost, metric: params, value: 3}", "within needs value with one of rel_tol and abs_tol"),
    (SMALL, "{rule: within, experiment: cost, metric: params, low: 3, high: 2}", "low 3 is above high 2"),
    (SMALL, "{rule: ordering, experiment: cost, metric: p, margin: 0, direction: up, groups: [{a: 1}, {a: 2}]}", "unknown direction 'up'"),
    (SMALL, "{rule: ordering, experiment: cost, metric: p, margin: 0, direction: increasing, groups: [{a: 1}]}", "a list of two or more"),
    (SMALL, "{rule: correlation, experiment: cost, metric: p, metric_b: q}", "correlation needs at least one of low, high"),
    (SMALL, "{experiment: cost, metric: p}", "condition small: lacks its 'rule'; valid: equal,"),
    ("      small: {", "      and: {", "condition name 'and': expected a word"),
    (
        "confirmed: small and good",
        "confirmed: small and god",
        "unknown condition in 'confirmed' 'god' (did you mean good?); valid: small, good",
    ),
    ("confirmed: small and good", "confirmed: small", "no error"),
    ("refuted: not small or not good", "refuted: not small", "no error"),
    (
        "confirmed: small and good\n    refuted: not small or not good",
        "confirmed: small\n    refuted: not small",
        "condition 'good' is never used",
    ),
    ("    refuted: not small or not good\n", "", "lacks its 'refuted': a claim must be able to come out either way"),
    ("refuted: not small or not good", "refuted: small and good", "no combination of its conditions can make it refuted"),
    (
        "confirmed: small and good",
        "confirmed: small and",
        "confirmed: expression 'small and': expected the name of a condition, found 'the end'",
    ),
    ("confirmed: small and good", "confirmed: small & good", "unexpected '&'; valid: names, and, or, not"),
    ("citations: [a paper]", "citations: a paper", "citations is not a list of texts"),
    ("slug: slug", "slug: [", "q07.yaml:4: not valid YAML"),
]


@pytest.mark.parametrize(("old", "new", "message"), REFUSALS)
def test_refusals_are_one_line_with_place_and_choices(old: str, new: str, message: str) -> None:
    if message == "no error":
        parse(old, new)
        return
    with pytest.raises(Refused) as caught:
        parse(old, new)
    said = str(caught.value)
    assert message in said
    assert said.startswith("q07.yaml") and "\n" not in said


def test_an_unknown_question_names_the_known_ones() -> None:
    with pytest.raises(Refused, match="unknown question 'q99'.*valid: q03, q20, q33, q42"):
        claims.load("q99", LEDGERS)


def test_importing_the_ledger_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "scipy", "pandas"}
    code = f"import sys, cnnstudy.report.claims, cnnstudy.report.verdicts; print({heavy} & sys.modules.keys() or 'none')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "none"
