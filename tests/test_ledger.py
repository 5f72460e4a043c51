"""The ledgers that are committed: they load, name what exists, and their rules can be met by what is planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cnnstudy.report import claims, plan, published
from cnnstudy.report.cells import notebook_path, questions
from cnnstudy.report.study import Study

ROOT = Path(__file__).parents[1]
QUESTIONS = claims.questions()


def test_there_are_questions_and_each_has_its_notebook() -> None:
    assert QUESTIONS and questions() == QUESTIONS


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_ledger_loads_and_every_experiment_is_planned(question: str) -> None:
    ledger = claims.load(question)
    planned = plan.load(question)
    for name, experiment in ledger.experiments.items():
        if experiment.kind == "published":
            assert published.rows(str(experiment.table))
        else:
            assert name in planned, f"{name} is in the ledger, but no cell measures it"
            assert planned[name].protocol == experiment.protocol
    assert set(planned) <= set(ledger.experiments)


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_claim_gets_a_verdict_from_the_records(question: str) -> None:
    verdicts = Study(question).judge()
    assert [v.id for v in verdicts] == [c.id for c in claims.load(question).claims]
    for verdict in verdicts:
        assert verdict.reason.strip()
        assert verdict.outcome in ("confirmed", "refuted", "mixed", "undecided", "untested")


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_prose_was_written_for_the_verdicts_it_stands_above(question: str) -> None:
    """``study.verdicts(written_for={...})`` names the outcomes that the page's text relies on."""
    import ast
    import json

    cells = json.loads(notebook_path(question).read_text())["cells"]
    source = next("".join(c["source"]) for c in cells if "study.verdicts(" in "".join(c["source"]))
    call = next(n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "study.verdicts")
    written_for = ast.literal_eval(next(k.value for k in call.keywords if k.arg == "written_for"))
    assert written_for
    now = {v.id: v.outcome for v in Study(question).judge()}
    assert {name: now[name] for name in written_for} == written_for


@pytest.mark.parametrize("question", QUESTIONS)
def test_citations_of_the_page_are_in_the_bibliography(question: str) -> None:
    keys = set(re.findall(r"^@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text(), re.M))
    cited = re.findall(r"\{cite:[pt]\}`([^`]+)`", notebook_path(question).read_text())
    assert {key.strip() for group in cited for key in group.split(",")} <= keys


def test_pages_that_share_a_measurement_make_it_alike() -> None:
    """A record is found by experiment, setup and seed: two pages that mean different things by one name would take each other's."""
    makers: dict[str, dict[str, str]] = {}
    for question in questions():
        for experiment in plan.load(question).values():
            for entry in experiment.entries("full") + experiment.entries("standard") + experiment.entries("quick"):
                makers.setdefault(entry["key"], {})[f"{question}.{experiment.name}"] = experiment.trial
    clashes = sorted({" and ".join(sorted(by)) for by in makers.values() if len(set(by.values())) > 1})
    assert not clashes, f"one name for two measurements: {'; '.join(clashes)}"


def test_a_mixed_verdict_names_what_holds_and_what_fails() -> None:
    verdicts = {v.id: v for q in QUESTIONS for v in Study(q).judge()}
    reason = verdicts["q33.residual-gradient-is-sum"].reason
    assert "“Pre-activation blocks with identity shortcut” holds" in reason and "” fails" in reason
