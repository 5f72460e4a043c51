"""Child processes of the runner: started, followed, and ended with all that they started.

A page is measured and drawn in processes of its own, so that a crash, a leak or a hang costs that page alone.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from cnnstudy.report import warm
from cnnstudy.runtime import ROOT

POLL_S = 0.1


class PageFailed(RuntimeError):
    """A page did not run to its end; the message is one line, the rest is in ``_build/failed``."""


class Stopped(PageFailed):
    """The user stopped the run."""


stopping = threading.Event()


def run(
    module: str, arguments: Sequence[str], log: Path, timeout: float, threads: int,
    env: Mapping[str, str] | None = None, on_tick: Callable[[], None] = lambda: None, fresh: bool = False,
) -> int | None:  # fmt: skip
    """Run ``python -m module *arguments`` in a session of its own, its output in ``log``; a fork of a warm server unless ``fresh``.

    Returns the most memory (MiB) that it held; None where the system does not tell.

    Raises PageFailed when it fails or passes ``timeout`` seconds (all that it started is ended), Stopped when the run is stopped.
    """
    if stopping.is_set():
        raise Stopped("stopped")
    child = warm.start(module, arguments, log=log, threads=threads, env=env, fresh=fresh)
    started = time.monotonic()  # the first child waits until the server has imported what all need
    try:
        while child.wait(POLL_S) is None:
            on_tick()
            if stopping.is_set():
                raise Stopped("stopped")
            if time.monotonic() - started > timeout:
                raise PageFailed(f"stopped after {timeout:.0f} s, its time limit; what was recorded is kept")
        on_tick()
    finally:
        child.kill()
    if child.returncode:
        raise PageFailed(_why(log, child.returncode))
    return child.peak_mib


def _why(log: Path, code: int) -> str:
    """The last line that a child said, or the signal that ended it."""
    lines = [line.strip() for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
    ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit {code}"
    shown = log.relative_to(ROOT) if log.is_relative_to(ROOT) else log
    return f"{lines[-1] if lines and code > 0 else 'it ended without a word'} ({ending}; all of it in {shown})"


@contextmanager
def interruptible() -> Iterator[None]:
    """Within it, Ctrl-C or a polite kill ends all children at once; a second Ctrl-C acts as it always does.

    At its end the warm server, if one was needed, is ended too.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()  # whoever waits for a child sees it within a tenth of a second, and kills the child's group
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt

    stopping.clear()
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        warm.close()
