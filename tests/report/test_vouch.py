"""Vouching: what other code has recorded counts on where today's code gives the very same numbers, and nowhere else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Project
from toyhouse import CLAIMS, HERE, THERE, House, experiments

from cnnstudy.config import Refused
from cnnstudy.report import plan, status, vouch

OLD = "0123456789ab"


@pytest.fixture
def fresh(house: House) -> Path:
    """The store of what is measured anew."""
    return house.root / "_build" / "remeasured"


def both(house: House, fresh: Path, experiment: str, old: dict[str, Any] | None = None, new: dict[str, Any] | None = None) -> None:
    """Quick measurements of an experiment, by old code in the records, by today's in the fresh store."""
    entries = house.entries("q91", experiment, "quick")
    house.record("q91", experiment, entries, **{"code": OLD, **(old or {})})
    house.record("q91", experiment, entries, **{"root": fresh, **(new or {})})


def result(experiment: str, **more: Any) -> vouch.Result:
    (found,) = [r for r in vouch.vouch(["q91"], **more) if r.experiment == experiment]
    return found


def stale() -> int:
    return status.pages(["q91"])[0].planned.stale


def test_identical_numbers_vouch_for_all_records_of_the_old_code(house: House, fresh: Path) -> None:
    both(house, fresh, "training", new={"threads": 2})
    house.record("q91", "training", house.entries("q91", "training", "standard"), code=OLD)
    assert stale() == 8 and len(vouch.stale("q91", "standard")) == 6
    before = (house.root / f"data/records/{HERE}/q91.jsonl").read_bytes()
    found = result("training")
    assert found.problem is None and (found.compared, found.records) == (2, 8) and found.row()["result"] == "vouched for"
    assert stale() == 0 and vouch.stale("q91", "standard") == [] and status.pages(["q91"])[0].planned.vouched == 8
    (line,) = house.lines()
    assert line["experiment"] == "training" and line["kinds"] == ["Cifar", "Recipe", "Toy"] and line["was"] == OLD
    assert line["is"] == plan.load("q91")["training"].code(house.entries("q91", "training", "quick")[0]["setup"])
    assert len(line["checked"]) == 2 and line["threads"] == [2] and set(line) == {
        "experiment", "kinds", "was", "is", "checked", "date", "threads"
    }  # fmt: skip
    assert (house.root / f"data/records/{HERE}/q91.jsonl").read_bytes() == before
    vouch.vouch(["q91"])
    assert len(house.lines()) == 1  # said once


def test_code_that_changes_again_is_not_vouched_for(house: House, fresh: Path) -> None:
    both(house, fresh, "squares")
    assert result("squares").problem is None and stale() == 0
    plans = experiments()
    plans["squares"].trial = "changed"
    house.page("q91", CLAIMS, plans)
    assert stale() == 3
    problem = result("squares").problem
    assert problem is not None and "which is not today's either" in problem and stale() == 3


@pytest.mark.parametrize(
    ("new", "words"),
    [
        ({"metrics": {"acc": 0.61}}, "acc was 0.6, is 0.61"),
        ({"metrics": {"acc": 0.6000000000000001}}, "acc was 0.6, is 0.6000000000000001 (in the last digits)"),
        ({"metrics": {"acc": 0.6, "loss": 1.0}}, "metrics were acc; they are acc, loss"),
        ({"metrics": {"acc": None}}, "acc was 0.6, is null"),
        ({"metrics": {}, "failed": "loss became nan"}, "failed was None, is 'loss became nan'"),
        ({"arrays": {"curve": np.ones(3)}}, "arrays was None, is ['curve']"),
        (
            {"metrics": {"acc": 0.6000000000000001}, "threads": 2},
            "(in the last digits; threads 1 then and 2 now, which alone may be the reason: measure it anew under the same)",
        ),
        ({"metrics": {"acc": 0.9}, "threads": 2}, "acc was 0.6, is 0.9 (threads 1 then and 2 now, which alone may be the reason"),
    ],
)
def test_any_difference_is_named_and_nothing_is_written(house: House, fresh: Path, new: dict[str, Any], words: str) -> None:
    both(house, fresh, "training", new=new)
    problem = result("training").problem
    assert problem is not None and words in problem
    assert house.lines() == [] and stale() == 2


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (np.array([1.0, np.nan]), np.array([1.0, np.nan]), None),
        (np.array([1.0, np.nan]), np.array([1.0, 2.0]), "array curve[1] was nan, is 2.0"),
        (np.array([1.0, 2.0]), np.array([1.0, np.nextafter(2.0, 3.0)]), "array curve[1] was 2.0, is 2.0000000000000004"),
        (np.ones(2), np.ones(3), "array curve was float64[2], is float64[3]"),
        (np.ones(2), np.ones(2, np.float32), "array curve was float64[2], is float32[2]"),
    ],
)
def test_arrays_are_compared_too(house: House, fresh: Path, old: Any, new: Any, problem: str | None) -> None:
    both(house, fresh, "squares", {"arrays": {"curve": old}}, {"arrays": {"curve": new}})
    found = result("squares").problem
    assert found is None if problem is None else found is not None and problem in found


def test_one_difference_among_many_is_enough(house: House, fresh: Path) -> None:
    entries = house.entries("q91", "squares", "quick")
    house.record("q91", "squares", entries, code=OLD)
    house.record("q91", "squares", entries[:2], root=fresh)
    house.record("q91", "squares", entries[2:], root=fresh, metrics={"square": 9.5, "ms": 4.5})
    problem = result("squares").problem
    assert problem is not None and "square was 9, is 9.5" in problem and house.lines() == []


