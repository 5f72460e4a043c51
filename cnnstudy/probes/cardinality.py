"""What cardinality is in a network: the groups of its 3x3 convolutions, its kinds of block, and one block in its three forms.

Xie et al. 2017 (arXiv:1611.05431), figure 3: separate paths that are summed (a), paths whose outputs are put side by side (b), one
grouped convolution (c).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models.bottleneck import Bottleneck, Paths
from cnnstudy.models.counterfactual import CounterfactualConfig
from cnnstudy.probes import mixing, taps
from cnnstudy.probes.cost import cost
from cnnstudy.probes.tape import network

INSIDE = {"conv1": {"out"}, "bn1": {"out"}, "conv2": {"in", "out", "groups"}, "bn2": {"out"}, "conv3": {"in"}}
SIZE = 7  # pixels a side of the maps on which forms are compared

# Whole networks ------------------------------------------------------------------------------------------------------


def structure(model: Any) -> dict[str, Any]:
    """The blocks of an ImageNet ResNet, ResNeXt or Inception-v3, as timm builds them.

    - ``groups_3x3``: groups of each 3x3 convolution in the blocks, in order; ``blocks``: their number;
    - ``templates``: kinds of block, by names and kernels of their convolutions (stride and channels left out);
    - ``proportions``: kinds of block when the proportions of the convolutions' outputs and their groups count, too.
    """
    found = _blocks(network(model, "meta", training=False))
    convs = [[(name, m) for name, m in block.named_modules() if isinstance(m, nn.Conv2d)] for block in found]
    kinds = [tuple((name, m.kernel_size) for name, m in some) for some in convs]
    widths = [sum(m.out_channels for _, m in some) for some in convs]
    scaled = [tuple((Fraction(m.out_channels, width), m.groups) for _, m in some) for some, width in zip(convs, widths, strict=True)]
    return {
        "blocks": len(found),
        "groups_3x3": [m.groups for some in convs for _, m in some if m.kernel_size == (3, 3)],
        "templates": len(set(kinds)),
        "proportions": len(set(zip(kinds, scaled, strict=True))),
    }


def _blocks(net: nn.Module) -> list[nn.Module]:
    stages = [module for name, module in net.named_children() if name.startswith("layer")]
    found = [block for stage in stages for block in stage.children()]
    found = found or [module for name, module in net.named_children() if name.startswith("Mixed")]
    if not found:
        raise Refused(f"{type(net).__name__} has no blocks that are known here; valid: timm's ResNets, ResNeXts and Inception-v3")
    return found


def same_graph(model: Any, other: Any) -> dict[str, Any]:
    """Two ResNets, layer by layer.

    - ``layers``, ``different``: how many layers with parameters there are, and how many of them differ in any way;
    - ``where``: names of the layers that differ, within a block; ``what``: in what they differ;
    - ``same_but_inside``: as many layers of the same kinds and names in the same order, and they differ at most in the channels
      inside a block (out of conv1, through conv2, into conv3, with their norms) and in the groups of conv2.
    """
    mine, theirs = (_layers(network(one, "meta", training=False)) for one in (model, other))
    if list(mine) != list(theirs):
        return {"layers": len(mine), "different": None, "where": [], "what": [], "same_but_inside": False}
    apart = {name: {k for k in mine[name] if mine[name][k] != theirs[name].get(k)} for name in mine}
    apart = {name: what for name, what in apart.items() if what}
    inside = all(what <= INSIDE.get(name.split(".")[-1], set()) for name, what in apart.items())
    where = sorted({name.split(".")[-1] for name in apart})
    what = sorted({one for some in apart.values() for one in some})
    return {"layers": len(mine), "different": len(apart), "where": where, "what": what, "same_but_inside": inside}


def _layers(net: nn.Module) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name, m in net.named_modules():
        if list(m.children()):
            continue
        row: dict[str, Any] = {"type": type(m).__name__}
        if isinstance(m, nn.Conv2d):
            shape = {"kernel": m.kernel_size, "stride": m.stride, "padding": m.padding, "dilation": m.dilation, "bias": m.bias is not None}
            row |= {"in": m.in_channels, "out": m.out_channels, "groups": m.groups, **shape}
        elif isinstance(m, nn.BatchNorm2d):
            row |= {"out": m.num_features}
        elif isinstance(m, nn.Linear):
            row |= {"in": m.in_features, "out": m.out_features}
        found[name] = row
    return found


@cache
def size(cfg: CounterfactualConfig, resolution: int = 224) -> dict[str, int]:
    """``params`` and ``macs`` of a network."""
    counted = cost(cfg, resolution)
    return {"params": int(counted["params"]), "macs": int(counted["macs"])}


def moved(models: Sequence[CounterfactualConfig], reference: CounterfactualConfig) -> dict[str, Any]:
    """``params`` and ``macs`` of each network; ``params_off``, ``macs_off``: the largest distance from ``reference``, a share of it."""
    at = size(reference)
    lists = {what: [size(one)[what] for one in models] for what in at}
    return {**lists, **{f"{what}_off": max(abs(value / at[what] - 1) for value in values) for what, values in lists.items()}}


# One block -----------------------------------------------------------------------------------------------------------


def forms(block: nn.Module, seed: int = 0) -> dict[str, Any]:
    """A bottleneck with a grouped 3x3 as a sum of paths, as paths side by side, and as it is; float64, the same weights in all.

    - ``output_difference``, ``gradient_difference`` (of the input): largest absolute difference to the grouped form, of both other
      forms; with norms in training and in evaluation, with random scales and statistics;
    - ``sum_difference``: of what enters the last ReLU of the grouped form, and input plus sum of the paths (None with norms);
    - ``reads``: for each path, channels of the block's input that it depends on, by autograd; ``group_reads``: the same of each
      group of the 3x3 and its own input;
    - ``shapes``: how many kinds of path there are, by layers and their shapes; ``kernels``, ``channels`` of the first;
    - ``different_weights``: no two paths have the same weights.
    """
    generator = torch.Generator().manual_seed(seed)
    parts: Any = getattr(block, "branch", None)
    if not isinstance(block, Bottleneck) or parts.conv1.in_channels != parts.conv3.out_channels:
        raise Refused(f"a {type(block).__name__} like this has no such forms; valid: a bottleneck with as many channels out as in")
    block = copy.deepcopy(block).double()
    _unsettle(block, generator)
    normed = any(isinstance(m, nn.BatchNorm2d) for m in block.modules())
    parts = block.branch
    summed, beside = Paths(block), Paths(block, concatenate=True)
    x = torch.randn(2, parts.conv1.in_channels, SIZE, SIZE, dtype=torch.float64, generator=generator)
    weight = torch.randn(2, parts.conv3.out_channels, SIZE, SIZE, dtype=torch.float64, generator=generator)
    off = {"output": 0.0, "gradient": 0.0}
    for training in (True, False):
        ours = _run(block, x, weight, training)
        for other in (summed, beside):
            for name, a, b in zip(off, ours, _run(other, x, weight, training), strict=True):
                off[name] = max(off[name], float((a - b).abs().max()))
    convs = [[m for m in path.modules() if isinstance(m, nn.Conv2d)] for path in summed.paths]
    shapes = [tuple((type(m).__name__, *(tuple(p.shape) for p in m.parameters())) for m in path.modules()) for path in summed.paths]
    middle = parts.conv2
    inner = torch.randn(1, middle.in_channels, SIZE, SIZE, dtype=torch.float64, generator=generator)
    each = middle.out_channels // middle.groups
    return {
        **{f"{name}_difference": value for name, value in off.items()},
        "sum_difference": None if normed else _sum_difference(block, summed, x),
        "reads": [_reads(path, x) for path in summed.paths],
        "group_reads": [_reads(lambda v, i=i: middle(v)[:, i * each : (i + 1) * each], inner) for i in range(middle.groups)],
        "shapes": len(set(shapes)),
        "kernels": " ".join(f"{m.kernel_size[0]}x{m.kernel_size[1]}" for m in convs[0]),
        "channels": "-".join(str(c) for c in [convs[0][0].in_channels, *(m.out_channels for m in convs[0])]),
        "different_weights": len({tuple(m.weight.detach().numpy().tobytes() for m in some) for some in convs}) == len(convs),
    }


def _unsettle(block: nn.Module, generator: torch.Generator) -> None:
    """Random scales, shifts and statistics, so that equal norms are not equal by their defaults."""
    for norm in block.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for values in (norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var):
                assert values is not None
                values.copy_(torch.rand(values.shape, dtype=values.dtype, generator=generator) + 0.5)


def _run(module: nn.Module, x: Tensor, weight: Tensor, training: bool) -> tuple[Tensor, Tensor]:
    """Output, and gradient of its weighted sum with respect to the input."""
    given = x.clone().requires_grad_()
    out = copy.deepcopy(module).train(training)(given)
    return out.detach(), torch.autograd.grad((out * weight).sum(), given)[0]


def _sum_difference(block: Bottleneck, summed: Paths, x: Tensor) -> float:
    with torch.no_grad(), taps.inputs({"last": block.out}) as seen:
        block(x)
    with torch.no_grad():
        total = x + torch.stack([path(x) for path in summed.paths]).sum(0)
    return float((seen["last"] - total).abs().max())


def _reads(part: Any, x: Tensor) -> int:
    """Number of input channels that an output depends on."""
    given = x.clone().requires_grad_()
    out = part(given)
    slope = torch.autograd.grad((out * torch.randn_like(out)).sum(), given)[0]
    return int((slope != 0).any(3).any(2).any(0).sum())


def connectivity(layer: nn.Conv2d) -> dict[str, Any]:
    """Which input channel of a convolution in groups reaches which output channel, by its Jacobian.

    - ``block_diagonal``: exactly those in blocks along the diagonal, as many as there are groups; ``share``: of all pairs;
    - ``weights``, ``weights_times_groups``; array ``reaches`` (out, in) of bool.
    """
    found = mixing.channel_jacobian(layer, layer.in_channels, size=5, draws=1)
    weights = sum(p.numel() for p in layer.parameters())
    expected = mixing.grouped(layer.in_channels, layer.out_channels, layer.groups)
    return {
        "block_diagonal": bool(np.array_equal(found["reaches"], expected)),
        "share": found["share"],
        "weights": weights,
        "weights_times_groups": weights * layer.groups,
        "reaches": found["reaches"],
    }
