"""What reads the clock is alone on the machine; one runner in a checkout."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cnnstudy.config import Refused
from cnnstudy.report import locks


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNSTUDY_LOCKS", str(tmp_path / "locks"))
    monkeypatch.setattr(locks, "BUILD", tmp_path / "build")
    monkeypatch.setattr(locks, "POLL_S", 0.05)


def hold(alone: bool, seconds: float, log: list[tuple[float, float]]) -> threading.Thread:
    def work() -> None:
        with locks.machine(alone):
            start = time.monotonic()
            time.sleep(seconds)
            log.append((start, time.monotonic()))

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return max(a[0], b[0]) < min(a[1], b[1])


def test_others_work_side_by_side_and_the_clock_alone() -> None:
    together: list[tuple[float, float]] = []
    timed: list[tuple[float, float]] = []
    threads = [hold(False, 0.4, together) for _ in range(3)]
    time.sleep(0.1)
    threads += [hold(True, 0.2, timed) for _ in range(2)]
    for thread in threads:
        thread.join()
    assert overlap(together[0], together[1]) and overlap(together[1], together[2])
    assert not overlap(*timed)
    assert not any(overlap(a, b) for a in together for b in timed)


def test_another_process_is_kept_out_and_death_lets_go(tmp_path: Path) -> None:
    code = "import time; from cnnstudy.report import locks\nwith locks.machine(True):\n print('held', flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout and child.stdout.readline().strip() == "held"
    asked: list[int] = []

    def wanted() -> bool:
        asked.append(1)
        return len(asked) < 4

    with pytest.raises(Refused, match="while waiting"), locks.machine(False, wanted):
        pass
    child.kill()
    child.communicate()
    with locks.machine(True):
        pass


def test_one_runner_in_a_checkout() -> None:
    with locks.checkout("run"):
        words = r"another run holds this checkout \(process \d+, since \d\d:\d\d: cnnstudy"
        with pytest.raises(Refused, match=words), locks.checkout("run"):
            pass
        with locks.checkout("draw"):
            pass
    with locks.checkout("run"):
        pass
