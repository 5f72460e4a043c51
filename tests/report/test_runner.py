"""Runs that meet trouble: two at once, Ctrl-C, a hanging page, a kernel that dies, a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Project

from cnnstudy.report import runs

QUICK = ("run", "--profile", "quick", "--no-site")


def start(project: Project, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        project.command(*arguments), env=project.env, cwd=project.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def until(condition: object, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def of_project(project: Project) -> list[str]:
    """Processes that work for this toy project."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            mine = f"CNNSTUDY_ROOT={project.root}\0".encode() in path.read_bytes()
        except OSError:
            continue
        if mine:
            found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_a_second_run_is_refused_and_told_who_holds_the_checkout(project: Project) -> None:
    first = start(project, *QUICK, "--set", "pause=20")
    try:
        until((project.root / "_build/run.holder.json").exists)
        assert first.stdout is not None
        first.stdout.readline()  # it listens to Ctrl-C from here on, even where it was started with that ignored
        second = project.run(*QUICK)
        assert second.returncode == 2 and len(second.stderr.splitlines()) == 1
        assert f"process {first.pid}" in second.stderr and "cnnstudy run --profile quick" in second.stderr
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=30)
    assert not (project.root / "_build/run.holder.json").exists()


def test_a_killed_holder_holds_nothing(project: Project) -> None:
    first = start(project, *QUICK, "--set", "pause=20")
    until((project.root / "_build/run.holder.json").exists)
    first.kill()
    first.communicate()
    assert project.run("run", "--profile", "quick", "--measure-only").returncode == 0


@pytest.mark.slow
def test_ctrl_c_ends_within_two_seconds_keeps_all_and_says_how_to_go_on(project: Project) -> None:
    child = start(project, "run", "--profile", "standard", "--measure-only", "--set", "pause=0.3")
    until(lambda: len(project.lines()) >= 4)
    child.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, errors = child.communicate(timeout=30)
    took = time.monotonic() - began
    assert child.returncode == 130 and "run the same command to go on" in errors and "Traceback" not in errors
    assert took < 2, took
    kept = len(project.lines())
    assert 4 <= kept < 16 and of_project(project) == []
    assert [r.state for r in runs.read("toy-machine", project.root / "data/records")] == ["stopped"]
    project.ok("run", "--profile", "standard", "--measure-only")
    keys = [r["key"] for r in project.lines()]
    assert len(keys) == 16 == len(set(keys))


@pytest.mark.slow
def test_a_page_that_hangs_or_whose_kernel_dies_does_not_stop_the_others(project: Project) -> None:
    project.second_page()
    other = project.root / "notebooks/q98_toy.ipynb"
    whole = other.read_text()
    other.write_text(whole.replace("import random", "import time\\ntime.sleep(60)\\nimport random"))
    done = project.run(*QUICK, "--timeout", "8")
    assert done.returncode == 1 and "q98: failed: stopped after 8 s, its time limit" in done.stdout and "q99: done" in done.stdout
    other.write_text(whole.replace("study.verdicts(", "import os\\nos.kill(os.getpid(), 9)\\nstudy.verdicts("))
    done = project.run(*QUICK)
    assert done.returncode == 1 and "q99: up to date" in done.stdout and "q98: failed" in done.stdout
    assert json.loads((project.root / "_build/status.json").read_text()) == {"q98": "failed", "q99": "done"}
    assert not (project.root / "_build/executed/q98_toy.ipynb").exists()
    other.write_text(whole)
    out = project.ok(*QUICK, "--failed")
    assert "q98: done" in out and "q99" not in out
    assert of_project(project) == []
    failures = [r for r in runs.read("toy-machine", project.root / "data/records") if r.state == "failed"]
    assert [(r.question, r.stage) for r in failures] == [("q98", "measure"), ("q98", "draw")] and all(r.error for r in failures)


def with_room(project: Project, size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line where no file may grow beyond ``size`` bytes: a write beyond it fails half-way, as on a full disk."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    command = project.command(*arguments)
    return subprocess.run(command, env=project.env, cwd=project.root, capture_output=True, text=True, preexec_fn=limit, timeout=200)


def test_a_full_disk_loses_one_record_and_is_named(project: Project) -> None:
    notebook = project.root / "notebooks/q99_toy.ipynb"
    notebook.write_text(notebook.read_text().replace("setup.n**2}", "setup.n**2, 'long': 'x' * 120_000}"))
    done = with_room(project, 300_000, "run", "--profile", "quick", "--measure-only")
    assert done.returncode == 1 and "q99: failed" in done.stdout and "File too large" in done.stdout
    kept = [line for line in project.records.read_bytes().split(b"\n") if line.endswith(b"}")]
    assert len(kept) == 2
    project.ok("run", "--profile", "quick", "--measure-only")
    assert len({r["key"] for r in project.lines()}) == 9 == len(project.lines())


def test_no_room_for_the_state_of_the_graph_is_one_line(project: Project) -> None:
    done = with_room(project, 2000, "run", "--profile", "quick", "--measure-only")
    assert done.returncode == 2 and "_build/run" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_the_diary_says_how_long_and_how_much_memory(project: Project) -> None:
    project.ok("run", "--profile", "quick", "--measure-only")
    (run,) = runs.read("toy-machine", project.root / "data/records")
    assert (run.question, run.stage, run.profile, run.state, run.measured) == ("q99", "measure", "quick", "done", 9)
    assert run.seconds > 0 and (run.peak_mib or 0) > 50


def test_a_run_of_nothing_is_no_run(project: Project) -> None:
    project.ok("run", "--profile", "quick", "--measure-only")
    project.ok("run", "--profile", "quick", "--measure-only")
    assert len(list(runs.read("toy-machine", project.root / "data/records"))) == 1


@pytest.mark.parametrize("jobs", ["0", "-3"])
def test_no_page_at_a_time_is_refused(project: Project, jobs: str) -> None:
    done = project.run(*QUICK, "--jobs", jobs)
    assert done.returncode == 2 and "at least one page" in done.stderr
    assert os.listdir(project.root / "data/records") == []


def test_a_site_that_cannot_be_built_fails_the_run_and_says_why(project: Project) -> None:
    """The toy has no book."""
    done = project.run("run", "--profile", "quick")
    (said,) = [line for line in done.stdout.splitlines() if line.startswith("site:")]
    assert done.returncode == 1 and "q99: done" in done.stdout
    last = (project.root / "_build/failed/site.log").read_text().splitlines()[-1]
    assert said.startswith(f"site: failed: {last} (exit 1; all of it in ") and "_toc.yml" in said


def test_what_nobody_foresaw_is_named_too(project: Project) -> None:
    (project.root / "file").touch()
    project.env["CNNSTUDY_LOCKS"] = str(project.root / "file")
    done = project.run("run", "--profile", "quick", "--measure-only")
    assert done.returncode == 1 and "q99: failed: FileExistsError: " in done.stdout


def test_nothing_failed_is_nothing_to_do(project: Project) -> None:
    assert project.ok("run", "--failed", "--profile", "quick") == "nothing to do: no run of this checkout came before\n"
    (project.root / "_build").mkdir()
    (project.root / "_build/status.json").write_text('{"q99": "done"}')
    assert project.ok("run", "--failed", "--profile", "quick") == "nothing to do: no page asked for failed in the last run\n"
    assert project.lines() == [] and [p.name for p in (project.root / "_build").iterdir()] == ["status.json"]
