"""Warm children: what they are given, how they end, and that nothing outlives the caller."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from textwrap import dedent

import pytest

from cnnstudy.report import warm
from cnnstudy.runtime import cores

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks are used on Linux alone")

TASK = """
import ctypes, json, os, random, subprocess, sys, threading, time

def main():
    what, *rest = sys.argv[1:]
    globals()[what](*rest)

def given():
    print(json.dumps([sys.argv, os.getcwd(), os.environ.get("GIVEN"), os.getsid(0) == os.getpid(), sys.stdin.read()]))

def leave(how):
    print("out")
    exec(how)

def draw():
    import numpy, torch
    print(random.random(), numpy.random.rand(), torch.rand(1).item())

def counts():
    import numpy, threadpoolctl, torch
    blas = [one["num_threads"] for one in threadpoolctl.threadpool_info() if one["user_api"] == "blas"]
    square = numpy.ones((700, 700)) @ numpy.ones((700, 700))
    print(json.dumps([torch.get_num_threads(), blas, os.environ["OMP_NUM_THREADS"], len(os.listdir("/proc/self/task"))]))

def hold(mib):
    kept = bytearray(int(mib) * 2**20)
    kept[::4096] = b"x" * len(kept[::4096])

def parent(seconds):
    print(subprocess.Popen(["sleep", "60"]).pid, flush=True)
    time.sleep(float(seconds))

if __name__ == "__main__":
    main()
"""
THREADY = "import threading, time\nthreading.Thread(target=time.sleep, args=[600], daemon=True, name='idler').start()\n"
Run = Callable[..., tuple[warm.Child, str]]


def gone(pid: int, within: float = 5) -> bool:
    """Whether a process ends; one that only waits to be waited for by the system's first process has ended."""
    for _ in range(int(within * 20)):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    (made / "warm_task.py").write_text(TASK)
    (made / "warm_thready.py").write_text(THREADY)
    return made


