"""Child processes that start warm: forks of a server that has the heavy imports behind it.

    child = warm.start("cnnstudy.report.cells", ["q33", "{...}"], log=path, threads=1, env={...})
    while child.wait(0.1) is None: ...
    child.kill(); child.returncode; child.peak_mib
    warm.close()

``start`` does what ``python -m module arguments`` does, without the seconds that importing torch, pandas and matplotlib
takes.  The server is ``forks.py``; where the system cannot fork, or the server finds that it is not safe, the child is
such an interpreter, and one line says so.  A child leads a session of its own, and all of it ends with the child; all
children of the server end with the caller, however that ends.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cnnstudy.report.forks import reap
from cnnstudy.runtime import ROOT

# What pages and measurements import, also late; not onnxruntime: importing that starts a thread.
PRELOAD = (
    "torch", "pandas", "scipy.stats", "seaborn", "matplotlib.pyplot", "PIL.BmpImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin",
    "PIL.PpmImagePlugin", "PIL.WebPImagePlugin", "threadpoolctl", "nbformat.v4", "papermill.execute", "IPython.core.application",
    "IPython.core.completer", "IPython.core.completerlib", "IPython.core.logger", "IPython.core.oinspect",
    "cnnstudy.report.shell", "cnnstudy.report.drawing", "cnnstudy.report.show", "cnnstudy.report.charts", "cnnstudy.report.theme",
    "cnnstudy.report.study", "cnnstudy.report.verdicts", "cnnstudy.report.frontier", "cnnstudy.models.zoo", "cnnstudy.train",
    "cnnstudy.attacks", "cnnstudy.defences.league", "cnnstudy.compress.int8", "cnnstudy.engines", "cnnstudy.hooks", "cnnstudy.timing",
    "cnnstudy.probes.anatomy", "cnnstudy.probes.attribution", "cnnstudy.probes.cost", "cnnstudy.probes.jacobians",
    "cnnstudy.probes.worth",
)  # fmt: skip
PACKAGE = Path(__file__).parents[1]
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Child:
    """A running child; ``returncode`` is None while it runs, and negative for a signal, as in ``subprocess``.

    ``peak_mib``, known at its end: the most resident memory of the child or of one of its own children; None on Windows.
    """

    def __init__(self) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self.peak_mib: int | None = None
        self._ended = threading.Event()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait at most ``timeout`` seconds; the return code, or None while the child still runs."""
        self._ended.wait(timeout)
        return self.returncode

    def kill(self) -> None:
        """End the child and all that it started, and wait for that."""
        raise NotImplementedError

    def _end(self, returncode: int, peak_mib: int | None) -> None:
        self.returncode, self.peak_mib = returncode, peak_mib
        self._ended.set()


