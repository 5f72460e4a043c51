"""What else the machine did: the bounds on made-up counters, and one watch on the real ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cnnstudy import load
from cnnstudy.load import Sample, Watch, pause, state, summarise


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(load, "gpu_name", lambda: None)
    load._gpu_query.cache_clear()
    yield
    load._gpu_query.cache_clear()


def run(seconds: float = 10.0, ours: float = 1.0, others: float = 0.0, stolen: float = 0.0, **sensors: Any) -> list[Sample]:
    """Two samples at the ends: cores that we, others and the hypervisor used in between."""
    first = Sample(0.0, 100.0, 5.0, 50.0)
    return [first, Sample(seconds, 100 + seconds * (ours + others), 5 + seconds * stolen, 50 + seconds * ours, **sensors)]


def test_a_quiet_run() -> None:
    found = summarise(run(others=0.05))
    assert found == {"samples": 2, "others": 0.05, "stolen": 0.0, "disturbed": False, "throttled": False}


@pytest.mark.parametrize(
    ("given", "disturbed"),
    [({"others": 0.19}, False), ({"others": 0.21}, True), ({"stolen": 0.04}, False), ({"stolen": 0.06}, True),
     ({"ours": 60, "others": 0.9}, False), ({"ours": 60, "others": 1.3}, True)],
)  # fmt: skip
def test_disturbed_by_others_or_by_a_hypervisor(given: dict[str, float], disturbed: bool) -> None:
    found = summarise(run(**given))
    assert found["disturbed"] is disturbed and not found["throttled"]


def test_a_run_too_short_for_the_ticks_of_the_clock_is_not_judged() -> None:
    assert summarise(run(seconds=0.2, others=3)) == {"samples": 2, "disturbed": False, "throttled": False}


def test_our_own_work_is_not_a_disturbance_and_rounding_below_zero_is_nothing() -> None:
    assert summarise(run(ours=2.0, others=-0.01))["others"] == 0


def clocked(clocks: list[float]) -> dict[str, Any]:
    return summarise([Sample(float(i), 0, 0, 0, mhz=mhz, celsius=50.0 + i) for i, mhz in enumerate(clocks)])


def test_throttled_by_the_clock() -> None:
    steady = clocked([3000.0] * 20)
    assert (steady["mhz"], steady["mhz_low"], steady["celsius"], steady["throttled"]) == (3000, 3000, 69.0, False)
    assert not clocked([3000.0] * 19 + [2000.0])["throttled"]  # one reading in twenty is a flicker
    assert clocked([3000.0] * 17 + [2600.0] * 3)["throttled"]
    assert not clocked([3000.0] * 17 + [2750.0] * 3)["throttled"]  # within 90 %


def test_throttled_by_the_processors_own_count() -> None:
    ends = [Sample(0, 0, 0, 0, throttles=7), Sample(9, 0, 0, 0, throttles=7)]
    assert summarise(ends)["throttled"] is False
    hot = summarise([ends[0], Sample(9, 0, 0, 0, throttles=9)])
    assert hot["throttled"] is True and hot["throttles"] == 2


def test_the_gpu() -> None:
    quiet = "1980, 41, 0x0000000000000000\n1980, 44, 0x0\n345, 40, 0x0000000000000001\n"
    found = summarise(run(), quiet)
    assert (found["gpu_mhz"], found["gpu_mhz_low"], found["gpu_celsius"], found["throttled"]) == (1980, 1980, 44, False)
    hot = summarise(run(), quiet + "1200, 88, 0x0000000000000024\n12")
    assert hot["throttled"] and hot["gpu_slowed"] == "power cap, heat (software)" and hot["gpu_celsius"] == 88
    assert not summarise(run(), "[N/A], [N/A], [N/A]\n")["throttled"]
    assert summarise(run(), "\n".join(["1980, 44, 0x0"] * 8 + ["1500, 44, 0x0"] * 2))["throttled"]


def test_a_watch_of_this_process() -> None:
    with Watch(every_s=0.1) as watch:
        end = time.perf_counter() + 0.7
        while time.perf_counter() < end:
            sum(range(1000))
    (found,) = watch.note().values()
    assert found["samples"] == len(watch.samples) >= 2 and found["others"] >= 0
    assert watch.samples[-1].ours > watch.samples[0].ours
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_sampling_costs_no_more_than_half_a_percent_of_a_core() -> None:
    assert pause(0.001) == load.EVERY_S == 1.0
    assert pause(0.02) == pytest.approx(4.0)  # a sample that is dear is taken less often
    for cost in (0.0001, 0.004, 0.02, 1.0):
        assert cost / pause(cost) <= 0.005


def test_other_processes_are_seen_and_our_children_are_ours() -> None:
    spin = "import time; end = time.perf_counter() + 1.2\nwhile time.perf_counter() < end: pass"
    with Watch() as watch:
        child = subprocess.run([sys.executable, "-c", spin])
    assert child.returncode == 0
    ours = watch.samples[-1].ours - watch.samples[0].ours
    assert ours > 0.02  # the child's time, as much of it as a busy machine gave it
    # and for what is not ours: the sample of a process that we do not count
    before, after = watch.samples[0], watch.samples[-1]
    strangers = [before, Sample(after.at, after.work, after.stolen, before.ours)]
    assert summarise(strangers)["others"] > summarise([before, after])["others"]


def test_a_child_that_is_still_at_work_is_ours() -> None:
    child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before, own, deadline, theirs = load.sample().ours, time.process_time(), time.monotonic() + 30, 0.0
        while theirs < 0.1 and time.monotonic() < deadline:
            time.sleep(0.05)
            theirs = load.sample().ours - before - (time.process_time() - own)
    finally:
        child.kill()
        child.wait()
    assert theirs >= 0.1


def test_nothing_is_watched_unless_asked() -> None:
    with Watch(active=False) as watch:
        pass
    assert watch.note() == {} and watch.samples == [] and watch._thread is None


def test_what_goes_wrong_with_watching_does_not_stop_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "sample", lambda: 1 / 0)
    with Watch(every_s=0.05) as watch:
        time.sleep(0.15)
    assert watch.note() == {}


def test_an_error_of_the_trial_comes_through_and_the_thread_ends() -> None:
    with pytest.raises(ArithmeticError), Watch(every_s=0.05) as watch:
        raise ArithmeticError("loss became nan")
    assert watch._thread is not None and not watch._thread.is_alive()


def test_nvidia_smi_is_asked_in_the_words_that_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up nvidia-smi that knows only the old name of the reasons, and goes on until it is ended."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        f"#!{sys.executable}\nimport sys, time\n"
        "if 'event' in ' '.join(sys.argv): sys.exit(2)\n"
        "while True:\n    print('1500, 60, 0x0000000000000040', flush=True)\n"
        "    if not any(a.startswith('--loop') for a in sys.argv): break\n    time.sleep(0.05)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(load, "gpu_name", lambda: "NVIDIA H200")
    with Watch(every_s=0.1) as watch:
        deadline = time.monotonic() + 20  # a busy machine may be slow to start it
        while time.monotonic() < deadline and os.fstat(watch._gpu[1].fileno()).st_size == 0:  # type: ignore[index]
            time.sleep(0.05)
    found = watch.note()["load"]
    assert found["gpu_slowed"] == "heat (hardware)" and found["throttled"] and found["gpu_celsius"] == 60
    assert watch._gpu is not None and watch._gpu[0].poll() is not None


def test_the_state_of_a_record() -> None:
    assert state({}) == "not sampled"
    assert state({"load": summarise(run())}) == "quiet"
    assert state({"load": summarise(run(seconds=0.2))}) == "too short to tell"
    assert state({"load": {"disturbed": True, "throttled": True}}) == "disturbed, throttled"


def test_the_module_needs_no_torch() -> None:
    code = "import sys, cnnstudy.load; print(sorted({'torch', 'psutil'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
