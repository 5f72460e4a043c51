"""Wide against deep, by counting: layers, channels, parameters and multiply-adds of wide networks and of thin ones.

For Wide ResNets (Zagoruyko & Komodakis 2016, arXiv:1605.07146) beside ResNets, for 32 x 32 and for ImageNet.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import build
from cnnstudy.models.wide import WideConfig
from cnnstudy.models.zoo import ZooConfig, zoo
from cnnstudy.probes.cost import cost


def shadow(model: Any) -> nn.Module:
    """The network of a config without weights, on the meta device."""
    with torch.device("meta"):
        return zoo(model) if isinstance(model, ZooConfig) else build(model)


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    """All convolutions, projections included, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}


def stage_widths(net: nn.Module) -> list[int]:
    """Output channels of the 3x3 convolutions behind the stem, one number for each run of equal ones: 64, 128, 256, 512 in ResNet-50."""
    found: list[int] = []
    for name, conv in convolutions(net).items():
        if conv.kernel_size == (3, 3) and "." in name and not name.startswith("stem") and found[-1:] != [conv.out_channels]:
            found.append(conv.out_channels)
    return found


@cache
def costs(model: Any, resolution: int) -> dict[str, Any]:
    """``params``, ``body_params`` (without the classifier), ``macs``, ``activations``, ``macs_per_param``, ``layers`` (with weights,
    on the main path), ``convolutions`` (projections included) and ``widths`` (see stage_widths) of a config's network."""
    net = shadow(model)
    whole = cost(net, resolution)
    head = [m for m in net.modules() if isinstance(m, nn.Linear)]
    return {
        **{name: whole[name] for name in ("params", "macs", "activations")},
        "body_params": whole["params"] - sum(p.numel() for m in head for p in m.parameters()),
        "macs_per_param": whole["macs"] / whole["params"],
        "layers": whole["weighted_layers"],
        "convolutions": len(convolutions(net)),
        "widths": stage_widths(net),
    }


def against(standard: Any, wide: Any) -> dict[str, Any]:
    """A standard network beside a wide one: ``layers`` and ``widths`` of both, ``layer_gap`` (the first's less the other's), and
    ``width_ratio``: its 3x3 width over the wide one's, in the stage where that is largest.

    Depth is counted on the main path, the classifier included.  Raises Refused if they differ in their number of stages.
    """
    a, b = shadow(standard), shadow(wide)
    ours, theirs = stage_widths(a), stage_widths(b)
    if len(ours) != len(theirs):
        raise Refused(f"the networks have {len(ours)} and {len(theirs)} stages of 3x3 convolutions; equally many can be compared")
    depth, other = (cost(net, 32)["weighted_layers"] for net in (a, b))
    return {
        "layers": depth, "wide_layers": other, "layer_gap": depth - other, "widths": ours, "wide_widths": theirs,
        "width_ratio": max(x / y for x, y in zip(ours, theirs, strict=True)),
    }  # fmt: skip


def widened(depth: int, k: int) -> dict[str, Any]:
    """Which convolutions of WRN-``depth``-``k`` have ``k`` times the output channels of the same one in WRN-``depth``-1.

    ``share``: of all of them; ``others``: the names of those that have not, the stem, and a projection that the thin network does
    without (``new``: how many of those); ``all_but_stem``: of the ones with a counterpart, only the stem stands apart.
    """
    wide, thin = (convolutions(shadow(WideConfig(depth, factor))) for factor in (k, 1))
    shared = {name for name in wide if name in thin}
    kept = {name for name in shared if wide[name].out_channels != k * thin[name].out_channels}
    new = [name for name in wide if name not in thin]
    return {
        "convolutions": len(wide), "new": len(new), "share": 1 - (len(kept) + len(new)) / len(wide),
        "share_of_shared": 1 - len(kept) / len(shared), "others": sorted(kept) + new, "all_but_stem": kept == {"stem.conv"},
    }  # fmt: skip


def exponent(depth: int, ks: Sequence[int]) -> dict[str, Any]:
    """By which power of k the parameters of WRN-``depth``-k grow (least squares of the logarithms), and the ``params`` themselves."""
    params = [costs(WideConfig(depth, k), 32)["params"] for k in ks]
    slope = float(np.polyfit(np.log(ks), np.log(params), 1)[0])
    return {"exponent": slope, "params": params, "largest_over_smallest": params[-1] / params[0]}
