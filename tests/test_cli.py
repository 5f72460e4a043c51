"""The command line on a toy project, as a user would run it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

import pytest
from conftest import Project

from cnnstudy.report.verdicts import JSON_FIELDS


def test_run_judge_and_run_again(project: Project) -> None:
    out = project.ok("run", "q99", "--profile", "quick", "--no-site")
    assert "9 to measure" in out and "q99: done" in out
    records = project.lines()
    assert len(records) == 9
    failed = [r for r in records if "failed" in r]
    assert [r["failed"] for r in failed] == ["loss became nan at step 7"] and failed[0]["metrics"] == {}
    assert all(
        set(r["provenance"]) >= {"machine", "device", "threads", "python", "torch", "commit", "dirty", "code", "started", "seconds"}
        for r in records
    )
    page = json.loads((project.root / "_build/executed/q99_toy.ipynb").read_text())
    assert "q99-two-squared" in json.dumps(page) and json.loads((project.root / "_build/status.json").read_text()) == {"q99": "done"}

    before = project.records.read_bytes()
    assert "up to date" in project.ok("run", "q99", "--profile", "quick", "--no-site")
    assert project.records.read_bytes() == before

    rows = json.loads(project.ok("verdicts", "--json"))
    assert [tuple(r)[: len(JSON_FIELDS)] for r in rows] == [JSON_FIELDS, JSON_FIELDS]
    assert {r["id"]: r["outcome"] for r in rows} == {"q99.two-squared": "confirmed", "q99.noise-is-small": "untested"}


def test_status_counts_and_stale(project: Project) -> None:
    project.ok("run", "--profile", "quick", "--measure-only")
    rows = {r["profile"]: r for r in json.loads(project.ok("status", "--json"))}
    assert (rows["quick"]["expected"], rows["quick"]["recorded"], rows["quick"]["stale"], rows["quick"]["failed"]) == (9, 9, 0, 1)
    assert rows["standard"]["expected"] == 16 and rows["standard"]["recorded"] == 9
    assert {"question", "machine", "profile", "expected", "recorded", "stale", "seconds"} <= set(rows["quick"])

    notebook = project.root / "notebooks/q99_toy.ipynb"
    notebook.write_text(notebook.read_text().replace("setup.n**2", "setup.n * setup.n"))
    project.ok("plan", "--write")
    rows = {r["profile"]: r for r in json.loads(project.ok("status", "--json"))}
    assert rows["quick"]["stale"] == 3
    project.ok("run", "--profile", "quick", "--measure-only", "--stale")
    rows = {r["profile"]: r for r in json.loads(project.ok("status", "--json"))}
    assert (rows["quick"]["stale"], rows["quick"]["recorded"]) == (0, 9)


def test_killed_in_the_middle_loses_one_measurement_at_most(project: Project) -> None:
    command = project.command("run", "q99", "--profile", "standard", "--measure-only", "--set", "pause=0.15")
    child = subprocess.Popen(command, env=project.env, cwd=project.root, start_new_session=True, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while time.monotonic() < until and len(project.lines()) < 6:
        time.sleep(0.02)
    os.killpg(child.pid, signal.SIGKILL)  # what it started ends with it
    child.wait()
    kept = len(project.lines())
    assert 6 <= kept < 16
    project.ok("run", "q99", "--profile", "standard", "--measure-only")
    keys = [r["key"] for r in project.lines()]
    assert len(keys) == 16 == len(set(keys))  # resumed: none doubled, none lost but the one under way


def test_a_page_that_fails_is_reported_and_published_nowhere(project: Project) -> None:
    notebook = project.root / "notebooks/q99_toy.ipynb"
    notebook.write_text(notebook.read_text().replace("study.verdicts(", "undefined_name("))
    done = project.run("run", "--profile", "quick", "--no-site")
    assert done.returncode == 1
    assert "NameError" in done.stdout and "q99" in done.stdout
    assert not (project.root / "_build/executed/q99_toy.ipynb").exists()
    assert len(project.lines()) == 9  # what was measured is kept


def test_a_time_limit_ends_measuring_and_keeps_records(project: Project) -> None:
    done = project.run("run", "--profile", "quick", "--measure-only", "--set", "pause=30", "--timeout", "4")
    assert done.returncode == 1 and "stopped after 4 s" in done.stdout


def test_draw_is_identical_to_the_byte(project: Project) -> None:
    project.ok("run", "--profile", "quick", "--measure-only")
    notebook = project.root / "notebooks/q99_toy.ipynb"
    project.ok("draw")
    first = notebook.read_bytes()
    assert b'"execution_count": 1' in first
    project.ok("draw")
    assert notebook.read_bytes() == first


def test_a_rule_changed_after_records_exist_is_shown(project: Project) -> None:
    project.ok("run", "--profile", "quick", "--measure-only")
    project.ok("draw")
    ledger = project.root / "data/claims/q99.yaml"
    ledger.write_text(ledger.read_text().replace("value: 4}", "value: 5}"))
    project.ok("draw")
    page = (project.root / "notebooks/q99_toy.ipynb").read_text()
    assert "The rule was changed on" in page and "refuted" in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "q98"], ["unknown question 'q98'", "q99"]),
        (["run", "q99", "--profile", "qick"], ["unknown profile 'qick'", "quick, standard, full"]),
        (["run", "q99", "--profile", "quick", "--set", "depht=3"], ["unknown override", "numbers, seeds, pause"]),
        (["run", "q99", "--profile", "quick", "--set", "numbers"], ["name=value"]),
        (["run", "q99", "--profile", "quick", "--set", "numbers=[1"], ["not JSON"]),
        (["run", "q99", "--profile", "quick", "--set", "numbers=3"], ["numbers=3", "[1, 2, 3]"]),
        (["run", "q99", "--profile", "quick", "--measure-only", "--only", "squres"], ["unknown experiment", "squares, noise"]),
        (["run", "q99", "--profile", "quick", "--only", "squares"], ["--measure-only"]),
        (["verdicts", "--machine", "enigma"], ["unknown machine 'enigma'", "reference, this"]),
        (["retract", "q99", "0" * 12, "because"], ["no record 000000000000"]),
        (["compare", "enigma"], ["unknown machine 'enigma'"]),
        (["merge", "none.zip"], ["none.zip", "no such file"]),
        (["run", "--minutes", "0"], ["--minutes 0", "more than 0"]),
        (["run", "--minutes", "nan"], ["--minutes nan", "more than 0"]),
        (["run", "--minutes", "5", "--stale"], ["--minutes", "--stale"]),
        (["run", "--jobs", "0"], ["--jobs 0", "at least one"]),
        (["vouch", "--from", "nowhere"], ["nowhere"]),
        (["data", "fetch", "mnist"], ["unknown data set 'mnist'", "cifar10"]),
    ],
)  # fmt: skip
def test_refused_in_one_line_and_nothing_written(project: Project, arguments: list[str], words: list[str]) -> None:
    done = project.run(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    for word in words:
        assert word in done.stderr
    assert not project.lines() and not (project.root / "_build/executed").exists()


def test_debug_shows_the_traceback(project: Project) -> None:
    assert "Traceback" in project.run("--debug", "run", "q98").stderr


def test_an_unknown_machine_name_is_refused(project: Project) -> None:
    project.env["CNNSTUDY_MACHINE"] = "../evil"
    done = project.run("run", "--profile", "quick", "--measure-only")
    assert done.returncode == 2 and "small letters" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("q99.noise-is-small", "q99.two-squared", ["given twice"]),
        ("rule: equal", "rule: eqaul", ["eqaul", "equal"]),
        (", margin: 100", "", ["margin"]),
        ("experiment: squares,", "experiment: sqares,", ["sqares", "squares"]),
    ],
)
def test_a_broken_ledger_is_refused_by_line(project: Project, old: str, new: str, words: list[str]) -> None:
    path = project.root / "data/claims/q99.yaml"
    path.write_text(path.read_text().replace(old, new))
    done = project.run("verdicts")
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "q99.yaml:" in done.stderr
    for word in words:
        assert word in done.stderr


def test_a_damaged_record_is_refused_by_line(project: Project) -> None:
    project.ok("run", "--profile", "quick", "--measure-only")
    lines = project.records.read_text().splitlines()
    project.records.write_text("\n".join([lines[0], lines[1][:40], *lines[2:]]) + "\n")
    done = project.run("verdicts")
    assert done.returncode == 2 and "toy-machine/q99.jsonl:2" in done.stderr


def test_list_and_status_answer_in_a_second(project: Project) -> None:
    for command in ("list", "status"):
        started = time.perf_counter()
        project.ok(command)
        best = time.perf_counter() - started
        for _ in range(2):  # the best of three: a busy machine must not fail this
            started = time.perf_counter()
            project.ok(command)
            best = min(best, time.perf_counter() - started)
        assert best < 1.0
