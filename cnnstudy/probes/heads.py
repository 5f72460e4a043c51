"""What stands behind a network's last feature map, and at which maps two networks spend what they differ by.  All of it is counted."""

from __future__ import annotations

import math
from typing import Any

import torch

from cnnstudy.config import Refused
from cnnstudy.probes import taps
from cnnstudy.probes.layer_costs import layers
from cnnstudy.probes.tape import images, network

WIDE = 512  # output channels from which a layer counts as wide: the deepest layers of VGG


def head(model: Any, resolution: int = 224) -> dict[str, Any]:
    """The classifier of a network against its body of convolutions.

    - ``head_params``, ``body_params``, ``head_share`` (of all parameters); ``head_macs``, ``head_macs_share``;
    - ``linears``: fully connected layers; ``first_params``: parameters of the first one, ``last_params`` of the last;
    - ``features``: numbers that reach the first of them; ``pooled``: side of the map that they come from (1: each map was averaged
      to one number); ``pool_params``: parameters of the poolings.
    """
    net = network(model, "meta", training=False)
    rows = layers(net, resolution)
    ends = rows[rows["role"] == "head"]
    if not len(ends):
        raise Refused(f"{type(net).__name__} has no fully connected layer at its end")
    params = sum(p.numel() for p in net.parameters() if p.requires_grad)
    of_head = int((ends["weights"] + ends["biases"]).sum())
    modules = dict(net.named_modules())
    with torch.no_grad(), taps.inputs({"first": modules[ends.iloc[0]["name"]]}) as seen:
        net(images(net, resolution, 1, "meta"))
    features = int(seen["first"][0].numel())
    pools = [m for m in modules.values() if "pool" in type(m).__name__.lower()]
    return {
        "head_params": of_head,
        "body_params": params - of_head,
        "head_share": of_head / params,
        "head_macs": int(ends["macs"].sum()),
        "head_macs_share": float(ends["macs"].sum() / rows["macs"].sum()),
        "linears": len(ends),
        "first_params": int(ends.iloc[0]["weights"] + ends.iloc[0]["biases"]),
        "last_params": int(ends.iloc[-1]["weights"] + ends.iloc[-1]["biases"]),
        "pooled": math.isqrt(features // int(rows[rows["role"] != "head"].iloc[-1]["channels"])),
        "features": features,
        "pool_params": sum(p.numel() for m in pools for p in m.parameters()),
    }


def by_map(model: Any, resolution: int = 224) -> dict[str, dict[str, int]]:
    """MACs and parameters of convolutions by the side of their output map ("224", "112", ...), and of ``fc``, the linear layers."""
    rows = layers(model, resolution)
    where = rows["size"].astype(str).where(rows["role"] != "head", "fc")
    counts = {"macs": rows["macs"], "params": rows["weights"] + rows["biases"]}
    return {what: {str(k): int(v) for k, v in values.groupby(where, sort=False).sum().items()} for what, values in counts.items()}


def excess(dear: Any, cheap: Any, resolution: int = 224) -> dict[str, Any]:
    """Where the difference of two networks in MACs lies, as shares of it: ``dear`` less ``cheap``.

    - ``macs``, ``params``: the differences;
    - ``small_maps``: in layers on maps of at most an eighth of the image's side and fully connected ones; ``large_maps``: the rest;
    - ``wide``: in convolutions of at least 512 output channels and fully connected layers; ``params_wide``,
      ``params_small_maps``: the same of parameters;
    - ``by_size``: differences in MACs by the side of the map.
    """
    found = []
    for model in (dear, cheap):
        rows = layers(model, resolution)
        fc = rows["role"] == "head"
        small, wide = fc | (rows["size"] <= resolution // 8), fc | (rows["channels"] >= WIDE)
        params = rows["weights"] + rows["biases"]
        parts = {"small_maps": rows["macs"][small], "wide": rows["macs"][wide], "macs": rows["macs"], "params": params}
        parts |= {"params_small_maps": params[small], "params_wide": params[wide]}
        found.append({name: int(values.sum()) for name, values in parts.items()})
    difference = {name: found[0][name] - found[1][name] for name in found[0]}
    if difference["macs"] <= 0:
        raise Refused("the first network must need more MACs than the second; swap them")
    macs, params = difference["macs"], difference["params"]
    maps = [by_map(model, resolution)["macs"] for model in (dear, cheap)]
    sizes = sorted({*maps[0], *maps[1]}, key=lambda s: -int(s) if s.isdigit() else 0)
    return {
        "macs": macs,
        "params": params,
        "small_maps": difference["small_maps"] / macs,
        "large_maps": 1 - difference["small_maps"] / macs,
        "wide": difference["wide"] / macs,
        "params_small_maps": difference["params_small_maps"] / params,
        "params_wide": difference["params_wide"] / params,
        "by_size": {size: maps[0].get(size, 0) - maps[1].get(size, 0) for size in sizes},
    }
