"""Run pages: measure what is missing on this machine, draw the notebooks, keep a diary.

A page has up to three steps.  *measure* runs the notebook's measuring cells in a plain child process, side by side with those of
other pages; *time* runs the cells of experiments that the ledger marks ``exclusive`` (and on a GPU, all of them), alone on the
machine; *draw* executes the notebook in a process of its own, from records alone.  Which steps are out of date, the graph knows.
Whatever is recorded stays, however a run ends; a page is published when it was drawn to its end.
"""

from __future__ import annotations

import datetime
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused, choose
from cnnstudy.report import children, claims, evidence, locks, runs, vouch
from cnnstudy.report import plan as plans
from cnnstudy.report.cells import notebook_path, parameters
from cnnstudy.report.children import PageFailed, Stopped
from cnnstudy.report.estimates import Entry, missing
from cnnstudy.report.live import Board
from cnnstudy.runtime import ROOT, cores, gpu_name, machine_id

BUILD = ROOT / "_build"
TIMEOUT_S = 12 * 3600.0
DRAW_TIMEOUT_S = 600.0
STAGES = ("measure", "time")
STATE = {"measure": "measuring", "time": "timing"}


@dataclass(frozen=True)
class Order:
    """What a user wants measured: a profile, with ``overrides`` of its parameters; ``only`` these experiments or these ``keys``;
    with ``stale`` anew what other code has recorded.  A page may take ``timeout`` seconds for a step."""

    profile: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    stale: bool = False
    only: tuple[str, ...] = ()
    keys: frozenset[str] | None = None
    timeout: float = TIMEOUT_S

    def given(self) -> dict[str, Any]:
        """The parameters that the notebook gets."""
        return {"profile": self.profile, "machine": "this", **({"overrides": dict(self.overrides)} if self.overrides else {})}

    def check(self, questions: Iterable[str]) -> None:
        """Refuse unknown parameters, profiles, overrides and experiments before any process starts."""
        for question in questions:
            check(question, self.given())
            for name in self.only:
                choose(f"experiment of {question}", name, claims.load(question).experiments)


def check(question: str, given: Mapping[str, Any]) -> None:
    """Refuse parameters that a page does not have, and values that its study refuses."""
    from cnnstudy.report.study import Study

    known = parameters(notebook_path(question))
    unknown = set(given) - set(known)
    if unknown:
        raise Refused(f"{question}: unknown parameter {', '.join(sorted(unknown))}; valid: {', '.join(known)}")
    Study(question, **{**known, **given})


# what there is to do ------------------------------------------------------------------------------------------------------


def stage_of(question: str, experiment: str) -> str:
    """"time" for what must run alone: what the ledger marks as exclusive, and everything on a GPU; else "measure"."""
    return "time" if gpu_name() or claims.load(question).experiments[experiment].exclusive else "measure"


def todo(question: str, stage: str, order: Order) -> list[Entry]:
    """What a step of a page has to measure, with what chosen experiments look up; overrides are not in the plan and not counted."""
    entries = missing(question, order.profile) + (vouch.stale(question, order.profile) if order.stale else [])
    plan = plans.load(question) if order.only else {}
    read = {key for e, entry in entries if e.name in order.only for key in plans.behind(plan, e.name, entry, order.profile)}
    return [
        (e, entry)
        for e, entry in entries
        if stage_of(question, e.name) == stage
        and (not order.only or e.name in order.only or entry["key"] in read)
        and (order.keys is None or entry["key"] in order.keys)
    ]


# the steps of a page ------------------------------------------------------------------------------------------------------


