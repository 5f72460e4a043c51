"""Do the layers of a trained DenseNet use what older layers made?  Weights by source, and accuracy without the old slices.

Ages: the output of the layer just before is of age 1; the block's own input counts as the output of a layer before its first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models.dense import Dense, DenseLayer


def _dense(model: nn.Module) -> Dense:
    if not isinstance(model, Dense) or any(layer.drop for layer in model.layers()):
        raise Refused(f"{type(model).__name__} is no DenseNet whose layers read all earlier ones; valid: a DenseConfig with window 0")
    return model


def _readers(model: Dense) -> Iterator[tuple[int, int, bool, Tensor, Tensor, list[int]]]:
    """Of each reader of a block's state: stage, number in it, closing?, |weight| (out, in), |scale| of its norm, widths of sources."""
    stages: Any = model.stages
    last: Any = model.final
    for i, stage in enumerate(stages):
        layers = [part for part in stage if isinstance(part, DenseLayer)]
        widths = [layers[0].c_in] + [layer.growth for layer in layers]
        for number, layer in enumerate(layers, 1):
            branch: Any = layer.branch
            weight: Tensor = branch.conv1.weight.detach().abs().mean((2, 3))
            yield i, number, False, weight, branch.norm1.weight.detach().abs(), widths[:number]
        closing: Any = getattr(stage, "transition", None)
        weight = closing.conv.weight.detach()[:, :, 0, 0] if closing else model.head.weight.detach()
        yield i, len(layers) + 1, True, weight.abs(), (closing.norm if closing else last[0]).weight.detach().abs(), widths


def weights(model: nn.Module) -> pd.DataFrame:
    """A row for each pair of a source and a target in one block, of a DenseNet.

    ``stage``; ``source`` (0: the block's input), ``target`` (layers from 1; the last one closes the block: transition or classifier,
    ``closing``), ``age`` (target - source); ``weight``: mean absolute weight of the target's first convolution on the source's channels;
    ``share``: of the sum over the target's sources; ``scaled_share``: the same with each channel's weight times the scale of the norm
    in front of it, which is what reaches the convolution; ``sources``: how many there are.
    """
    rows = []
    for stage, target, closing, weight, scale, widths in _readers(_dense(model)):
        means = [float(part.double().mean()) for part in weight.split(widths, 1)]
        scaled = [float(part.double().mean()) for part in (weight * scale).split(widths, 1)]
        for source, (mean, with_scale) in enumerate(zip(means, scaled, strict=True)):
            rows.append({
                "stage": stage, "source": source, "target": target, "age": target - source, "closing": closing, "sources": len(widths),
                "weight": mean, "share": mean / max(sum(means), 1e-30), "scaled_share": with_scale / max(sum(scaled), 1e-30),
            })  # fmt: skip
    return pd.DataFrame(rows)


def old_share(table: pd.DataFrame, older_than: int = 2, share: str = "share") -> float:
    """Of the rows of :func:`weights`: the mean over dense layers of the share that sources older than so many layers hold."""
    layers = table[~table["closing"]]
    old = layers[share].where(layers["age"] > older_than, 0.0)
    return float(old.groupby([layers["stage"], layers["target"]]).sum().mean())


@torch.no_grad()
def _run(model: Dense, x: Tensor, keep: int, means: Sequence[Tensor], closing: bool) -> tuple[Tensor, list[Tensor]]:
    """Logits, and what each block holds at its end; slices older than ``keep`` layers read as ``means`` (0: none is replaced)."""
    h, ends = model.stem(model.normalize(x)), []

    def read(state: Tensor, widths: list[int], stage: int) -> Tensor:
        old = sum(widths[:-keep]) if keep and len(widths) > keep else 0
        if not old:
            return state
        replaced = means[stage][:old].to(state).view(1, -1, 1, 1).expand(len(state), -1, *state.shape[2:])
        return torch.cat([replaced, state[:, old:]], 1)

    stages: Any = model.stages
    for i, stage in enumerate(stages):
        widths = [h.shape[1]]
        for part in stage:
            if isinstance(part, DenseLayer):
                h = torch.cat([h, part.branch(read(h, widths, i))], 1)
                widths.append(part.growth)
            else:
                ends.append(h)
                h = part(read(h, widths, i) if closing else h)
    ends.append(h)
    h = read(h, widths, len(model.stages) - 1) if closing else h
    return model.head(model.final(h).mean((2, 3))), ends


@torch.no_grad()
def means_of(model: nn.Module, x: Tensor, batch: int = 500) -> list[Tensor]:
    """For each block the mean of each channel that it holds at its end, over images ``x`` (N, 3, H, W) and positions."""
    net, was = _dense(model), model.training
    net.eval()
    sums: list[Tensor] = []
    for some in x.split(batch):
        ends = [end.double().mean((2, 3)).sum(0) for end in _run(net, some, 0, [], False)[1]]
        sums = [a + b for a, b in zip(sums, ends, strict=True)] if sums else ends
    net.train(was)
    return [total / len(x) for total in sums]


@torch.no_grad()
def without_old(
    model: nn.Module, x: Tensor, y: Tensor, keep: int, means: Sequence[Tensor], closing: bool = False, batch: int = 500
) -> float:
    """Accuracy (0..1) when each dense layer finds everything older than ``keep`` layers replaced by its mean (``means_of``).

    What the layers hand on stays whole; with ``closing`` transitions and classifier, too, see the last ``keep`` outputs only.  ``keep`` 0:
    nothing is replaced.  The model stays as it is.
    """
    net, was = _dense(model), model.training
    net.eval()
    pairs = zip(x.split(batch), y.split(batch), strict=True)
    right = sum(int((_run(net, some, keep, means, closing)[0].argmax(1) == labels).sum()) for some, labels in pairs)
    net.train(was)
    return right / len(x)


def summary(model: nn.Module, x_means: Tensor, x: Tensor, y: Tensor, keeps: Sequence[int] = (1, 2, 4)) -> dict[str, Any]:
    """Everything above as metrics: ``acc``; ``old_share``, ``old_share_scaled`` (older than two layers) and ``old_share_uniform`` (if all
    sources had equal weight); for each d of ``keeps`` ``cost_d`` and ``cost_closing_d``: points of accuracy (0..1) that it costs to replace
    what is older than d layers; ``shares`` (array): stage, source, target, share, a row a pair."""
    table, means = weights(model), means_of(model, x_means)
    uniform = table.assign(share=1 / table["sources"])
    whole = without_old(model, x, y, 0, means)
    found: dict[str, Any] = {
        "acc": whole, "old_share": old_share(table), "old_share_scaled": old_share(table, share="scaled_share"),
        "old_share_uniform": old_share(uniform), "shares": table[["stage", "source", "target", "share"]].to_numpy(dtype=np.float32),
    }  # fmt: skip
    for d in keeps:
        found[f"cost_{d}"] = whole - without_old(model, x, y, d, means)
        found[f"cost_closing_{d}"] = whole - without_old(model, x, y, d, means, closing=True)
    return found
