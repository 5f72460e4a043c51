"""How much a residual network's branches change what passes by on the shortcuts: sizes, angles, what the ReLU after the sum removes.

For trained and untrained networks, on real images, in evaluation mode.  Every function works on copies.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models import build
from cnnstudy.probes.jacobians import Parts, block_inputs, calibrated, jacobian, residual_blocks
from cnnstudy.probes.taps import inputs, outputs
from cnnstudy.probes.wiring import sums, wired

BATCH = 50  # images at once: a deep network's sums are all held at the same time
TINY = 1e-30


def profile(model: nn.Module, x: Tensor) -> pd.DataFrame:
    """A row per residual block, for the images ``x``: (N, 3, H, W).

    ``block``, ``stage``, ``identity`` (nothing on the shortcut).  Medians over images: ``ratio`` |F(x)| / |shortcut|, ``cosine_branch``
    of F(x) and the shortcut, ``cosine_output`` of the block's output and its input (NaN where shapes differ).  Of all entries of all
    images: ``removed_units`` (share of the sum's entries that what follows it sets to 0), ``removed_squared`` (their share of the sum's
    squares).  ``changed``: median over images of |output - sum| / |sum|.
    """
    batches = [sums(model, part) for part in x.split(BATCH)]
    rows = []
    for one in zip(*batches, strict=True):
        per_image = {name: torch.cat([measure(b) for b in one]) for name, measure in _PER_IMAGE.items()}
        removed = [(b.y == 0) & (b.total != 0) for b in one]
        entries = sum(b.total.numel() for b in one)
        squares = sum(float(b.total.double().square().sum()) for b in one)
        lost = sum(float(b.total.double()[r].square().sum()) for b, r in zip(one, removed, strict=True))
        first = one[0]
        rows.append({
            "block": first.block, "stage": first.stage, "identity": first.identity,
            **{name: float(values.nanmedian()) for name, values in per_image.items()},
            "removed_units": sum(int(r.sum()) for r in removed) / entries, "removed_squared": lost / max(squares, TINY),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _lengths(t: Tensor) -> Tensor:
    return t.flatten(1).double().norm(dim=1)


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """Per image, NaN where shapes differ."""
    if a.shape != b.shape:
        return torch.full((len(a),), math.nan, dtype=torch.float64, device=a.device)
    return F.cosine_similarity(a.flatten(1).double(), b.flatten(1).double())


_PER_IMAGE = {
    "ratio": lambda b: _lengths(b.branch) / _lengths(b.shortcut).clamp_min(TINY),
    "cosine_branch": lambda b: _cosines(b.branch, b.shortcut),
    "cosine_output": lambda b: _cosines(b.y, b.x),
    "changed": lambda b: _lengths(b.y - b.total) / _lengths(b.total).clamp_min(TINY),
}


def input_output(model: Any, x: Tensor) -> list[float]:
    """Median cosine of each block's input and output, from input to output: of a plain network too.  NaN where shapes differ.

    ``model`` has ``blocks()``.
    """
    net: Any = copy.deepcopy(model).eval()
    blocks = {str(i): block for i, block in enumerate(net.blocks())}
    found: dict[str, list[Tensor]] = {name: [] for name in blocks}
    for part in x.split(BATCH):
        with torch.no_grad(), inputs(blocks) as before, outputs(blocks) as after:
            net(part)
        for name in blocks:
            found[name].append(_cosines(before[name], after[name]))
    return [float(torch.cat(values).nanmedian()) for values in found.values()]


def gradient_zeroed(model: nn.Module, x: Tensor, y: Tensor) -> pd.DataFrame:
    """Per block with a ReLU after its sum: ``zeroed``, share of the entries of the loss gradient that the ReLU sets to 0.

    Of the entries that arrive at it different from 0.  Mean cross-entropy, evaluation mode.  Raises Refused where no block has one.
    """
    net = copy.deepcopy(model).eval().requires_grad_(True)
    for module in net.modules():
        if hasattr(module, "inplace"):
            module.inplace = False  # type: ignore[assignment]
    ends = {b.name: [n.module for n in b.after if n.op == "relu"] for b in wired(net, x.shape[-1])[0]}
    relus = {name: net.get_submodule(modules[-1]) for name, modules in ends.items() if modules and modules[-1] != name}
    if not relus:
        raise Refused(f"{type(model).__name__} has no module with a ReLU after its blocks' sums")
    with inputs(relus) as before, outputs(relus) as after:
        loss = F.cross_entropy(net(x), y)
    into = torch.autograd.grad(loss, [before[n] for n in relus], retain_graph=True)
    out = torch.autograd.grad(loss, [after[n] for n in relus])
    shares = [float(((a == 0) & (b != 0)).sum() / (b != 0).sum().clamp_min(1)) for a, b in zip(into, out, strict=True)]
    return pd.DataFrame({"block": list(relus), "zeroed": shares})


def scaled(model: nn.Module, scale: float) -> nn.Module:
    """A copy whose branches put out ``scale`` times as much: the last norm or convolution of each, weight and bias, is scaled."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for block in residual_blocks(twin):
            last = Parts(block).last
            for parameter in (last.weight, last.bias):
                if parameter is not None:
                    parameter.mul_(scale)
    return twin


