"""This process and this machine: device, seeds, cores, and what a record says about where it came from."""

from __future__ import annotations

import functools
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnstudy.config import Refused

if TYPE_CHECKING:
    import torch

ROOT = Path(os.environ.get("CNNSTUDY_ROOT") or Path(__file__).resolve().parents[1])  # holds data, notebooks, book and _build
_NOISE = r"\((R|TM|r|tm)\)|\bCPU\b|\bProcessor\b|\b\d+-Core\b|@.*$|\bAMD\b|\bIntel\b|\bwith .*$"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def cpu_name() -> str:
    """The processor's own name, e.g. ``AMD EPYC``."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found[1].strip()
    except OSError:
        pass
    if sys.platform == "darwin":
        return subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True).stdout.strip()
    return platform.processor() or platform.machine()


@functools.cache
def gpu_name() -> str | None:
    """The CUDA device's name, or None; asks nvidia-smi, so that torch need not be imported."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    try:
        asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip().splitlines()[0] if done.returncode == 0 and done.stdout.strip() else None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


@functools.cache
def machine_id() -> str:
    """``nvidia-h200`` or ``epyc-2core``; the environment variable CNNSTUDY_MACHINE overrides it."""
    given = os.environ.get("CNNSTUDY_MACHINE")
    if given:
        if given != _slug(given):
            raise Refused(f"CNNSTUDY_MACHINE={given!r}: use small letters, digits and hyphens, e.g. {_slug(given) or 'my-machine'!r}")
        return given
    gpu = gpu_name()
    return _slug(gpu) if gpu else f"{_slug(re.sub(_NOISE, ' ', cpu_name())) or 'cpu'}-{cores()}core"


def describe_machine() -> dict[str, Any]:
    """What ``machine.json`` says: no host name, no user name, no path."""
    memory = None
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    flags = set()
    with suppress(OSError):
        flags = set(re.findall(r"\b(avx2|avx512f|avx512_vnni|avx512_bf16|amx_bf16)\b", Path("/proc/cpuinfo").read_text()))
    return {
        "id": machine_id(),
        "cpu": cpu_name(),
        "gpu": gpu_name(),
        "cores": cores(),
        "memory_gib": memory,
        "instructions": sorted(flags),
        "os": platform.system(),
        "arch": platform.machine(),
    }


def device() -> torch.device:
    """``cuda`` where there is one, else ``cpu``; CNNSTUDY_DEVICE overrides it."""
    import torch

    given = os.environ.get("CNNSTUDY_DEVICE")
    return torch.device(given or ("cuda" if torch.cuda.is_available() else "cpu"))


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run a block with ``count`` torch threads (None: leave as it is)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@functools.cache
def commit() -> tuple[str | None, bool | None]:
    """The checked-out commit and whether the package differs from it; (None, None) outside git."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    sha = git("rev-parse", "--short=12", "HEAD")
    status = git("status", "--porcelain", "--", "cnnstudy", "notebooks", "data/claims")
    return sha, None if status is None else bool(status)


def provenance(code: str, started: str, seconds: float) -> dict[str, Any]:
    """Where a record came from; stands beside the key, not in it."""
    import torch

    sha, dirty = commit()
    return {
        "machine": machine_id(),
        "device": str(device()),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": sha,
        "dirty": dirty,
        "code": code,
        "started": started,
        "seconds": round(seconds, 3),
    }
