"""The server behind ``warm``: imports what pages need, computes nothing, and forks a child for each request.

``python -m cnnstudy.report.forks <socket> <module> ...``, started by ``warm``.  It is Python's own forkserver in small, because that one
cannot tell a child's memory, cannot be ended, and runs the caller's main module again in each child.  Forking is safe while
there is one thread and the GPU was not touched: the server looks, and says so where that is not the case.
Requests and answers are lines of JSON.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import select
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import Any, NoReturn

GPU_DEVICES = ("/dev/nvidia", "/dev/kfd")


def unsafe() -> str | None:
    """Why this process must not fork; None where it may.  A fork has only the thread that forked, and no working CUDA."""
    names = [Path(f"/proc/self/task/{task}/comm").read_text().strip() for task in os.listdir("/proc/self/task")]
    if len(names) > 1 or threading.active_count() > 1:
        return f"an import has started threads ({', '.join(names)})"
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the descriptor that listed them is gone
            if os.readlink(f"/proc/self/fd/{number}").startswith(GPU_DEVICES):
                return "an import has initialised the GPU"
    return None


def reap(pid: int) -> tuple[int, int]:
    """Wait for a child, then end what is left of its session.  Its return code, and the most memory (MiB) that it had."""
    with suppress(AttributeError):  # macOS
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # its number is its own until it is waited for below
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    _, status, usage = os.wait4(pid, 0)
    return os.waitstatus_to_exitcode(status), usage.ru_maxrss // (1024**2 if sys.platform == "darwin" else 1024)


class Server:
    """Forks children on request, and tells how each ended."""

    def __init__(self, connection: socket.socket, preload: Sequence[str]) -> None:
        self.connection, self.preload = connection, preload
        self.running: dict[int, int] = {}
        self.wake, self.waker = os.pipe()
        os.set_blocking(self.waker, False)

    def serve(self) -> None:
        """Import, answer whether forking is safe, and work until the caller is gone; then end all children."""
        caller = os.getppid()
        self._import()
        trouble = unsafe()
        self._send(event="ready", value=trouble)
        signal.set_wakeup_fd(self.waker)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        heard, ear = b"", self.connection.fileno()
        try:
            while trouble is None and os.getppid() == caller:
                ready, _, _ = select.select([ear, self.wake], [], [], 1)
                if self.wake in ready:
                    os.read(self.wake, 4096)
                    self._bury()
                if ear in ready:
                    piece = self.connection.recv(1 << 16)
                    if not piece:
                        break
                    *lines, heard = (heard + piece).split(b"\n")
                    for line in lines:
                        self._answer(json.loads(line))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the caller is gone
        finally:
            for pid in self.running.values():
                _kill(pid)

    def _import(self) -> None:
        gc.disable()
        for name in self.preload:
            with suppress(ImportError):  # a child that needs it says so in its own words
                importlib.import_module(name)
        gc.freeze()  # a child's collector need not look through, and so copy, all that it inherits
        gc.enable()

    def _answer(self, request: Mapping[str, Any]) -> None:
        if "kill" in request:
            if request["kill"] in self.running:
                _kill(self.running[request["kill"]])
            return
        number, server = request["start"], os.getpid()
        try:
            pid = os.fork()
        except OSError:  # no memory or process left
            pid = 0
        else:
            if pid == 0:
                _run(request, server, [self.connection.detach(), self.wake, self.waker])
            self.running[number] = pid
        self._send(event="started", number=number, value=pid)

    def _bury(self) -> None:
        for number, pid in list(self.running.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                returncode, peak = reap(pid)
                del self.running[number]
                self._send(event="ended", number=number, value=returncode, peak_mib=peak)

    def _send(self, **message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")


def _kill(pid: int) -> None:
    """End a child that was not waited for yet, with its session, which it does not have at once."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)


# in the child


def _run(request: Mapping[str, Any], server: int, inherited: Sequence[int]) -> NoReturn:
    """Become what a new interpreter would be, run the module's ``main``, and leave as an interpreter would."""
    code: Any = 1
    try:
        _become(request, server, inherited)
        sys.argv = [request["module"], *request["arguments"]]
        importlib.import_module(request["module"]).main()
        code = 0
    except SystemExit as error:
        code = error.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code & 0xFF)


def _become(request: Mapping[str, Any], server: int, inherited: Sequence[int]) -> None:
    os.setsid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: it dies with the server, however that ends
    if os.getppid() != server:
        os._exit(1)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in inherited:
        os.close(number)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # one that is killed has said what it had to say
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    _set_threads(request["threads"])
    _reseed()


def _set_threads(count: int) -> None:
    """Threads of libraries that are loaded already: for them, variables of the environment come too late."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
    with suppress(ImportError):
        importlib.import_module("threadpoolctl").threadpool_limits(count)


def _reseed() -> None:
    """From the system, as at the start of an interpreter: or all children would draw the same numbers."""
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.seed()


if __name__ == "__main__":
    Server(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:]).serve()
