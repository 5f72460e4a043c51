"""Lesions: what a network still knows after blocks have been taken out (Veit et al. 2016, arXiv:1605.06431, section 4.1).

Out of a residual network a block is taken by deleting its branch: what remains of it is its shortcut, so that shapes fit.  Out of
a plain twin the whole block is taken; there only a block that keeps its input's shape can go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models.wide import PreactBlock
from cnnstudy.probes.branches import accuracy


class Gone(nn.Module):
    """In place of a deleted branch: a zero, which adds nothing to the shortcut."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(())


def blocks_of(model: nn.Module) -> list[Any]:
    """The blocks from input to output, of the resnet, wide and bottleneck families and of plain twins."""
    if not hasattr(model, "blocks"):
        raise Refused(f"{type(model).__name__} has no blocks to delete; valid: the families resnet, wide and bottleneck")
    return list(model.blocks())  # type: ignore[operator]


def plain(block: nn.Module) -> bool:
    """Has the block no shortcut?  (In a wide block, None stands for the identity.)"""
    return block.shortcut is None and not isinstance(block, PreactBlock)


def deletable(model: nn.Module) -> list[int]:
    """The numbers of the blocks that can be deleted: all with a shortcut; of plain ones those with as many channels in as out, stride 1."""
    found = []
    for index, block in enumerate(blocks_of(model)):
        convs = [m for m in block.branch.modules() if isinstance(m, nn.Conv2d)]
        keeps = convs[0].in_channels == convs[-1].out_channels and all(max(m.stride) == 1 for m in convs)
        if keeps or not plain(block):
            found.append(index)
    return found


@contextmanager
def delete(model: nn.Module, *indices: int) -> Iterator[nn.Module]:
    """The same ``model`` without the blocks of these numbers, counted from 0; whole again when the context ends, even by an error.

    Raises Refused for a number that there is not, and for a plain block that changes the shape.
    """
    blocks, able = blocks_of(model), deletable(model)
    for index in indices:
        if not 0 <= index < len(blocks):
            raise Refused(f"there is no block {index}; valid: 0 to {len(blocks) - 1}")
        if index not in able:
            raise Refused(f"block {index} has no shortcut and changes the shape; valid: {', '.join(map(str, able))}")
    kept: list[tuple[Any, nn.Module, nn.Module | None]] = []
    try:
        for index in dict.fromkeys(indices):
            block = blocks[index]
            if plain(block):
                kept.append((block, block.branch, block.out))
                block.branch, block.out = nn.Identity(), nn.Identity()
            else:
                kept.append((block, block.branch, None))
                block.branch = Gone()
        yield model
    finally:
        for block, branch, out in kept:
            block.branch = branch
            if out is not None:
                block.out = out


def accuracy_without(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """Accuracy (0..1) on ``x`` (N, 3, H, W), ``y`` (N,) after deleting each block in turn: (blocks,); NaN for one that can't be deleted."""
    found = np.full(len(blocks_of(model)), np.nan)
    for index in deletable(model):
        with delete(model, index):
            found[index] = accuracy(model, x, y)
    return found


def accuracy_without_several(model: nn.Module, x: Tensor, y: Tensor, counts: list[int], draws: int = 5, seed: int = 0) -> np.ndarray:
    """Mean accuracy after deleting so many random blocks at once, over ``draws`` random sets each (seeded): (counts,).

    Raises Refused for a count above the number of deletable blocks.
    """
    able = deletable(model)
    if not counts or min(counts) < 0 or max(counts) > len(able) or draws < 1:
        raise Refused(f"counts {counts}, draws {draws}: {len(able)} blocks can be deleted, and at least one draw is needed")
    rng = np.random.default_rng(seed)
    found = []
    for count in counts:
        each = []
        for _ in range(draws if 0 < count < len(able) else 1):
            with delete(model, *rng.choice(able, size=count, replace=False).tolist()):
                each.append(accuracy(model, x, y))
        found.append(np.mean(each))
    return np.array(found)


@torch.no_grad()
def summary(model: nn.Module, x: Tensor, y: Tensor, cheap: float = 0.01) -> dict[str, Any]:
    """The whole network and its single lesions: ``acc``, ``without`` (array, see accuracy_without), ``mean_loss``, ``worst_loss`` and
    ``cheap_share``: the share of the deletable blocks whose deletion costs less than ``cheap`` of accuracy (0.01: one point)."""
    whole = accuracy(model, x, y)
    without = accuracy_without(model, x, y)
    losses = whole - without[~np.isnan(without)]
    return {
        "acc": whole, "without": without, "mean_loss": float(losses.mean()), "worst_loss": float(losses.max()),
        "cheap_share": float((losses < cheap).mean()), "deletable": len(losses),
    }  # fmt: skip