def test_times_cannot_be_vouched_for(house: House, fresh: Path) -> None:
    both(house, fresh, "clock")
    problem = result("clock").problem
    assert problem is not None and "never repeat" in problem and house.lines() == []


def test_what_could_not_have_come_out_otherwise_proves_nothing(house: House, fresh: Path) -> None:
    echo = {"metrics": {"depth": 2, "kept": True, "share": 1.0, "none": None, "name": "x"}}
    entries = house.entries("q91", "training", "quick")[:1]
    house.record("q91", "training", entries, code=OLD, **echo)
    house.record("q91", "training", entries, root=fresh, **echo)
    problem = result("training").problem
    assert problem is not None and "could not have come out otherwise" in problem
    house.record("q91", "squares", house.entries("q91", "squares", "quick"), code=OLD)
    assert result("squares").problem == "nothing of it was measured anew"


def test_a_branch_that_was_not_taken_anew_is_named(house: House, fresh: Path) -> None:
    plans = experiments()
    plain = plans["training"].setups[2]
    plain["model"]["skip"] = False
    house.page("q91", CLAIMS, plans)
    both(house, fresh, "training")
    house.record("q91", "training", house.entries("q91", "training", "standard")[:1], code=OLD)
    assert result("training").problem == "nothing with model.skip = false was measured anew" and house.lines() == []


def test_kinds_of_config_are_vouched_for_one_by_one(house: House, fresh: Path) -> None:
    plans = experiments()
    one = plans["training"]
    one.kinds["Other"] = "cnnstudy.timing"
    one.setups[1]["model"]["kind"] = "Other"
    house.page("q91", CLAIMS, plans)
    shallow, other = house.entries("q91", "training", "quick")
    for entry, metrics in ((shallow, {"acc": 0.3}), (other, {"acc": 0.5})):
        house.record("q91", "training", [entry], code=OLD, metrics={"acc": 0.3})
        house.record("q91", "training", [entry], root=fresh, metrics=metrics)
    problems = {r.kinds: r.problem for r in vouch.vouch(["q91"])}
    assert problems["Cifar", "Recipe", "Toy"] is None and "acc was 0.3, is 0.5" in str(problems["Cifar", "Other", "Recipe"])
    assert [line["kinds"] for line in house.lines()] == [["Cifar", "Recipe", "Toy"]] and stale() == 1


def test_another_machine_or_no_store_is_refused(house: House, fresh: Path) -> None:
    with pytest.raises(Refused, match="nox -s remeasure"):
        vouch.vouch(["q91"])
    house.record("q91", "squares", house.entries("q91", "squares", "quick"), THERE, root=fresh)
    with pytest.raises(Refused, match=f"no measurements of {HERE}"):
        vouch.vouch(["q91"])


def test_a_torn_last_line_is_passed_over_and_other_damage_named(house: House, fresh: Path) -> None:
    both(house, fresh, "squares")
    vouch.vouch(["q91"])
    path = vouch.path(HERE)
    path.write_text(path.read_text() + '{"experiment": "sq')
    assert len(vouch.read(HERE)) == 1 and stale() == 0
    path.write_text('{"experiment": "sq\n' + path.read_text())
    with pytest.raises(Refused, match=rf"{HERE}/vouched.jsonl:1: damaged line"):
        vouch.read(HERE)


@pytest.mark.slow
def test_a_harmless_edit_is_vouched_for_and_not_measured_anew(project: Project) -> None:
    """From the notebook to ``run --stale``, as a user would do it; only one of two edited experiments is measured for the comparison."""
    quick = ("run", "--profile", "quick", "--measure-only")
    project.ok(*quick)
    notebook = project.root / "notebooks/q99_toy.ipynb"
    edited = notebook.read_text().replace("setup.n**2", "setup.n * setup.n").replace("random.random()}", "random.random() * 1}")
    notebook.write_text(edited)
    project.ok("plan", "--write")

    def counts() -> tuple[int, int]:
        row = next(row for row in json.loads(project.ok("status", "--json")) if row["profile"] == "quick")
        return row["stale"], row["vouched"]

    assert counts() == (9, 0)
    records = project.env["CNNSTUDY_RECORDS"]
    project.env["CNNSTUDY_RECORDS"] = str(project.root / "_build/remeasured")
    project.ok(*quick, "--only", "squares")
    project.env["CNNSTUDY_RECORDS"] = records
    said = project.run("vouch").stdout
    assert "vouched for" in said and "nothing of it was measured anew" in said
    assert counts() == (6, 3)
    before = len(project.lines())
    given = json.dumps({"profile": "quick", "machine": "this"})
    measuring = [sys.executable, "-m", "cnnstudy.report.cells", "q99", given]  # what --stale starts, for all of the page's experiments
    subprocess.run(measuring, check=True, env=project.env | {"CNNSTUDY_STALE": "1"}, cwd=project.root, capture_output=True)
    assert [line["experiment"] for line in project.lines()[before:]] == ["noise"] * 6 and counts() == (0, 3)


def test_pages_that_share_an_experiment_are_vouched_for_together(house: House, fresh: Path) -> None:
    """A voucher names no page: what came out otherwise on one page is not vouched for by another."""
    house.page("q92")
    plans = experiments()
    plans["squares"].setups.append({"n": 4})
    plans["squares"].profiles["quick"].append((3, [0]))
    house.page("q92", CLAIMS, plans)
    both(house, fresh, "squares")
    four = house.entries("q92", "squares", "quick")[3:]
    house.record("q92", "squares", four, code=OLD)
    house.record("q92", "squares", four, root=fresh, metrics={"square": 17, "ms": 6.0})
    found = result("squares")
    assert (found.question, found.compared, found.records) == ("q91", 4, 4) and "square was 16, is 17" in str(found.problem)
    assert house.lines() == [] and stale() == 3