def tiny_branch(cfg: Any, scale: float, seed: int, side: int = 8, images: int = 2) -> dict[str, Any]:
    """Singular values of the Jacobians of the blocks with identity shortcuts, each with its branch scaled, in a fresh network.

    The network of ``cfg`` (of ``seed``; narrow: a Jacobian has (width * side^2)^2 entries) sees ``images`` random images of ``side``
    pixels and batch norms hold their statistics; each block gets the input that arrives there, no branch scaled, and is then taken by
    itself.  ``min``, ``max``; ``within``: share in [0.95, 1.05]; ``zero``: share below 1e-6; ``blocks``; ``values``: 200 quantiles.
    """
    torch.manual_seed(seed)
    x = torch.rand(images, 3, side, side, dtype=torch.float64)
    net = calibrated(build(cfg), x)
    pairs = zip(residual_blocks(scaled(net, scale)), block_inputs(net, x), strict=True)
    spectra = [
        torch.linalg.svdvals(jacobian(Parts(block), point[i : i + 1])).numpy()
        for block, point in pairs
        for i in range(images)
        if Parts(block).identity
    ]
    values = np.concatenate(spectra)
    return {
        "min": float(values.min()), "max": float(values.max()), "within": float(((values >= 0.95) & (values <= 1.05)).mean()),
        "zero": float((values < 1e-6).mean()), "blocks": len(spectra) // images, "values": np.quantile(values, np.linspace(0, 1, 200)),
    }  # fmt: skip


def swapped(model: nn.Module, first: str, second: str) -> nn.Module:
    """A copy in which two modules have changed places."""
    twin = copy.deepcopy(model)
    one, two = twin.get_submodule(first), twin.get_submodule(second)
    twin.set_submodule(first, two)
    twin.set_submodule(second, one)
    return twin


def swaps(model: nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> pd.DataFrame:
    """Accuracy after each pair of neighbouring blocks of one stage, both with identity shortcuts, has changed places.

    A row per pair: ``first``, ``second``, ``stage``, ``accuracy`` (0 to 1), ``drop`` (percentage points lost).  Evaluation mode.
    """
    whole = accuracy(model, x, y, batch)
    found = wired(model, x.shape[-1])[0]
    rows = []
    for one, two in zip(found, found[1:], strict=False):
        if one.stage == two.stage and one.identity and two.identity:
            left = accuracy(swapped(model, one.name, two.name), x, y, batch)
            rows.append({"first": one.name, "second": two.name, "stage": one.stage, "accuracy": left, "drop": 100 * (whole - left)})
    return pd.DataFrame(rows, columns=["first", "second", "stage", "accuracy", "drop"])


def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> float:
    """Share of the images that a copy in evaluation mode classifies rightly."""
    net = copy.deepcopy(model).eval()
    with torch.no_grad():
        right = sum(int((net(a).argmax(1) == b).sum()) for a, b in zip(x.split(batch), y.split(batch), strict=True))
    return right / len(x)


def summary(model: nn.Module, x: Tensor) -> dict[str, Any]:
    """:func:`profile` as a trial's metrics: each column a list over blocks; ``blocks``; of those with identity shortcuts ``small_share``
    (ratio below 0.5), ``below_one_share``, ``aligned_share`` (cosine of output and input above 0.5), ``median_ratio``.  None for NaN.
    """
    table = profile(model, x)
    own = table[table["identity"]]
    return {
        "blocks": len(table), "identity_blocks": len(own),
        "small_share": _share(own["ratio"] < 0.5), "below_one_share": _share(own["ratio"] < 1),
        "aligned_share": _share(own["cosine_output"] > 0.5),
        "median_ratio": float(own["ratio"].median()),
        **{str(name): [None if v != v else v for v in table[name].tolist()] for name in table},
    }  # fmt: skip


def _share(flags: Sequence[bool] | pd.Series) -> float:
    return float(np.mean(np.asarray(flags, dtype=float))) if len(flags) else math.nan
