"""What else a machine did while something was timed on it: other processes, clocks, temperature, throttling.

A light thread takes a sample once a second.  What it saw is kept in the record as a few numbers, and a run is marked

- ``disturbed`` when other processes used more than a fifth of a core (or 2 % of what we used ourselves, which the system's
  clocks may disagree on), or a hypervisor withheld more than a twentieth of one;
- ``throttled`` when the slowest tenth of clock readings lies below 90 % of their median, the processor counted a throttling,
  or an NVIDIA GPU said that power, heat or a brake slowed it.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import IO, Any

from cnnstudy.runtime import gpu_name

EVERY_S = 1.0
SHORTEST_S = 0.5  # below that the ticks of the system's clocks, 10 ms each, say nothing
MOST = 0.005  # of a core that sampling may cost; where a sample is dear, they are taken less often
OTHERS, OURS, STOLEN, CLOCK = 0.2, 0.02, 0.05, 0.9
WORK = ("user", "nice", "system", "irq", "softirq", "interrupt", "dpc")
THROTTLES = "/sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"
# bits of NVML's clocks event reasons that mean "slower than it could": the others are idleness and settings
SLOWED = {0x4: "power cap", 0x8: "hardware slowdown", 0x20: "heat (software)", 0x40: "heat (hardware)", 0x80: "power brake"}
GPU_FIELDS = ("clocks.sm", "temperature.gpu")
GPU_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # the new name and the old


@dataclass(frozen=True)
class Sample:
    """Counters since boot, in CPU seconds over the cores that this process may use, and what the sensors say now.

    ``work``: of all processes; ``stolen``: withheld by a hypervisor; ``ours``: of this process and its children; ``throttles``: how
    often the cores were slowed by heat.  None: the system does not tell.
    """

    at: float
    work: float
    stolen: float
    ours: float
    mhz: float | None = None
    celsius: float | None = None
    throttles: int | None = None


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def sample() -> Sample:
    """Read the counters and sensors once: a few milliseconds."""
    import psutil

    mine, every = _cores(), psutil.cpu_times(percpu=True)
    used = [every[n] for n in mine if n < len(every)]
    work = sum(getattr(one, name, 0.0) for one in used for name in WORK)
    me = psutil.Process()
    own = me.cpu_times()
    ours = own.user + own.system + own.children_user + own.children_system
    for child in me.children(recursive=True):
        with suppress(psutil.Error):
            times = child.cpu_times()
            ours += times.user + times.system
    mhz = celsius = throttles = None
    with suppress(OSError, NotImplementedError, AttributeError, RuntimeError):
        # the fastest core: those that have nothing to do may well be slow
        mhz = max((one.current for one in psutil.cpu_freq(percpu=True)), default=None)
    with suppress(OSError, AttributeError):
        celsius = max((one.current for those in psutil.sensors_temperatures().values() for one in those), default=None)
    with suppress(OSError, ValueError):
        throttles = sum(int(Path(THROTTLES.format(n)).read_text()) for n in mine)
    return Sample(time.perf_counter(), work, sum(getattr(one, "steal", 0.0) for one in used), ours, mhz or None, celsius or None, throttles)


def summarise(samples: Sequence[Sample], gpu: str = "") -> dict[str, Any]:
    """The few numbers that a record keeps; what the system did not tell is left out.

    ``others`` and ``stolen``: cores on average (0.2 is a fifth of one core); ``mhz`` median and ``mhz_low`` of the fastest core;
    ``celsius``: the highest; ``gpu_mhz``, ``gpu_mhz_low``, ``gpu_celsius``, ``gpu_slowed`` alike, from ``gpu``, the lines that
    ``nvidia-smi`` wrote.  ``samples``: how many; ``disturbed``, ``throttled``: true or false.
    """
    first, last = samples[0], samples[-1]
    wall = last.at - first.at
    found: dict[str, Any] = {"samples": len(samples)}
    disturbed = False
    if wall >= SHORTEST_S:
        ours, stolen = (last.ours - first.ours) / wall, (last.stolen - first.stolen) / wall
        others = max(0.0, (last.work - first.work) / wall - ours)
        found |= {"others": round(others, 3), "stolen": round(stolen, 3)}
        disturbed = others > max(OTHERS, OURS * ours) or stolen > STOLEN
    clocks = [s.mhz for s in samples if s.mhz]
    found |= _clock("mhz", clocks)
    throttled = _dips(clocks)
    if heat := [s.celsius for s in samples if s.celsius]:
        found["celsius"] = round(max(heat), 1)
    if first.throttles is not None and last.throttles is not None:
        found["throttles"] = last.throttles - first.throttles
        throttled |= found["throttles"] > 0
    told, slowed = _gpu(gpu)
    return found | told | {"disturbed": disturbed, "throttled": throttled or slowed}


def _clock(name: str, clocks: Sequence[float]) -> dict[str, float]:
    return {name: round(median(clocks)), f"{name}_low": round(min(clocks))} if clocks else {}


def _dips(clocks: Sequence[float]) -> bool:
    """Whether the slowest tenth of the readings lies below 90 % of their median."""
    return len(clocks) > 2 and sorted(clocks)[len(clocks) // 10] < CLOCK * median(clocks)


def _gpu(text: str) -> tuple[dict[str, Any], bool]:
    """What ``nvidia-smi`` wrote, lines of MHz, degrees and a mask of reasons; and whether the GPU was slowed."""
    clocks: list[float] = []
    heat: list[float] = []
    mask = 0
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        with suppress(ValueError, IndexError):  # "[N/A]", or a line that was cut off
            busy = int(parts[2], 16)
            heat.append(float(parts[1]))
            mask |= busy
            if not busy & 0x1:  # an idle GPU rests its clock
                clocks.append(float(parts[0]))
    if not heat:
        return {}, False
    why = [word for bit, word in SLOWED.items() if mask & bit]
    found = _clock("gpu_mhz", clocks) | {"gpu_celsius": round(max(heat)), **({"gpu_slowed": ", ".join(why)} if why else {})}
    return found, bool(why) or _dips(clocks)


@cache
def _gpu_query() -> tuple[str, ...] | None:
    """The command that writes a line about the GPU, in the words that this driver knows; None where there is no NVIDIA GPU."""
    if gpu_name() is None:
        return None
    which = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    for reasons in GPU_REASONS:
        fields = ",".join((*GPU_FIELDS, reasons))
        command = ("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={which}")
        with suppress(OSError, subprocess.TimeoutExpired):
            if subprocess.run(command, capture_output=True, timeout=20).returncode == 0:
                return command
    return None


class Watch:
    """Samples while the block runs; afterwards ``note()`` is what the record keeps.

    >>> with Watch(spec.kind == "hardware") as watch:
    ...     results = trial(setups, seed)
    >>> record["provenance"] |= watch.note()
    """

    def __init__(self, active: bool = True, every_s: float = EVERY_S) -> None:
        self.active, self.every_s = active, every_s
        self.samples: list[Sample] = []
        self.cost_s = 0.0
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._gpu: tuple[subprocess.Popen[bytes], IO[bytes]] | None = None
        self._gpu_text = ""

    def __enter__(self) -> Watch:
        if not self.active:
            return self
        if command := _gpu_query():
            lines = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__; a pipe that nobody reads would fill up
            period = f"--loop={max(1, round(self.every_s))}"  # one process for the whole run: starting one is dearer than asking
            self._gpu = subprocess.Popen([*command, period], stdout=lines, stderr=subprocess.DEVNULL), lines
        self._take()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()
        return self

    def _take(self) -> float:
        """Take a sample; returns the CPU seconds that it cost."""
        before = time.thread_time()
        with suppress(Exception):  # whatever goes wrong with watching, what is being measured goes on
            self.samples.append(sample())
        cost = time.thread_time() - before
        self.cost_s += cost
        return cost

    def _run(self) -> None:
        wait = self.every_s
        while not self._end.wait(wait):
            wait = pause(self._take(), self.every_s)

    def __exit__(self, *error: object) -> None:
        if self._thread is None:
            return
        self._end.set()
        self._thread.join()
        self._take()
        if self._gpu is not None:
            asked, lines = self._gpu
            asked.terminate()
            asked.wait()
            with lines:
                lines.seek(0)
                self._gpu_text = lines.read().decode("utf-8", "replace")

    def note(self) -> dict[str, Any]:
        """``{"load": ...}``, see :func:`summarise`; empty if nothing was watched."""
        return {"load": summarise(self.samples, self._gpu_text)} if len(self.samples) > 1 else {}


def pause(cost_s: float, every_s: float = EVERY_S) -> float:
    """Seconds until the next sample, so that samples of ``cost_s`` CPU seconds take no more than half a percent of a core."""
    return max(every_s, cost_s / MOST)


def state(provenance: Mapping[str, Any]) -> str:
    """What a record's ``load`` comes to: quiet, disturbed, throttled, or both; too short to tell; not sampled (older records)."""
    load = provenance.get("load")
    if not load:
        return "not sampled"
    said = [word for word in ("disturbed", "throttled") if load.get(word)]
    return ", ".join(said) or ("quiet" if "others" in load else "too short to tell")
