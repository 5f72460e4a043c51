"""Who may run: one runner in a checkout, and nobody beside a measurement of time.

The first lock is for a checkout and is refused at once, naming who holds it.  The second is for the machine: what reads the
clock holds it alone, everything else that computes holds it together with others, in whatever checkout it runs.
"""

from __future__ import annotations

import datetime
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cnnstudy.config import Refused
from cnnstudy.runtime import ROOT

BUILD = ROOT / "_build"
POLL_S = 0.5  # how often a thread that waits for the machine looks whether it is still wanted


@contextmanager
def checkout(name: str) -> Iterator[None]:
    """Hold ``name`` ("run" or "draw") of this checkout.  Raises Refused, naming the holder, when it is taken.

    The system lets go of it when the holder dies, however it dies.
    """
    from filelock import FileLock, Timeout

    BUILD.mkdir(exist_ok=True)
    note = BUILD / f"{name}.holder.json"
    lock = FileLock(BUILD / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise Refused(f"another {name} holds this checkout ({_holder(note)}); wait for its end, or stop it") from None
    try:
        now = datetime.datetime.now().strftime("%H:%M")
        note.write_text(json.dumps({"pid": os.getpid(), "command": shlex.join(["cnnstudy", *sys.argv[1:]]), "since": now}))
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    try:
        holder = json.loads(note.read_text("utf-8"))
        return f"process {holder['pid']}, since {holder['since']}: {holder['command']}"
    except (OSError, ValueError, KeyError):
        return "it is just starting"


def _machine_file() -> Path:
    """In the machine's own temporary folder, and not in a home that several machines may share."""
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    folder = Path(os.environ.get("CNNSTUDY_LOCKS") or Path(tempfile.gettempdir()) / f"cnnstudy-{user}")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / "machine.db"


@contextmanager
def machine(alone: bool, wanted: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Hold this machine alone (to measure time), or together with others that do not hold it alone.

    Waits as long as it takes; ``wanted`` is asked twice a second, and when it says no, Refused is raised.
    """
    from filelock import ReadWriteLock, Timeout

    lock = ReadWriteLock(_machine_file(), is_singleton=False)  # threads of one process wait for each other too
    acquire = lock.acquire_write if alone else lock.acquire_read
    while True:
        if not wanted():
            raise Refused("stopped while waiting for the machine")
        try:
            acquire(timeout=POLL_S)
            break
        except Timeout:
            continue
    try:
        yield
    finally:
        lock.release()
        lock.close()
