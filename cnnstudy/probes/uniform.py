"""VGG's uniformity, checked: every convolution 3x3, every pooling 2x2, and what is left when the one is cut down to the other.

For networks that are one chain of convolutions and max poolings with fully connected layers at the end, as timm builds VGG.
Everything is counted on the meta device.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from cnnstudy.config import Refused
from cnnstudy.probes import receptive
from cnnstudy.probes.layer_costs import blocks_between_poolings, layers
from cnnstudy.probes.tape import network

CONV = {"kernel_size": (3, 3), "stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
POOL = {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False}


def _leaves(model: Any) -> dict[str, nn.Module]:
    net = network(model, "meta", training=False)
    return {name: module for name, module in net.named_modules() if not list(module.children())}


def exceptions(model: Any, head: set[str]) -> list[str]:
    """Modules that break the rule, with what breaks it: convolutions outside of ``head`` that are not 3x3, stride 1, padding 1,
    and poolings that are not 2x2 max, stride 2.  (A global pooling on a map of one pixel, which timm has, does nothing.)"""
    found = []
    for name, module in _leaves(model).items():
        rule = CONV if isinstance(module, nn.Conv2d) and name not in head else POOL if isinstance(module, nn.MaxPool2d) else {}
        found += [f"{name}: {what} {getattr(module, what)}" for what, wanted in rule.items() if getattr(module, what) != wanted]
        if isinstance(module, (nn.AvgPool2d, nn.AdaptiveMaxPool2d)):
            found.append(f"{name}: {type(module).__name__}")
    return found


def stack(model: Any, resolution: int = 224) -> dict[str, Any]:
    """The layers and blocks of a VGG: numbers by layer (lists in the order of execution) and by block.

    - ``convs``, ``linears``, ``weighted``: layers with weights; a layer that covers its whole map counts as fully connected;
    - ``blocks``: convolutions before each max pooling; ``exceptions``: how many rules are broken, ``broken``: which;
    - ``layer_block`` (1, 2, ...; 0: the head), ``layer_size`` (map), ``layer_in``, ``layer_out`` (channels), ``layer_params``,
      ``layer_macs``, ``layer_activations``, ``layer_mb`` (output and weights, float32, 10^6 bytes);
    - ``params_by_block``, ``macs_by_block``: ``{"1": ..., "head": ...}``; ``field_by_block``: pixels a side that one unit of the
      block's last convolution sees.

    Raises Refused for a network that is not such a chain.
    """
    rows = layers(model, resolution)
    head = set(rows.loc[rows["role"] == "head", "name"])
    blocks = blocks_between_poolings(model)
    convs = len(rows) - len(head)
    if sum(blocks) != convs or not convs:
        raise Refused(f"{sum(blocks)} of {convs} convolutions stand before a max pooling; valid: a chain of blocks that end in one")
    of_block = [number for number, count in enumerate(blocks, start=1) for _ in range(count)] + [0] * len(head)
    params = [int(w + b) for w, b in zip(rows["weights"], rows["biases"], strict=True)]
    fields = receptive.of_network(model, resolution).set_index("module")["size"]
    ends = [sum(blocks[: i + 1]) - 1 for i in range(len(blocks))]
    names = [str(i + 1) for i in range(len(blocks))] + ["head"]
    sums: dict[str, dict[str, int]] = {"params": dict.fromkeys(names, 0), "macs": dict.fromkeys(names, 0)}
    for block, params_of, macs_of in zip(of_block, params, rows["macs"], strict=True):
        sums["params"][str(block or "head")] += params_of
        sums["macs"][str(block or "head")] += int(macs_of)
    broken = exceptions(model, head)
    return {
        "convs": convs,
        "linears": len(head),
        "weighted": len(rows),
        "blocks": blocks,
        "exceptions": len(broken),
        "broken": broken,
        "layer_block": of_block,
        "layer_size": rows["size"].tolist(),
        "layer_in": rows["channels_in"].tolist(),
        "layer_out": rows["channels"].tolist(),
        "layer_params": params,
        "layer_macs": rows["macs"].tolist(),
        "layer_activations": rows["activations"].tolist(),
        "layer_mb": [round(4e-6 * (p + a), 3) for p, a in zip(params, rows["activations"], strict=True)],
        "params_by_block": sums["params"],
        "macs_by_block": sums["macs"],
        "field_by_block": {name: int(fields[rows["name"][end]]) for name, end in zip(names, ends, strict=False)},
    }


def same_layers(a: Any, b: Any) -> dict[str, Any]:
    """Are two networks the same chain: layer types, settings and weight shapes, one after the other, without their names?

    ``identical``; ``compared``: layers of the longer one; ``differing``: places in which they differ.
    """
    one, other = ([_described(m) for m in _leaves(model).values()] for model in (a, b))
    longest = max(len(one), len(other))
    same = sum(x == y for x, y in zip(one, other, strict=False))
    return {"identical": one == other, "compared": longest, "differing": longest - same}


def _described(module: nn.Module) -> str:
    shapes = [tuple(p.shape) for p in module.parameters(recurse=False)]
    return f"{module!r} {shapes}"
