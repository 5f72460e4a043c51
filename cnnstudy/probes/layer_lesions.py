"""Lesions of the same kind in residual and plain networks: one block with an identity shortcut, or one convolution layer, at a time.

A residual network loses the branch of a block whose shortcut is the identity; blocks that change the shape stay.  A plain twin has no
blocks that could go, so it loses one convolution of equal shape in and out, with its norm and activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cnnstudy.probes.branches import accuracy
from cnnstudy.probes.lesions import blocks_of, delete, plain

LAYERS = (("conv1", "norm1", "act1"), ("conv2", "norm2"))  # the last activation stays: on what is rectified already it does nothing


def parts(model: nn.Module) -> list[tuple[int, int]]:
    """What can go, as (block, layer) from input to output; layer -1 is the whole branch of a residual block."""
    found = []
    for index, block in enumerate(blocks_of(model)):
        if not plain(block):
            found += [(index, -1)] if isinstance(block.shortcut, nn.Identity) else []
            continue
        for layer, (first, *_) in enumerate(LAYERS):
            conv = getattr(block.branch, first)
            if conv.in_channels == conv.out_channels and max(conv.stride) == 1:
                found.append((index, layer))
    return found


@contextmanager
def without(model: nn.Module, index: int, layer: int) -> Iterator[nn.Module]:
    """The same ``model`` without that part; whole again when the context ends, even by an error."""
    if layer < 0:
        with delete(model, index):
            yield model
        return
    branch = blocks_of(model)[index].branch
    kept = {name: getattr(branch, name) for name in LAYERS[layer]}
    try:
        for name in kept:
            setattr(branch, name, nn.Identity())
        yield model
    finally:
        for name, module in kept.items():
            setattr(branch, name, module)


@torch.no_grad()
def summary(model: nn.Module, x: Tensor, y: Tensor, cheap: float = 0.01) -> dict[str, Any]:
    """On ``x`` (N, 3, H, W), ``y`` (N,): accuracy (0..1) ``acc`` of the whole, and ``without`` one part at a time.

    Lists: ``without``, and ``block`` (of that part, from 1).  ``cheap_share``: share of the parts that cost less than ``cheap`` of
    accuracy (0.01: one point); ``worst``, ``median``: of the losses.
    """
    whole, possible, left = accuracy(model, x, y), parts(model), []
    for index, layer in possible:
        with without(model, index, layer):
            left.append(accuracy(model, x, y))
    losses = torch.tensor([whole - acc for acc in left], dtype=torch.float64)
    return {
        "acc": whole, "without": left, "block": [index + 1 for index, _ in possible], "parts": len(left),
        "cheap_share": float((losses < cheap - 1e-9).double().mean()), "worst": float(losses.max()), "median": float(losses.median()),
    }  # fmt: skip
