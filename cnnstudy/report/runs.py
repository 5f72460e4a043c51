"""The runner's diary: one line per run of a page's measuring or drawing, kept beside a machine's records.

``<root>/<machine>/runs.jsonl`` says when a page ran, for how long, how much memory its process took at its peak, and how it ended.
It is no evidence and judges nothing; it answers "how long will that take here" and "what went wrong last".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from cnnstudy.report import evidence


@dataclass(frozen=True)
class Run:
    """One run of a page.  ``stage``: measure, time (what the ledger marks as exclusive) or draw; ``state``: done, failed or stopped;
    ``seconds`` of wall clock, ``peak_mib`` of resident memory (None where the system does not tell), ``error`` in one line."""

    question: str
    stage: str
    profile: str
    state: str
    started: str
    seconds: float
    measured: int = 0
    peak_mib: int | None = None
    error: str | None = None


def _path(machine: str, root: Path | None) -> Path:
    return (root or evidence.store_root()) / machine / "runs.jsonl"


def append(run: Run, machine: str, root: Path | None = None) -> None:
    """Add one line; a torn line of a killed writer is dropped."""
    path = _path(machine, root)
    path.parent.mkdir(parents=True, exist_ok=True)
    evidence.write_line(path, {name: value for name, value in asdict(run).items() if value is not None})


def read(machine: str, root: Path | None = None) -> Iterator[Run]:
    """The runs of a machine, oldest first; lines that cannot be read are passed over: nothing hangs on them."""
    path = _path(machine, root)
    if not path.exists():
        return
    for line in path.read_text("utf-8").splitlines():
        try:
            yield Run(**json.loads(line))
        except (ValueError, TypeError):
            continue