class _Follower:
    """Reads on in the progress file of a measuring child, and hands its events to the board."""

    def __init__(self, folder: Path, event: Callable[[Mapping[str, Any]], None]) -> None:
        self.path, self.tick, self.event = folder / "progress", folder / "tick", event
        self.offset, self.recorded = 0, 0

    def env(self) -> dict[str, str]:
        """What tells the child where to write: a line per record, and how far a training is."""
        return {"CNNSTUDY_PROGRESS": str(self.path), "CNNSTUDY_TICK": str(self.tick)}

    def __call__(self) -> None:
        if not self.path.exists():
            return
        with suppress(OSError, ValueError):  # it may be half written
            self.event({"event": "tick", **json.loads(self.tick.read_text("utf-8"))})
            self.tick.unlink()
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self.offset += len(line)
                event = json.loads(line)
                self.recorded += event["event"] == "record"
                self.event(event)


def measure(question: str, stage: str, order: Order, board: Board, threads: int) -> int:
    """Measure what a step of a page lacks on this machine; returns how many records were made."""
    entries = todo(question, stage, order)
    names = {e.name for e, _ in entries}
    if order.overrides:
        every = claims.load(question).experiments
        names = {n for n, e in every.items() if e.kind != "published" and stage_of(question, n) == stage and n in (order.only or every)}
    if not names:
        return 0
    board.enter(question, "waiting", "for the machine")
    with locks.machine(stage == "time", lambda: not children.stopping.is_set()), tempfile.TemporaryDirectory() as scratch:
        board.enter(question, STATE[stage])
        follower = _Follower(Path(scratch), partial(board.event, question))
        env = follower.env() | {"CNNSTUDY_ONLY": " ".join(sorted(names))}
        if order.stale:
            env["CNNSTUDY_STALE"] = "1"
        if (order.keys is not None or order.only) and not order.overrides:
            chosen = Path(scratch) / "keys"
            chosen.write_text("\n".join(sorted(entry["key"] for _, entry in entries)))
            env["CNNSTUDY_KEYS"] = str(chosen)
        _child(question, stage, order.profile, follower, partial(
            children.run, "cnnstudy.report.cells", [question, json.dumps(order.given())], timeout=order.timeout, env=env, on_tick=follower,
            threads=cores() if stage == "time" else threads,
        ))  # fmt: skip
    return follower.recorded


def draw(question: str, given: Mapping[str, Any], target: Path, board: Board, threads: int = 1) -> None:
    """Execute a notebook from records and publish it at ``target``; a failed one goes to ``_build/failed``."""
    env = {"PYTHONHASHSEED": "0", "MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore"}
    arguments = [question, json.dumps(dict(given)), str(target)]
    with locks.machine(False, lambda: not children.stopping.is_set()):
        board.enter(question, "drawing")
        work = partial(children.run, "cnnstudy.report.drawing", arguments, timeout=DRAW_TIMEOUT_S, threads=threads, env=env)
        _child(question, "draw", str(given.get("profile", "recorded")), None, work)


def _child(question: str, stage: str, profile: str, follower: _Follower | None, work: Callable[..., int | None]) -> None:
    """Run a step's process, and write how it went into the diary (a drawing that went well is worth a line after one that failed)."""
    started, before = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), time.monotonic()
    log = BUILD / "failed" / f"{question}-{stage}.log"
    state, error, peak = "failed", None, None
    try:
        peak = work(log=log)
        state = "done"
        log.unlink(missing_ok=True)
    except Stopped:
        state = "stopped"
        raise
    except PageFailed as failure:
        error = str(failure)
        raise
    finally:
        worth = follower is not None or state == "failed" or _failed_before(question, stage)
        if worth and (evidence.store_root() / machine_id()).is_dir():
            seconds = round(time.monotonic() - before, 1)
            made = follower.recorded if follower else 0
            runs.append(runs.Run(question, stage, profile, state, started, seconds, made, peak, error), machine_id())


def _failed_before(question: str, stage: str) -> bool:
    """Whether the diary's last word on a step of a page is that it failed."""
    states = [run.state for run in runs.read(machine_id()) if (run.question, run.stage) == (question, stage)]
    return states[-1:] == ["failed"]
