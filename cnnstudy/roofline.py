"""The roofline of this machine (Williams et al. 2009, Communications of the ACM 52(4)): how fast it can move bytes, and multiply.

A kernel that does ``intensity`` MACs per byte moved can run at ``min(peak, intensity * bandwidth)`` at most.  Both ceilings are
measured, in seconds, on whatever this process may use; they are those of PyTorch, not of a data sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.runtime import cores
from cnnstudy.runtime import threads as torch_threads
from cnnstudy.timing import benchmark

FLOAT = 4  # bytes
CONV = (256, 256, 56)  # channels in and out, size of the map


def _streams(numbers: int, device: str) -> dict[str, tuple[Callable[[], object], float]]:
    """Loops over arrays and the bytes that each moves by the convention of STREAM (McCalpin 1995): what is read plus what is written."""
    a, b, c = (torch.rand(numbers, device=device) for _ in range(3))
    return {
        "copy": (lambda: a.copy_(b), 2 * FLOAT * numbers),
        "triad": (lambda: torch.add(b, c, alpha=3.0, out=a), 3 * FLOAT * numbers),
    }


def _products(side: int, device: str) -> dict[str, tuple[Callable[[], object], float]]:
    """The heaviest regular work there is, and its MACs: a square matrix product, and a wide 3x3 convolution in both layouts."""
    p, q, r = (torch.rand(side, side, device=device) for _ in range(3))
    c_in, c_out, size = CONV
    conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False, device=device).requires_grad_(False)
    last = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False, device=device).requires_grad_(False).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(1, c_in, size, size, device=device)
    x_last = x.to(memory_format=torch.channels_last)
    macs = 9 * c_in * c_out * size**2
    return {
        "gemm": (lambda: torch.mm(p, q, out=r), side**3),
        "conv": (lambda: conv(x), macs),
        "conv_channels_last": (lambda: last(x_last), macs),
    }


def ceilings(threads: int = 1, megabytes: int = 128, side: int = 1536, runs: int = 7, device: str = "cpu") -> dict[str, Any]:
    """Measured ceilings: the best of ``runs``, after a warm-up, the loops taking turns.

    - ``copy_gbs``, ``triad_gbs``: 10^9 bytes a second on arrays of ``megabytes`` each (larger than the caches); ``bandwidth_gbs``: the
      better of them;
    - ``gemm_gmacs``, ``conv_gmacs``, ``conv_channels_last_gmacs``: 10^9 MACs a second of a product of ``side`` x ``side`` matrices
      and of a 3x3 convolution of 256 channels on 56 x 56; ``peak_gmacs``: the best of them;
    - ``ridge``: the intensity, in MACs per byte, from which on the peak is the limit; ``threads`` (0: all cores).

    float32, in whatever precision PyTorch multiplies it by default.  Raises Refused for arrays below a megabyte or fewer than one run.
    """
    if megabytes < 1 or side < 1 or runs < 1 or threads < 0:
        raise Refused(f"ceilings needs megabytes, side, runs >= 1 and threads >= 0; got {megabytes}, {side}, {runs} and {threads}")
    count = threads or cores()
    with torch_threads(count), torch.no_grad():
        work = {**_streams(megabytes * 10**6 // FLOAT, device), **_products(side, device)}
        samples = benchmark({name: case for name, (case, _) in work.items()}, runs=runs, warmup=2, cuda=device != "cpu")
    rate = {name: amount / min(samples[name]) / 1e6 for name, (_, amount) in work.items()}  # per ms, in millions: 10^9 per second
    bandwidth = max(rate["copy"], rate["triad"])
    peak = max(rate["gemm"], rate["conv"], rate["conv_channels_last"])
    return {
        "threads": count,
        "copy_gbs": rate["copy"],
        "triad_gbs": rate["triad"],
        "bandwidth_gbs": bandwidth,
        "gemm_gmacs": rate["gemm"],
        "conv_gmacs": rate["conv"],
        "conv_channels_last_gmacs": rate["conv_channels_last"],
        "peak_gmacs": peak,
        "ridge": peak / bandwidth,
    }


def attainable(intensity: float, roof: Mapping[str, float]) -> float:
    """10^9 MACs a second that a kernel of ``intensity`` MACs per byte can reach at most under the ceilings ``roof``."""
    if intensity < 0:
        raise Refused(f"intensity {intensity} must be at least 0 MACs per byte")
    return min(roof["peak_gmacs"], intensity * roof["bandwidth_gbs"])


def bound_by(intensity: float, roof: Mapping[str, float]) -> str:
    """Which ceiling limits such a kernel: "memory" or "compute"."""
    return "memory" if attainable(intensity, roof) < roof["peak_gmacs"] else "compute"


def fastest_ms(macs: float, moved_bytes: float, roof: Mapping[str, float]) -> float:
    """The least milliseconds for so many MACs and bytes under the ceilings: the longer of moving and multiplying."""
    return max(macs / roof["peak_gmacs"], moved_bytes / roof["bandwidth_gbs"]) / 1e6
