"""Run pages: measure what is missing, then draw the notebook with papermill.  One child process at a time per page.

Measuring runs the notebook's measuring cells in a plain child process, so that progress can be shown and a kill
costs one measurement; drawing executes the whole notebook in a kernel, from records alone.  A child has a hard
timeout, and its whole process group is ended with it.  Results are written to scratch and published on success only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused, choose
from cnnstudy.report import claims, evidence
from cnnstudy.report import plan as plans
from cnnstudy.report.cells import notebook_path, parameters
from cnnstudy.runtime import ROOT, cores, machine_id

BUILD = ROOT / "_build"
TIMEOUT_S = 12 * 3600
DRAW_TIMEOUT_S = 600
Say = Callable[[str], None]


class PageFailed(RuntimeError):
    """A page did not run to its end; the message is one line, the rest is in ``_build/failed``."""


def _child(arguments: Sequence[str], log: Path, timeout: float, env: Mapping[str, str], on_tick: Callable[[], None] = lambda: None) -> None:
    """Run ``python *arguments`` in a process group of its own; end the whole group on timeout or interruption."""
    log.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout
    with open(log, "w", encoding="utf-8") as out:
        child = subprocess.Popen(
            [sys.executable, *arguments], stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True, env={**os.environ, **env}
        )
        try:
            while child.poll() is None:
                on_tick()
                if time.monotonic() > deadline:
                    raise PageFailed(f"stopped after {timeout:.0f} s (the limit); what was recorded is kept")
                time.sleep(0.2)
            on_tick()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if child.returncode:
        lines = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        raise PageFailed(
            f"{lines[-1] if lines else 'ended without a word'} (exit {child.returncode}; all of it in {log.relative_to(ROOT)})"
        )


class _Follower:
    """Turns the progress file of a measuring child into lines with an estimate."""

    def __init__(self, path: Path, say: Say, total: int, estimate_s: float | None) -> None:
        self.path, self.say, self.total, self.estimate = path, say, total, estimate_s
        self.offset, self.done, self.spent, self.started = 0, 0, 0.0, time.monotonic()
        self.label = ""

    def __call__(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith("\n"):
                    return
                self.offset += len(line.encode())
                self._event(json.loads(line))

    def _event(self, event: Mapping[str, Any]) -> None:
        if event["event"] == "begin":
            self.label = event["label"]
        elif event["event"] == "record":
            self.done += 1
            elapsed = time.monotonic() - self.started
            left = (
                (self.estimate - elapsed if self.estimate else elapsed / self.done * (self.total - self.done))
                if self.done < self.total
                else 0
            )
            note = f"  FAILED: {event['failed']}" if event["failed"] else ""
            self.say(
                f"  {self.done}/{self.total} {event['name']} {self.label} {event['seconds']:.1f} s; about {max(0, left):.0f} s left{note}"
            )


def missing(question: str, profile: str, machine: str | None = None) -> list[tuple[plans.Experiment, dict[str, Any]]]:
    """The measurements that a profile expects and this machine (or ``machine``) has not recorded."""
    experiments = plans.load(question)
    there = {r["key"] for r in evidence.read(machine or machine_id())}
    return [(e, entry) for e in experiments.values() for entry in e.entries(profile) if entry["key"] not in there]


def estimate(question: str, todo: Sequence[tuple[plans.Experiment, dict[str, Any]]]) -> float | None:
    """Seconds that measurements will take, from what the same ones, or else their experiment's, took anywhere before."""
    by_key: dict[str, float] = {}
    by_experiment: dict[str, list[float]] = {}
    for machine in evidence.reference():
        for record in evidence.read(machine, question):
            by_key.setdefault(record["key"], record["provenance"]["seconds"])
            by_experiment.setdefault(record["experiment"], []).append(record["provenance"]["seconds"])
    times = [by_key.get(entry["key"]) or _mean(by_experiment.get(e.name, [])) for e, entry in todo]
    return None if any(t is None for t in times) else sum(t for t in times if t is not None)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def check(question: str, given: Mapping[str, Any]) -> None:
    """Refuse unknown parameters, profiles, machines and overrides before any process starts."""
    from cnnstudy.report.study import Study

    known = parameters(notebook_path(question))
    unknown = set(given) - set(known)
    if unknown:
        raise Refused(f"{question}: unknown parameter {', '.join(sorted(unknown))}; valid: {', '.join(known)}")
    Study(question, **{**known, **given})


