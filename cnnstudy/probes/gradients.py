"""How strong, and how meaningful, the gradient is in each layer of a network.

The layers that count are the convolutions with a spatial kernel (3x3 and larger), from input to output: 1x1
projections stand beside the main path.  Every probe leaves mode, gradients and running statistics as it found them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused


def spatial_convs(model: nn.Module) -> dict[str, nn.Conv2d]:
    """The convolutions with a kernel larger than 1x1, in the order in which they were built (input to output)."""
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1}
    if len(found) < 2:
        raise Refused(f"{type(model).__name__} has {len(found)} spatial convolutions; a comparison needs two")
    return found


@contextmanager
def _untouched(model: nn.Module) -> Iterator[nn.Module]:
    """A copy to work on in training mode: batch statistics are used, frozen layers count, and nothing of the original moves."""
    twin = copy.deepcopy(model).train().requires_grad_(True)
    twin.zero_grad(set_to_none=True)
    yield twin


def weight_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """Gradient of the mean cross-entropy with respect to each spatial convolution's weight, in training mode."""
    with _untouched(model) as twin:
        convs = spatial_convs(twin)
        loss = F.cross_entropy(twin(x).float(), y)
        return list(torch.autograd.grad(loss, [c.weight for c in convs.values()]))


def layer_norms(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, np.ndarray]:
    """``gradient``: L2 norm of each spatial convolution's weight gradient; ``weight``: norm of the weight itself."""
    gradients = weight_gradients(model, x, y)
    weights = [c.weight.detach() for c in spatial_convs(model).values()]
    return {
        "gradient": np.array([float(g.double().norm()) for g in gradients]),
        "weight": np.array([float(w.double().norm()) for w in weights]),
    }


def log10(value: float, floor: float = 1e-45) -> float:
    """log10 that maps an exact zero (a gradient that underflowed) to the smallest float32 instead of minus infinity."""
    return math.log10(max(value, floor))


def first_to_last(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float]:
    """Gradient norms of the first and the last spatial convolution, their log10, and the log10 of their ratio.

    A gradient that is not finite counts as 1e38.
    """
    norms = layer_norms(model, x, y)
    finite = np.nan_to_num(norms["gradient"], nan=1e38, posinf=1e38)
    first, last = float(finite[0]), float(finite[-1])
    return {"first_norm": first, "last_norm": last, "log10_first": log10(first), "log10_ratio": log10(first) - log10(last)}


def thirds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first and the last third of a profile over layers."""
    third = max(1, len(values) // 3)
    return values[:third], values[-third:]


def relative_thirds(norms: dict[str, np.ndarray]) -> float:
    """Median relative gradient (gradient norm / weight norm) of the first third over that of the last third."""
    first, last = thirds(norms["gradient"] / norms["weight"])
    return float(np.median(first) / max(float(np.median(last)), 1e-45))


def half_batch_cosine(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """Cosine similarity, per spatial convolution, of the gradients of the two halves of a batch: signal against noise.

    Near 1: both halves pull the weights the same way.  Near 0: what one batch asks for is noise to the next.
    """
    half = len(x) // 2
    one, two = (weight_gradients(model, x[s], y[s]) for s in (slice(0, half), slice(half, 2 * half)))
    return np.array([float(F.cosine_similarity(a.flatten().double(), b.flatten().double(), 0)) for a, b in zip(one, two, strict=True)])


def signal(model: nn.Module, x: Tensor, y: Tensor, batch: int = 128, batches: int = 4) -> dict[str, float | np.ndarray]:
    """Relative gradients and half-batch cosines of a network, averaged over ``batches`` batches of ``x``."""
    parts = [slice(i * batch, (i + 1) * batch) for i in range(batches) if (i + 1) * batch <= len(x)] or [slice(0, len(x))]
    norms = [layer_norms(model, x[p], y[p]) for p in parts]
    mean = {name: np.mean([n[name] for n in norms], axis=0) for name in ("gradient", "weight")}
    cosine = np.mean([half_batch_cosine(model, x[p], y[p]) for p in parts], axis=0)
    return {
        "relative_thirds": relative_thirds(mean),
        "cosine_first_third": float(np.mean(thirds(cosine)[0])),
        "cosine_last_third": float(np.mean(thirds(cosine)[1])),
        "log10_ratio": log10(float(mean["gradient"][0])) - log10(float(mean["gradient"][-1])),
        "relative": (mean["gradient"] / mean["weight"]).astype(np.float32),
    }
