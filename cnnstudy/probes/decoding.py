"""Can what entered a stage still be read from what a later block puts out?  Linear decoding, pixel by pixel, in closed form.

A 1x1 convolution with bias, by ridge regression on some images, scored on others.  R^2 1: the input is there, in original or
linearly mixed form; 0: the decoder does no better than the mean.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models.dense import DenseLayer
from cnnstudy.probes import taps

RIDGE = 1e-8  # of the mean square of a standardised channel: for channels that are constant, no more


def _rows(maps: Tensor) -> Tensor:
    """(N, C, H, W) -> (N H W, C), float64."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).double()


def ridge_r2(source: Tensor, target: Tensor, source_held: Tensor, target_held: Tensor, ridge: float = RIDGE) -> float:
    """R^2 on held-out rows of predicting ``target`` (n, q) from ``source`` (n, p): 1 - squared error / variance, all columns together."""
    centre, spread = source.mean(0), source.std(0).clamp_min(1e-12)
    x, x_held = (source - centre) / spread, (source_held - centre) / spread
    y, mean = target - target.mean(0), target.mean(0)
    gram = x.T @ x + ridge * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    weight = torch.linalg.solve(gram, x.T @ y)
    error = (target_held - mean - x_held @ weight).square().sum()
    return float(1 - error / (target_held - target_held.mean(0)).square().sum().clamp_min(1e-30))


def _pair(model: nn.Module, images: Tensor, first: nn.Module, block: nn.Module, batch: int) -> tuple[Tensor, Tensor]:
    """Rows of what ``block`` puts out, and of what enters ``first`` at the same pixels."""
    source, target = [], []
    for some in images.split(batch):
        with taps.inputs({"in": first}) as before, taps.outputs({"out": block}) as after:
            model(some)
        step = before["in"].shape[2] // after["out"].shape[2]
        source.append(_rows(after["out"]))
        target.append(_rows(before["in"][:, :, ::step, ::step]))
    return torch.cat(source), torch.cat(target)


@torch.no_grad()
def stages(model: nn.Module, x: Tensor, x_held: Tensor, batch: int = 250) -> pd.DataFrame:
    """A row per block or dense layer of ``model.stages``: ``stage`` (from 1), ``distance`` (blocks since its input), ``r2``, ``last``.

    ``x``, ``x_held`` (N, 3, H, W): images to fit on, and to score on.  Where a stage begins by halving the map, its input is taken at
    every other pixel, as a shortcut without weights hands it on.  Evaluation mode; the model stays as it is.
    """
    parts: list[tuple[int, list[nn.Module]]] = []
    for number, stage in enumerate(getattr(model, "stages", ()), 1):
        blocks = list(stage)
        dense: list[nn.Module] = [part for part in blocks if isinstance(part, DenseLayer)]
        parts.append((number, dense or blocks))
    if not parts:
        raise Refused(f"{type(model).__name__} has no stages of blocks to decode")
    was = model.training
    model.eval()
    rows: list[dict[str, Any]] = []
    for number, blocks in parts:
        for distance, block in enumerate(blocks, 1):  # one after the other: all at once would fill the memory
            fit, held = (_pair(model, images, blocks[0], block, batch) for images in (x, x_held))
            rows.append({"stage": number, "distance": distance, "r2": ridge_r2(*fit, *held), "last": distance == len(blocks)})
    model.train(was)
    return pd.DataFrame(rows)


def fall_share(table: pd.DataFrame) -> float:
    """Of the steps from one block to the next of its stage: the share that lower R^2."""
    steps = table.groupby("stage")["r2"].diff().dropna()
    return float((steps < 0).mean()) if len(steps) else 0.0


def summary(model: nn.Module, x: Tensor, x_held: Tensor) -> dict[str, Any]:
    """``end_r2_<stage>``, ``end_r2_max``, ``end_r2_min``: at the end of each stage; ``falls_share``: see :func:`fall_share`;
    ``stage``, ``distance``, ``r2``: lists, a value a block."""
    table = stages(model, x, x_held)
    ends = table[table["last"]]
    return {
        **{f"end_r2_{int(stage)}": float(r2) for stage, r2 in zip(ends["stage"], ends["r2"], strict=True)},
        "end_r2_max": float(ends["r2"].max()), "end_r2_min": float(ends["r2"].min()),
        "falls_share": fall_share(table),
        **{name: table[name].tolist() for name in ("stage", "distance", "r2")},
    }  # fmt: skip
