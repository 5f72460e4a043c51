"""The layers of a network one by one, as tables: what each is, what it costs, what it reads and writes, and what it is for.

On top of ``probes.cost``, which counts; everything is for one image, in evaluation mode, on the meta device.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import nn

from cnnstudy.config import Refused, choose
from cnnstudy.probes import taps
from cnnstudy.probes.cost import LAYERS, NORMS, cost
from cnnstudy.probes.tape import images, inference_tape, network

FLOAT = 4  # bytes
ROLES = ("stem", "dense", "pointwise", "depthwise", "grouped", "projection", "gate", "head")


def _role(row: dict[str, Any], first: str, groups: int) -> str:
    if row["name"] == first:
        return "stem"
    if row["type"] in ("gate", "depthwise", "grouped"):
        return str(row["type"])
    if row["type"] == "fc":
        return "head"
    if row["type"] == "1x1":
        return "pointwise" if row["main"] else "projection"
    return "dense"


def layers(model: Any, resolution: int) -> pd.DataFrame:
    """One row per convolution and linear layer of a network or a config, in the order of execution, at ``resolution`` pixels.

    - ``name``, ``stage``, ``type`` ("3x3", "1x1", "depthwise", "grouped", "fc", "gate"), ``main``: as in ``probes.cost``;
    - ``role``: "stem" (the first layer), "dense" (a spatial kernel, all channels), "pointwise" (1x1), "depthwise", "grouped",
      "projection" (1x1 of a shortcut), "gate" (squeeze-and-excite), "head" (linear layers at the end);
    - ``kernel``, ``stride``, ``groups``, ``channels_in``, ``channels`` (out), ``size_in``, ``size`` (heights of the maps; 1: a vector);
    - ``macs``, ``weights`` (without bias), ``biases``, ``activations`` (output elements);
    - ``weight_bytes``, ``in_bytes``, ``out_bytes``, ``bytes`` (their sum, float32) and ``intensity``: macs per byte.
    """
    net = network(model, "meta", training=False)
    modules = {name: module for name, module in net.named_modules() if isinstance(module, LAYERS)}
    with torch.no_grad(), taps.inputs(modules) as seen:
        net(images(net, resolution, 1, "meta"))
    counted = cost(net, resolution)["layers"]
    if not counted:
        raise Refused(f"{type(net).__name__} has no convolution or linear layer")
    rows = []
    for row in counted:
        module, given = modules[row["name"]], seen[row["name"]]
        weight = module.weight.numel()  # type: ignore[operator, union-attr]
        biases = module.bias.numel() if module.bias is not None else 0  # type: ignore[operator, union-attr]
        conv = isinstance(module, nn.Conv2d)
        groups = module.groups if isinstance(module, nn.Conv2d) else 1
        parts = {
            "weight_bytes": FLOAT * (weight + biases),
            "in_bytes": FLOAT * given.numel(),
            "out_bytes": FLOAT * row["activations"],
        }
        total = sum(parts.values())
        rows.append(
            {
                **{name: row[name] for name in ("name", "stage", "type")},
                "role": _role(row, counted[0]["name"], groups),
                "main": row["main"],
                "kernel": module.kernel_size[0] if isinstance(module, nn.Conv2d) else 1,
                "stride": module.stride[0] if isinstance(module, nn.Conv2d) else 1,
                "groups": groups,
                "channels_in": given.shape[1] if conv else given.shape[-1],
                "channels": row["channels"],
                "size_in": given.shape[2] if given.dim() == 4 else 1,
                "size": row["size"],
                "macs": row["macs"],
                "weights": weight,
                "biases": biases,
                "activations": row["activations"],
                **parts,
                "bytes": total,
                "intensity": row["macs"] / total,
            }
        )
    return pd.DataFrame(rows)


def shares(model: Any, resolution: int, what: str = "macs", by: str = "role") -> dict[str, float]:
    """Share of ``what`` ("macs", "weights", "activations", "bytes") in each ``by`` ("role", "type", "stage", "size"); they sum to 1."""
    table = layers(model, resolution)
    choose("count", what, ("macs", "weights", "activations", "bytes"))
    sums = table.groupby(choose("grouping", by, ("role", "type", "stage", "size")), sort=False)[what].sum()
    return {str(name): float(value / sums.sum()) for name, value in sums.items()}


def params_by_kind(model: Any) -> dict[str, int]:
    """Trainable parameters: ``conv_weights``, ``linear_weights``, ``biases``, ``norms`` and ``other``; they sum to ``params``."""
    net = network(model, "meta", training=False)
    sums = dict.fromkeys(("conv_weights", "linear_weights", "biases", "norms", "other"), 0)
    for module in net.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, NORMS):
                kind = "norms"
            elif isinstance(module, LAYERS):
                kind = "biases" if name == "bias" else "linear_weights" if isinstance(module, nn.Linear) else "conv_weights"
            else:
                kind = "other"
            sums[kind] += parameter.numel() if parameter.requires_grad else 0
    return {**sums, "params": sum(sums.values())}


def elements_by_op(model: Any, resolution: int) -> dict[str, int]:
    """Output elements per image of every operation that writes a tensor, by operation: convolutions, norms, activations, additions, ...

    In place or not, what is written counts; vectors (statistics, gates, logits) count, too.
    """
    tape = inference_tape(model, resolution)
    sums: dict[str, int] = {}
    for operation in tape.operations:
        name, shape = operation.op.rstrip("_"), tape.storages[operation.writes[0]].shape
        sums[name] = sums.get(name, 0) + math.prod(shape)
    return sums


def blocks_between_poolings(model: Any) -> list[int]:
    """Convolutions before each max pooling, e.g. [2, 2, 3, 3, 3] of VGG-16: modules in the order in which they were built."""
    found = [0]
    for module in network(model, "meta", training=False).modules():
        if isinstance(module, nn.MaxPool2d):
            found.append(0)
        elif isinstance(module, nn.Conv2d):
            found[-1] += 1
    return found[:-1]


def separable_pairs(model: Any, resolution: int) -> pd.DataFrame:
    """Each depthwise convolution with the pointwise one that follows it, against one dense convolution of the same in, out and kernel.

    ``name`` (of the depthwise), ``kernel``, ``stride``, ``channels_in``, ``channels``, ``size``; ``macs`` and ``weights`` of the pair,
    ``dense_macs`` and ``dense_weights``, ``macs_reduction`` and ``weights_reduction`` (dense over pair), ``formula``: 1 / (1/Cout + 1/k^2).
    """
    table = layers(model, resolution)
    table = table[table["role"] != "gate"].reset_index(drop=True)
    rows = []
    for first, second in zip(table.to_dict("records"), table.to_dict("records")[1:], strict=False):
        if first["type"] == "depthwise" and second["type"] == "1x1":
            out, k = second["channels"], first["kernel"]
            weights = first["weights"] + second["weights"]
            macs = first["macs"] + second["macs"]
            dense = k * k * first["channels_in"] * out
            rows.append(
                {
                    **{name: first[name] for name in ("name", "kernel", "stride", "channels_in")},
                    "channels": out,
                    "size": second["size"],
                    "macs": macs,
                    "weights": weights,
                    "dense_macs": dense * first["size"] ** 2,
                    "dense_weights": dense,
                    "macs_reduction": dense * first["size"] ** 2 / macs,
                    "weights_reduction": dense / weights,
                    "formula": 1 / (1 / out + 1 / k**2),
                }
            )
    return pd.DataFrame(rows)


INVERTED = ("InvertedResidual", "DepthwiseSeparableConv", "EdgeResidual")  # timm's names, and ours


def expansions(model: Any) -> pd.DataFrame:
    """Inverted residuals, a row each: how much wider they are inside than at their ends (of dense twins, too).

    ``block`` (name), ``channels_in``, ``hidden`` (channels that the last 1x1 reads), ``channels`` (out), ``ratio``: hidden over in.
    Empty for a network without such blocks.
    """
    rows = []
    for name, block in network(model, "meta", training=False).named_modules():
        if type(block).__name__ in INVERTED and "shufflenet" not in type(block).__module__:  # torchvision's has two branches
            first, *_, last = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
            ratio = last.in_channels / first.in_channels
            ends = {"channels_in": first.in_channels, "hidden": last.in_channels, "channels": last.out_channels}
            rows.append({"block": name, **ends, "ratio": ratio})
    return pd.DataFrame(rows, columns=["block", "channels_in", "hidden", "channels", "ratio"])