class _Fresh(Child):
    """A child with an interpreter of its own."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        super().__init__()
        with open(request["log"], "wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", request["module"], *request["arguments"]], cwd=request["cwd"], env=request["env"],
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        if hasattr(os, "wait4"):
            self._process.returncode, peak = reap(self.pid)
            self._end(self._process.returncode, peak)
        else:
            self._end(self._process.wait(), None)

    def kill(self) -> None:
        if self.returncode is None and hasattr(os, "killpg"):
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        elif self.returncode is None:
            self._process.kill()
        self._ended.wait()


class _Forked(Child):
    """A child of the server."""

    def __init__(self, server: _Server, number: int) -> None:
        super().__init__()
        self.server, self.number, self.started = server, number, threading.Event()

    def kill(self) -> None:
        self.server.send({"kill": self.number})
        self._ended.wait()


class _Server:
    """The caller's end of the server: sends requests; a thread hears what becomes of them."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.code = _code()
        self.connection, theirs = socket.socketpair()
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the server)
        self.trouble: str | None = None  # why it cannot be used
        self.closing = False
        self.ready = threading.Event()
        self.children: dict[int, _Forked] = {}
        self.number = 0
        self.lock = threading.Lock()
        # With more than one thread numpy's BLAS starts a pool on import; children set theirs after the fork.  What only
        # the start of an interpreter can set is set here for all children: the seed of the hash of texts.
        env = os.environ | dict.fromkeys(THREADS, "1") | {"PYTHONHASHSEED": "0", "MPLBACKEND": "agg"}
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cnnstudy.report.forks", str(theirs.fileno()), *PRELOAD], pass_fds=[theirs.fileno()],
                cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=self.said, stderr=self.said, start_new_session=True,
            )  # fmt: skip
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def send(self, message: Mapping[str, Any]) -> None:
        with self.lock, suppress(OSError):  # the listener notices that a server is gone
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def start(self, request: Mapping[str, Any]) -> Child | None:
        """A new child, or None where the server cannot make one."""
        self.ready.wait()
        with self.lock:
            if self.trouble is not None:
                return None
            self.number += 1
            child = self.children[self.number] = _Forked(self, self.number)
        self.send({**request, "start": child.number})
        child.started.wait()
        return child if child.pid else None

    def _listen(self) -> None:
        with suppress(OSError), self.connection.makefile("rb") as lines:
            for line in lines:
                self._hear(**json.loads(line))
        with self.lock:
            self.trouble = self.trouble or self._last_words() or "the server has ended"
            left = list(self.children.values())
        for child in left:
            if child.pid:
                with suppress(OSError):  # what it has started; itself it has ended with the server
                    os.killpg(child.pid, signal.SIGKILL)
            child._end(-signal.SIGKILL, None)
            child.started.set()
        self.ready.set()

    def _hear(self, event: str, number: int = 0, value: Any = None, peak_mib: int | None = None) -> None:
        if event == "ready":
            self.trouble = value
            self.ready.set()
        elif event == "started":
            self.children[number].pid = value
            self.children[number].started.set()
        else:
            self.children.pop(number)._end(value, peak_mib)

    def _last_words(self) -> str | None:
        self.said.seek(0)
        lines = [line for line in self.said.read().decode("utf-8", "replace").splitlines() if line.strip()]
        return lines[-1] if lines else None

    def close(self) -> None:
        self.closing = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        try:
            self.process.wait(0.5)
        except subprocess.TimeoutExpired:  # it is still importing
            self.process.kill()
            self.process.wait()
        self.listener.join()
        self.connection.close()
        self.said.close()


_server: _Server | None = None
_lock = threading.Lock()
_noted: set[str] = set()


def begin() -> None:
    """Let the server import while the caller does something else; ``start`` does this by itself."""
    global _server
    with _lock:
        if _server is not None and _server.owner != os.getpid():
            _server = None  # this process is a fork of the caller: the server is not its own
        if _server is None and sys.platform == "linux":
            _server = _Server()
            atexit.register(close)


def start(
    module: str, arguments: Sequence[str], *, log: Path, threads: int,
    env: Mapping[str, str] | None = None, cwd: Path = ROOT, fresh: bool = False,
) -> Child:  # fmt: skip
    """Run ``module.main()`` with ``sys.argv[1:] = arguments`` in a child; all that it prints goes to ``log``.

    ``threads``: of torch and the numerical libraries.  ``env``: added to the caller's environment; what Python reads as it
    starts (``PYTHON...``) has no effect on a fork.  ``fresh``: an interpreter of its own in any case.
    Any thread may call this.
    """
    counts = dict.fromkeys(THREADS, str(threads))
    request = {"module": module, "arguments": list(arguments), "log": str(log.absolute()), "cwd": str(cwd), "threads": threads,
               "env": {**os.environ, **counts, **(env or {})}}  # fmt: skip
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_bytes(b"")
    if not fresh:
        begin()
        server = _server
        changed = server is not None and server.code != _code()
        if server is not None and not changed and (child := server.start(request)):
            return child
        if server is None or not server.closing:
            why = "the code was changed meanwhile" if changed else f"{sys.platform} cannot fork safely"
            if server is not None and not changed:
                why = server.trouble or "the system has no room for another process"
            _note(f"pages start interpreters of their own: {why}")
    return _Fresh(request)


def _code() -> int:
    """When the package was last changed: a fork has the code of the server's start, but a record names that of its own time."""
    changed = 0
    for path in PACKAGE.rglob("*.py"):
        with suppress(FileNotFoundError):  # somebody who edits it puts another in its place
            changed = max(changed, path.stat().st_mtime_ns)
    return changed


def _note(text: str) -> None:
    with _lock:
        said = text in _noted
        _noted.add(text)
    if not said:
        print(f"cnnstudy: {text}", file=sys.stderr)


def close() -> None:
    """End the server and all that runs in it."""
    global _server
    with _lock:
        server, _server = _server, None
    atexit.unregister(close)
    if server is not None and server.owner == os.getpid():
        server.close()