def server(folder: Path, *preload: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(warm, "PRELOAD", preload)
        patch.setattr(warm, "_noted", set())
        warm.close()
        yield
        warm.close()


@pytest.fixture(scope="module")
def libraries(folder: Path) -> Iterator[None]:
    yield from server(folder, "torch", "numpy", "threadpoolctl")


@pytest.fixture
def light(folder: Path) -> Iterator[None]:
    yield from server(folder, "json")


@pytest.fixture
def thready(folder: Path) -> Iterator[None]:
    yield from server(folder, "warm_thready")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def started(*arguments: str, threads: int = 1, **more: object) -> tuple[warm.Child, str]:
        log = tmp_path / "log"
        child = warm.start("warm_task", arguments, log=log, threads=threads, **more)  # type: ignore[arg-type]
        assert child.wait(60) is not None
        return child, log.read_text()

    return started


def parent(log: Path, fresh: bool = False) -> tuple[warm.Child, int]:
    """A child that waits for a minute, and the process that it has started."""
    child = warm.start("warm_task", ["parent", "60"], log=log, threads=1, fresh=fresh)
    while not (text := log.read_text()).endswith("\n"):
        assert child.wait(0.05) is None
    return child, int(text)


@pytest.mark.parametrize("fresh", [False, True])
def test_a_child_gets_what_it_is_given(light: None, run: Run, tmp_path: Path, fresh: bool) -> None:
    _, text = run("given", env={"GIVEN": "é"}, cwd=tmp_path, fresh=fresh)
    argv, cwd, variable, leads, read = json.loads(text)
    assert argv[1:] == ["given"] and cwd == str(tmp_path) and variable == "é" and leads and read == ""


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(
    ("how", "code", "last"),
    [
        ("pass", 0, "out"),
        ("sys.exit('no such page')", 1, "no such page"),
        ("sys.exit(3)", 3, "out"),
        ("sys.exit(0)", 0, "out"),
        ("1 / 0", 1, "ZeroDivisionError: division by zero"),
        ("import atexit; atexit.register(print, 'left')", 0, "left"),
        ("os.kill(os.getpid(), 11)", -11, "out"),
    ],
)
def test_how_a_child_ends(light: None, run: Run, how: str, code: int, last: str, fresh: bool) -> None:
    child, text = run("leave", how, fresh=fresh, env={"PYTHONUNBUFFERED": "1"})
    assert child.returncode == code and child.wait(0) == code
    assert (text.splitlines() or [""])[-1] == last


def test_children_draw_different_numbers(libraries: None, run: Run) -> None:
    drawn = [run("draw")[1].split() for _ in range(3)]
    assert all(len(set(column)) == 3 for column in zip(*drawn, strict=True))


@pytest.mark.skipif(cores() < 2, reason="one core")
def test_threads_are_those_asked_for(libraries: None, run: Run) -> None:
    for threads in (2, 1):  # the server itself has one
        torch, blas, variable, running = json.loads(run("counts", threads=threads)[1])
        assert torch == threads and set(blas) <= {threads} and variable == str(threads)
        assert (running == 1) == (threads == 1)


def test_peak_memory(light: None, run: Run) -> None:
    small, large = run("hold", "1")[0].peak_mib, run("hold", "200")[0].peak_mib
    assert small and large and 195 <= large - small <= 205


@pytest.mark.parametrize("fresh", [False, True])
def test_kill_ends_all_that_a_child_started(light: None, tmp_path: Path, fresh: bool) -> None:
    child, started = parent(tmp_path / "log", fresh)
    before = time.monotonic()
    child.kill()
    assert child.returncode == -signal.SIGKILL and time.monotonic() - before < 1
    assert gone(child.pid) and gone(started)


@pytest.mark.parametrize("fresh", [False, True])
def test_what_a_child_leaves_behind_ends_with_it(light: None, run: Run, fresh: bool) -> None:
    assert gone(int(run("parent", "0", fresh=fresh)[1]))


def test_two_hundred_starts_eight_at_a_time(light: None, tmp_path: Path) -> None:
    def one(i: int) -> tuple[int | None, str]:
        child = warm.start("warm_task", ["leave", f"print({i})"], log=tmp_path / f"{i}.log", threads=1)
        return child.wait(60), (tmp_path / f"{i}.log").read_text()

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(200))) == [(0, f"out\n{i}\n") for i in range(200)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_hundred_notebooks_eight_at_a_time(tmp_path: Path) -> None:
    """None fails, and no two get each other's outputs."""
    warm.close()
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}

    def one(i: int) -> tuple[int | None, str]:
        source, target, log = (tmp_path / f"{i}{end}" for end in (".ipynb", "-drawn.ipynb", ".log"))
        code = f"import matplotlib.pyplot as plt\nimport pandas as pd\nimport torch\ntorch.full((), {i}).item()"
        cell = {"cell_type": "code", "id": "c", "metadata": {}, "source": code, "outputs": [], "execution_count": None}
        source.write_text(json.dumps({"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
        child = warm.start("cnnstudy.report.drawing", [str(source), "{}", str(target)], log=log, threads=1)
        code = child.wait(600)
        return code, log.read_text() or json.loads(target.read_text())["cells"][0]["outputs"][0]["data"]["text/plain"][0]

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(one, range(200)))
    warm.close()
    assert ended == [(0, str(i)) for i in range(200)]


def test_where_forking_is_not_safe_children_start_afresh(thready: None, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert run("leave", "pass")[0].returncode == 0
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "interpreters of their own" in said[0] and "threads" in said[0]


def test_once_the_code_has_changed_children_load_it_anew(
    light: None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warm, "PACKAGE", tmp_path)
    (tmp_path / "attacks.py").touch()
    assert isinstance(run("leave", "pass")[0], warm._Forked)
    os.utime(tmp_path / "attacks.py", (1e9, 2e9))
    assert isinstance(run("leave", "pass")[0], warm._Fresh)
    assert "changed" in capsys.readouterr().err


def test_a_server_that_dies_takes_its_children_along_and_is_done_without(
    light: None, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    child, started = parent(tmp_path / "long.log")
    assert warm._server is not None
    os.kill(warm._server.process.pid, signal.SIGKILL)
    assert child.wait(5) == -signal.SIGKILL and gone(child.pid) and gone(started)
    assert run("leave", "pass")[0].returncode == 0
    assert "the server has ended" in capsys.readouterr().err


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
def test_nothing_outlives_the_caller(folder: Path, tmp_path: Path, end: signal.Signals | None) -> None:
    """Nor does it when another process holds a copy of the caller's end; None: server killed, caller unable to react."""
    code = f"""
        import os, signal, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background inherits that it is ignored
        from pathlib import Path
        from cnnstudy.report import warm
        warm.PRELOAD = ("json",)
        child = warm.start("warm_task", ["parent", "60"], log=Path({str(tmp_path / "log")!r}), threads=1)
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        print(warm._server.process.pid, child.pid, flush=True)
        time.sleep(60)
    """
    with subprocess.Popen(
        [sys.executable, "-c", dedent(code)], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(folder)},
        stderr=subprocess.DEVNULL, start_new_session=True,
    ) as caller:  # fmt: skip
        assert caller.stdout is not None
        server, child = (int(pid) for pid in caller.stdout.readline().split())
        while not (text := (tmp_path / "log").read_text()).endswith("\n"):
            time.sleep(0.05)
        if end is None:
            caller.send_signal(signal.SIGSTOP)
            os.kill(server, signal.SIGKILL)
        else:
            caller.send_signal(end)
        try:
            assert gone(child) and gone(server) and (end is None or gone(int(text)))
        finally:
            for group in (caller.pid, child):
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)


def test_close_does_not_wait_for_imports(folder: Path) -> None:
    made = server(folder, "torch", "pandas", "scipy.stats")
    next(made)
    warm.begin()
    before = time.monotonic()
    warm.close()
    assert time.monotonic() - before < 1.5
    next(made, None)


def test_a_system_without_room_for_a_fork_is_said_so(light: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    warm.begin()
    assert warm._server is not None
    warm._server.start = lambda request: None  # type: ignore[method-assign]  # what a refused fork comes to
    child = warm.start("warm_task", ["leave", "pass"], log=tmp_path / "log", threads=1)
    assert child.wait(60) == 0
    assert "interpreters of their own: the system has no room for another process" in capfd.readouterr().err