def measure(
    question: str, profile: str, overrides: Mapping[str, Any], timeout: float, say: Say, stale: bool = False, only: Sequence[str] = ()
) -> int:
    """Measure what a page's profile still lacks on this machine; returns how many measurements were missing."""
    todo = [(e, entry) for e, entry in missing(question, profile) if not only or e.name in only]
    if not todo and not overrides and not stale:
        return 0
    seconds = None if overrides or stale else estimate(question, todo)
    with tempfile.TemporaryDirectory() as scratch:
        follower = _Follower(Path(scratch) / "progress", say, len(todo), seconds)
        env = {"CNNSTUDY_PROGRESS": str(follower.path), "CNNSTUDY_ONLY": " ".join(only)} | ({"CNNSTUDY_STALE": "1"} if stale else {})
        given = {"profile": profile, "machine": "this", "overrides": dict(overrides)}
        arguments = ["-m", "cnnstudy.report.cells", question, json.dumps(given)]
        _child(arguments, BUILD / "failed" / f"{question}-measure.log", timeout, env, follower)
    return len(todo)


def measure_pages(
    questions: Sequence[str], profile: str, overrides: Mapping[str, Any], timeout: float, stale: bool, only: Sequence[str], say: Say = print
) -> int:
    """Measure several pages without drawing them; one that fails does not stop the others.  Returns how many failed."""
    for question in questions:
        check(question, {"profile": profile, "machine": "this", "overrides": dict(overrides)})
        for name in only:
            choose(f"experiment of {question}", name, claims.load(question).experiments)
    failed = 0
    for question in questions:
        try:
            say(f"{question}: {measure(question, profile, overrides, timeout, say, stale, only)} measurements were missing")
        except PageFailed as error:
            failed += 1
            say(f"{question}: {error}")
    return failed


def draw(question: str, given: Mapping[str, Any], target: Path, threads: int = 1) -> None:
    """Execute a notebook from records and publish it at ``target``; a failed one goes to ``_build/failed``."""
    log = BUILD / "failed" / f"{question}-draw.log"
    env = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    env |= {"PYTHONHASHSEED": "0", "MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore", "IPYTHONDIR": str(BUILD / "ipython")}
    _child(["-m", "cnnstudy.report.drawing", question, json.dumps(dict(given)), str(target)], log, DRAW_TIMEOUT_S, env)


def run(
    questions: Sequence[str], profile: str, overrides: Mapping[str, Any], jobs: int | None = None, timeout: float = TIMEOUT_S,
    out: Path | None = None, stale: bool = False, say: Say = print,
) -> dict[str, str]:  # fmt: skip
    """Measure and draw pages; returns each page's state (done, failed, not_run), also in ``_build/status.json``."""
    given = {"profile": profile, "machine": "this", **({"overrides": dict(overrides)} if overrides else {})}
    for question in questions:
        check(question, given)
    out = out or BUILD / "executed"
    states = dict.fromkeys(questions, "not_run")
    _write_states(states)
    for question in questions:
        todo = missing(question, profile)
        seconds = estimate(question, todo) if todo else 0
        guess = (
            "nothing to measure" if not todo else f"{len(todo)} to measure, " + (f"about {seconds:.0f} s" if seconds else "time unknown")
        )
        say(f"{question}: {guess}")
    measured = []
    for question in questions:
        states[question] = "running"
        _write_states(states)
        try:
            measure(question, profile, overrides, timeout, say, stale)
            measured.append(question)
        except PageFailed as error:
            states[question] = "failed"
            say(f"{question}: {error}")
        _write_states(states)
    workers = max(1, jobs or cores())
    with ThreadPoolExecutor(workers) as pool:
        for question, failure in zip(measured, pool.map(lambda q: _try_draw(q, given, out, workers), measured), strict=True):
            states[question] = "failed" if failure else "done"
            _write_states(states)
            say(f"{question}: {failure or 'drawn'}")
    return states


def _try_draw(question: str, given: Mapping[str, Any], out: Path, workers: int) -> str | None:
    try:
        draw(question, given, out / notebook_path(question).name, max(1, cores() // workers))
    except PageFailed as error:
        return str(error)
    return None


def _write_states(states: Mapping[str, str]) -> None:
    BUILD.mkdir(exist_ok=True)
    part = BUILD / ".status.json"
    part.write_text(json.dumps(states, indent=1) + "\n")
    os.replace(part, BUILD / "status.json")


def coverage(questions: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Per page, machine and profile: how much is expected, recorded and stale, and the seconds that measuring took."""
    for question in questions:
        experiments = plans.load(question)
        for machine in sorted({*evidence.machines(), machine_id()}):
            there = {r["key"]: r for r in evidence.read(machine)}
            for profile in plans.PROFILES:
                entries = [(e, entry["key"]) for e in experiments.values() for entry in e.entries(profile)]
                found = [(e, there[k]) for e, k in entries if k in there]
                yield {
                    "question": question,
                    "machine": machine,
                    "profile": profile,
                    "expected": len(entries),
                    "recorded": len(found),
                    "stale": sum(r["provenance"]["code"] != e.code(r["setup"]) for e, r in found),
                    "failed": sum("failed" in r for _, r in found),
                    "seconds": round(sum(r["provenance"]["seconds"] for _, r in found), 1),
                }
