"""Runs: pages brought up to date, side by side, each step when it is out of date; the committed pages drawn; the site built."""

from __future__ import annotations

import datetime
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cnnstudy.config import Refused, digest
from cnnstudy.report import children, claims, evidence, graph, warm
from cnnstudy.report.cells import notebook_path
from cnnstudy.report.children import PageFailed, Stopped
from cnnstudy.report.estimates import Durations, estimate
from cnnstudy.report.execute import BUILD, DRAW_TIMEOUT_S, STAGES, Order, draw, measure, stage_of, todo
from cnnstudy.report.live import Board
from cnnstudy.runtime import ROOT, cores, machine_id

Elsewhere = Callable[[str, Order], tuple[str, int]]


class Runner:
    """Pages to be measured and drawn by one order.  ``states`` holds what became of each: done, failed, stopped, not_run."""

    def __init__(self, questions: Sequence[str], order: Order, jobs: int | None = None, out: Path | None = None) -> None:
        if jobs is not None and jobs < 1:
            raise Refused(f"--jobs {jobs}: at least one page at a time")
        order.check(questions)
        self.questions, self.order = list(questions), order
        self.jobs = max(1, min(jobs or cores(), len(self.questions)))
        self.out = out or BUILD / "executed"
        self.threads = max(1, cores() // self.jobs)
        self.board = Board(self.jobs)
        self.errors: dict[str, str] = {}
        self.states = dict.fromkeys(self.questions, "not_run")
        self._writing = threading.Lock()

    def run(self, drawing: bool = True, elsewhere: Elsewhere | None = None) -> dict[str, str]:
        """Bring the pages up to date; also writes ``_build/status.json`` after each.

        ``elsewhere`` has a page measured on another machine; it returns that machine's id and how many records came back.
        """
        steps = [step for question in self.questions for step in self._steps(question, drawing, elsewhere)]
        durations = Durations()
        for question in self.questions:
            entries = [pair for stage in STAGES for pair in todo(question, stage, self.order)]
            self.board.add(question, len(entries), estimate(question, entries, durations) if entries else 0.0)
        self._write()
        with children.interruptible(), self.board:
            if any(row.total for row in self.board.rows.values()):
                warm.begin()  # it imports while the graph is looked at
            outcomes = graph.build(steps, BUILD / "run", len(self.questions) if elsewhere else self.jobs)
        for question in self.questions:
            mine = [outcomes[s.name] for s in steps if s.name.split()[1] == question]
            if question in self.errors or "failed" in mine:
                self.states[question] = "stopped" if children.stopping.is_set() else "failed"
            else:
                self.states[question] = "not_run" if "not run" in mine else "done"
            if self.states[question] == "done" and set(mine) == {"unchanged"}:
                self.board.say(f"{question}: up to date")
        self._write()
        return self.states

    def _steps(self, question: str, drawing: bool, elsewhere: Elsewhere | None) -> list[graph.Step]:
        kinds = {stage_of(question, name) for name, e in claims.load(question).experiments.items() if e.kind != "published"}
        stages = [stage for stage in STAGES if stage in kinds]
        steps = [self._abroad(question, elsewhere)] if elsewhere else [self._measuring(question, stage) for stage in stages]
        if not drawing:
            return steps

        def work() -> None:
            given = self.order.given()
            if elsewhere:
                given = {"machine": json.loads(steps[0].makes.read_text("utf-8"))["machine"]}
            draw(question, given, target, self.board, self.threads)

        needs = graph.ingredients(question) | {f"parameters {question}": lambda: digest([self.order.given(), machine_id()])}
        target = self.out / notebook_path(question).name
        drawn = graph.Step(f"draw {question}", partial(self._step, question, work, last=True), target, needs, [s.makes for s in steps])
        return [*steps, drawn]

    def _abroad(self, question: str, elsewhere: Elsewhere) -> graph.Step:
        made = BUILD / "run" / f"{question}.elsewhere"

        def work() -> None:
            machine, count = elsewhere(question, self.order)
            made.write_text(json.dumps(self.order.given() | {"machine": machine, "measured": count}) + "\n")

        always = {f"always {question}": lambda: digest([time.time()])}  # only the worker knows what is missing there
        return graph.Step(f"elsewhere {question}", partial(self._step, question, work), made, always)

    def _measuring(self, question: str, stage: str) -> graph.Step:
        made = BUILD / "run" / f"{question}.{stage}"

        def work() -> None:
            count = measure(question, stage, self.order, self.board, self.threads)
            made.write_text(json.dumps(self.order.given() | {"measured": count}) + "\n")

        def lacking() -> str:  # asked before and after: what is complete now is out of date when a record goes missing
            always = [time.time()] if self.order.overrides else []
            return digest([*always, sorted(entry["key"] for _, entry in todo(question, stage, self.order))])

        cells = partial(graph.cells_digest, question, measuring=True)
        needs: dict[str, Callable[[], str | None]] = {f"missing {stage} {question}": lacking, f"cells {question}": cells}
        return graph.Step(f"{stage} {question}", partial(self._step, question, work), made, needs, late=stage == "time")

    def _step(self, question: str, work: Callable[[], object], last: bool = False) -> None:
        """Do a step's work; how it ended goes to the board and to ``states``."""
        try:
            work()
        except Exception as error:  # whatever it is: the graph knows that a step failed, and not why
            self.errors[question] = _said(error)
            self.states[question] = "stopped" if isinstance(error, Stopped) else "failed"
            self.board.enter(question, self.states[question], "" if isinstance(error, Stopped) else self.errors[question])
            raise
        finally:
            self._write()
        if last:
            self.states[question] = "done"
            self.board.enter(question, "done")
        else:
            self.board.enter(question, "pending")

    def _write(self) -> None:
        with self._writing:
            BUILD.mkdir(exist_ok=True)
            part = BUILD / ".status.json"
            part.write_text(json.dumps(self.states, indent=1) + "\n")
            os.replace(part, BUILD / "status.json")


def _said(error: Exception) -> str:
    """Why a step failed, in a line; what nobody foresaw with its kind, which tells more than its words."""
    foreseen = isinstance(error, (PageFailed, Refused))
    return str(error) if foreseen else f"{type(error).__name__}: {error}"


def last_states() -> dict[str, str]:
    """What became of each page in the last run of this checkout; empty if there was none."""
    try:
        states: dict[str, str] = json.loads((BUILD / "status.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return states


def draw_committed(questions: Sequence[str], jobs: int | None = None, force: bool = False) -> dict[str, str]:
    """Draw the committed notebooks that are out of date, in place, from the book's records; remember the rules they were judged by."""
    from cnnstudy.report import verdicts
    from cnnstudy.report.study import Study

    today = datetime.date.today().isoformat()
    jobs = max(1, min(jobs or cores(), len(questions)))
    board = Board(jobs)

    def work(question: str) -> None:
        try:
            if evidence.store_root() == ROOT / "data" / "records":  # trial records elsewhere are no evidence to remember
                verdicts.write_history(question, Study(question).judge(), today)
            draw(question, {}, notebook_path(question), board, max(1, cores() // jobs))
        except Exception as error:
            board.enter(question, "failed", _said(error))
            raise
        board.enter(question, "done")

    steps = [graph.Step(f"page {q}", partial(work, q), notebook_path(q), graph.ingredients(q)) for q in questions]
    for question in questions:
        board.add(question, 0, 0.0)
    with children.interruptible(), board:
        outcomes = graph.build(steps, ROOT, jobs, force)
    return {q: outcomes[f"page {q}"] for q in questions}


def publish(out: Path | None = None) -> str:
    """Build the site of the pages in ``out`` (default: those that were run here), if anything in it has changed: its outcome.

    Raises PageFailed, with the last line of the build's log, when it fails.
    """
    out = out or BUILD / "executed"
    site = BUILD / "site" / "index.html"
    arguments = ["build", "--notebooks", str(out), "--machine", "this"]
    files = [p for folder in ("book", "data/claims", "data/published") for p in sorted((ROOT / folder).rglob("*")) if p.is_file()]
    needs: dict[str, Callable[[], str | None]] = {
        "pages": lambda: graph.files_digest(out.glob("*.ipynb")),
        "book": lambda: graph.files_digest([*files, ROOT / "_config.yml", ROOT / "_toc.yml"]),
        "records": lambda: graph.files_digest(evidence.store_root().glob("*/*.jsonl")),
        "package": lambda: graph.files_digest((ROOT / "cnnstudy" / "report").glob("*.py")),
    }
    failures: list[PageFailed] = []

    def work() -> None:
        try:
            children.run("cnnstudy.report.site", arguments, BUILD / "failed" / "site.log", DRAW_TIMEOUT_S, cores(), fresh=True)
        except PageFailed as failure:  # the graph says that it failed, and not why
            failures.append(failure)
            raise

    with children.interruptible():
        outcome = graph.build([graph.Step("site", work, site, needs)], BUILD / "run", 1)["site"]
    if outcome == "failed":
        raise failures[0] if failures else PageFailed("it made no page")
    return outcome
