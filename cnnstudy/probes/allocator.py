"""What PyTorch's allocator really gives out in a pass: the check on what ``probes.memory`` counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cnnstudy.probes.tape import images, loss_of, network


def measured(model: Any, resolution: int, batch: int = 2, training: bool = True, device: str = "cpu") -> dict[str, int]:
    """Bytes that the allocator really gives out in one pass, besides the weights: the check on what is counted.

    ``peak_bytes`` (images included; with workspaces of kernels, which are not counted) and ``kept_bytes`` (alive at the end of the
    forward pass; there no kernel runs, so this one agrees with the count).  On CUDA from its counter, which rounds up; on a
    CPU from torch's profiler, which sees every allocation that PyTorch makes.
    """
    net = network(model, device, training)
    x = images(net, resolution, batch, device)
    y = torch.zeros(batch, dtype=torch.long, device=device)
    given = x.numel() * x.element_size()

    def forward() -> torch.Tensor:
        with torch.set_grad_enabled(training):
            out: torch.Tensor = net(x)
            return loss_of(out, y) if training else out

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() - given
        last = forward()
        kept = torch.cuda.memory_allocated() - before
        if training:
            last.backward()
        return {"peak_bytes": torch.cuda.max_memory_allocated() - before, "kept_bytes": kept}
    with _profile() as first:
        last = forward()
    with _profile() as second:
        if training:
            last.backward()
    there, gone = _levels(first), _levels(second)
    return {"peak_bytes": given + int(max(there.max(), there[-1] + gone.max())), "kept_bytes": given + int(there[-1])}


def _profile() -> torch.profiler.profile:
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True)


def _levels(profile: torch.profiler.profile) -> np.ndarray:
    """Bytes given out less those taken back, after each allocation and release, from 0."""
    recorded: Any = profile.profiler
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    return np.cumsum([0, *(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))])
