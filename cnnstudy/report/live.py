"""What the runner shows while it works: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

AT_WORK = ("measuring", "timing", "drawing")


@dataclass
class Row:
    """A page's row: ``total`` measurements to make, ``estimate`` seconds that making them will take (None: unknown)."""

    total: int = 0
    estimate: float | None = None
    state: str = "pending"
    done: int = 0
    spent: float = 0.0  # seconds at work, as far as it has ended
    since: float | None = None  # when the present stage began
    doing: str = ""
    share: str = ""  # how far a training is
    note: str = ""
    took: list[float] = field(default_factory=list)  # seconds of each measurement of this run

    def elapsed(self) -> float:
        return self.spent + (time.monotonic() - self.since if self.since is not None else 0.0)

    def left(self) -> float | None:
        """Seconds that the measurements not yet made will take: by the estimate, corrected by how those made went."""
        missing = self.total - self.done
        if missing <= 0 or self.state in ("done", "failed", "stopped"):
            return 0.0
        if self.estimate is None:
            return sum(self.took) / len(self.took) * missing if self.took else None
        return max(0.0, self.estimate - sum(self.took)) if self.took else self.estimate


def clock(seconds: float | None) -> str:
    """``8 s``, ``3 min 20 s``, ``2 h 05 min``; ``?`` for what is not known."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 6000:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Board:
    """The pages of one run.  Its methods may be called from any thread; one table or one line at a time is written."""

    def __init__(self, jobs: int = 1, terminal: bool | None = None) -> None:
        self.rows: dict[str, Row] = {}
        self.jobs = jobs
        self.terminal = sys.stdout.isatty() if terminal is None else terminal
        self._lock = threading.RLock()
        self._live: Any = None

    def add(self, page: str, total: int, estimate: float | None) -> None:
        """A page to be run."""
        with self._lock:
            self.rows[page] = Row(total, estimate)
            if total:
                self.say(f"{page}: {total} to measure, " + (f"about {clock(estimate)}" if estimate is not None else "time unknown"))

    def enter(self, page: str, state: str, note: str = "") -> None:
        """A page goes into a state; its clock runs while it is at work."""
        with self._lock:
            row = self.rows.setdefault(page, Row())
            now = time.monotonic()
            if row.since is not None:
                row.spent, row.since = row.spent + now - row.since, None
            if state in AT_WORK:
                row.since = now
            row.state, row.note, row.doing, row.share = state, note, "", ""
            if state in ("done", "failed", "stopped"):
                self.say(f"{page}: {state}" + (f": {note}" if note else f" in {clock(row.elapsed())}" if state == "done" else ""))

    def event(self, page: str, event: Mapping[str, Any]) -> None:
        """What a measuring child wrote into its progress file."""
        with self._lock:
            row = self.rows[page]
            if event["event"] == "begin":
                row.doing, row.share = f"{event['name'].split(' ', 1)[-1]} {event['label']}".strip(), ""
            elif event["event"] == "tick":
                row.share = f" {event['done'] / event['total']:.0%}"
            elif event["event"] == "record":
                row.done += 1
                row.took.append(event["seconds"])
                failed = f"  FAILED: {event['failed']}" if event["failed"] else ""
                left = "" if row.done >= row.total else f"; about {clock(row.left())} left of {page}"
                if not self.terminal or failed:
                    self.say(f"  {page} {row.done}/{max(row.total, row.done)} {row.doing} {event['seconds']:.1f} s{left}{failed}")

    def say(self, line: str) -> None:
        """One line, above the table if there is one."""
        with self._lock:
            if self._live is not None:
                self._live.console.print(line, markup=False, highlight=False)
            else:
                print(line, flush=True)

    def left(self) -> float | None:
        """Seconds to the end of the run: what is left of all pages, shared by the jobs."""
        rest = [row.left() for row in self.rows.values()]
        if any(r is None for r in rest):
            return None
        known = [r for r in rest if r is not None]
        return max([sum(known) / max(1, self.jobs), *known], default=0.0)

    def table(self) -> Table:
        """The table as it stands."""
        from rich.table import Table

        with self._lock:
            shown = [(p, r) for p, r in self.rows.items() if r.state not in ("done", "pending") or len(self.rows) <= 20]
            done, waiting = (sum(r.state == s for r in self.rows.values()) for s in ("done", "pending"))
            title = f"{done} of {len(self.rows)} pages done, {waiting} to come; about {clock(self.left())} left"
            table = Table(title=title, title_justify="left", box=None, pad_edge=False)
            for name in ("page", "state", "measured", "elapsed", "left", "now"):
                table.add_column(name, justify="right" if name in ("measured", "elapsed", "left") else "left", no_wrap=name != "now")
            for page, row in shown:
                measured = f"{row.done}/{max(row.total, row.done)}" if row.total else "–"
                table.add_row(page, row.state, measured, clock(row.elapsed()), clock(row.left()), row.note or row.doing + row.share)
            return table

    def __enter__(self) -> Board:
        if self.terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self.table, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
