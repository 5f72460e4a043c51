"""Channel shuffles in any network: found while it runs and in its source, counted unit by unit, taken out, and followed.

A shuffle is found by what it does, not by its name: the channels, seen as (groups, each), change places, or a permutation picks them.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from cnnstudy.config import Refused, choose
from cnnstudy.models import build
from cnnstudy.models.bottleneck import Bottleneck, Paths
from cnnstudy.models.shuffle import MIX, Permute, Shuffle
from cnnstudy.models.torchvision_mend import import_torchvision
from cnnstudy.models.zoo import ZooConfig, zoo
from cnnstudy.probes import taps
from cnnstudy.probes.receptive import positive

UNITS = ("ShuffleUnit", "InvertedResidual", "Bottleneck")  # a unit is a module of one of these classes: ours, torchvision's, timm's

FLOAT = 4  # bytes
LAST = ("none", "dense", "classifier")


def network(cfg: Any) -> nn.Module:
    """The network of a zoo's config or of one of ours.  Works under ``torch.device("meta")``."""
    return zoo(cfg) if isinstance(cfg, ZooConfig) else build(cfg)


# Found while it runs -------------------------------------------------------------------------------------------------


class _Listener(TorchFunctionMode):
    """Writes down each shuffle and each split of channels while a network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if what := _what(getattr(func, "__name__", ""), args, kwargs or {}):
            self.found.append(what)
        return func(*args, **(kwargs or {}))


def _what(name: str, args: Any, kwargs: Any) -> str:
    """What a call of torch does to the channels, dimension 1 of its first argument: "shuffle", "split" or nothing."""
    x = args[0] if args and isinstance(args[0], Tensor) else None
    if x is None:
        return ""
    rest = list(args[1:]) + list(kwargs.values())
    if name in ("channel_shuffle", "native_channel_shuffle"):
        return "shuffle"
    if x.dim() == 5:  # (N, groups, each, H, W)
        if name in ("transpose", "transpose_", "swapaxes", "swapdims") and {d % 5 for d in rest[:2]} == {1, 2}:
            return "shuffle"
        order = rest[0] if rest and isinstance(rest[0], (tuple, list)) else rest
        if name == "permute" and [d % 5 for d in order] == [0, 2, 1, 3, 4]:
            return "shuffle"
    if x.dim() == 4:
        if name == "index_select" and rest[:1] == [1]:
            return "shuffle"
        if name == "__getitem__":
            picks = rest[0] if isinstance(rest[0], tuple) else (rest[0],)
            if any(isinstance(p, Tensor) and p.dim() == 1 and p.dtype == torch.long for p in picks):
                return "shuffle"
        if name in ("chunk", "split", "tensor_split") and (1 in rest[1:] or kwargs.get("dim") == 1):
            return "split"
    return ""


def _listen(module: nn.Module, x: Tensor) -> list[str]:
    with _Listener() as listener:
        _run(module, x)
    return listener.found


def _run(module: nn.Module, x: Tensor) -> None:
    was = module.training
    with torch.no_grad():
        module.eval()(x)
    module.train(was)


def _image(model: nn.Module, resolution: int) -> Tensor:
    return torch.zeros(1, 3, resolution, resolution, device=next(model.parameters()).device)


def heard(model: nn.Module, resolution: int = 64) -> list[str]:
    """What is done to the channels, "shuffle" or "split", in the order of a forward pass of one image, (1, 3, resolution, resolution).

    A shuffle: torch's ``channel_shuffle``; an exchange of dimensions 1 and 2 of a (N, groups, each, H, W); channels picked by a list of
    indices.  A split: ``chunk`` or ``split`` of the channels.
    """
    return _listen(model, _image(model, resolution))


def mentions(model: nn.Module, word: str = "shuffle") -> list[str]:
    """Classes of the network's modules in whose own source ``word`` stands; torch's own layers are not read."""
    classes = {type(m) for m in model.modules() if not type(m).__module__.startswith("torch.nn.")}
    return sorted(c.__name__ for c in classes if word in inspect.getsource(c).lower())


def units(model: nn.Module, resolution: int = 64) -> dict[str, Any]:
    """Unit by unit (see ``UNITS``): ``units``, ``shuffles``, ``splits``, ``every_unit_shuffles``; and of the 1x1 convolutions inside of
    them ``pointwise``, ``grouped_pointwise`` (how many) and ``pointwise_groups``, ``spatial_groups`` (which numbers of groups occur; a
    depthwise layer counts as "depthwise" and stands in neither).
    """
    inside = {name: m for name, m in model.named_modules() if type(m).__name__ in UNITS}
    if not inside:
        raise Refused(f"{type(model).__name__} has no module of a class {', '.join(UNITS)}")
    with taps.inputs(inside) as seen:
        _run(model, _image(model, resolution))
    found = {name: _listen(unit, seen[name]) for name, unit in inside.items()}
    shuffles = {name: done.count("shuffle") for name, done in found.items()}
    convs = [m for unit in inside.values() for m in unit.modules() if isinstance(m, nn.Conv2d)]
    pointwise = [c.groups for c in convs if c.kernel_size == (1, 1)]
    spatial = [c.groups for c in convs if c.kernel_size != (1, 1) and not c.groups == c.in_channels == c.out_channels]
    return {
        "units": len(inside),
        "shuffles": sum(shuffles.values()),
        "most_shuffles": max(shuffles.values()),
        "every_unit_shuffles": min(shuffles.values()) > 0,
        "splits": sum(done.count("split") for done in found.values()),
        "pointwise": len(pointwise),
        "grouped_pointwise": sum(g > 1 for g in pointwise),
        "pointwise_groups": sorted(set(pointwise)),
        "spatial_groups": sorted(set(spatial)),
    }


# Taken out -----------------------------------------------------------------------------------------------------------


class _WithoutShuffle(nn.Module):
    """torchvision's unit of ShuffleNetV2, with everything but its shuffle."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        self.stride, self.branch1, self.branch2 = unit.stride, unit.branch1, unit.branch2

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.stride == 1 else (self.branch1(x), x)
        return torch.cat((left, self.branch2(right)), dim=1)


def _of_v2(module: nn.Module) -> bool:
    return (type(module).__module__, type(module).__name__) == ("torchvision.models.shufflenetv2", "InvertedResidual")


def unshuffled(model: nn.Module) -> nn.Module:
    """A copy of a ShuffleNet (ours, or torchvision's V2) in which every shuffle is an identity; all weights are the same.

    Raises Refused where a shuffle is left, or there was none.
    """
    twin = copy.deepcopy(model)
    done = 0
    for name, module in list(twin.named_modules()):
        if isinstance(module, (Shuffle, Permute)):
            twin.set_submodule(name, nn.Identity())
            done += 1
        elif _of_v2(module):
            twin.set_submodule(name, _WithoutShuffle(module))
            done += 1
    if not done or "shuffle" in heard(twin):
        raise Refused(f"the shuffles of {type(model).__name__} cannot be taken out; valid: models.shuffle, torchvision's ShuffleNetV2")
    return twin


def bytes_moved(model: nn.Module, resolution: int = 224) -> dict[str, int]:
    """float32 bytes of one image that the shuffles of a network read and write (``shuffled``): each once, channel by channel; and what
    its convolutions read and write (``convolved``), weights included.
    """
    watched = {name: m for name, m in model.named_modules() if isinstance(m, (Shuffle, Permute, nn.Conv2d)) or _of_v2(m)}
    with taps.inputs(watched) as read, taps.outputs(watched) as written:
        _run(model, _image(model, resolution))
    moved = {"shuffled": 0, "convolved": 0}
    for name, module in watched.items():
        out = written[name].numel()
        if isinstance(module, nn.Conv2d):
            moved["convolved"] += FLOAT * (read[name].numel() + out + module.weight.numel())
        else:  # what torchvision's unit puts out it has shuffled
            moved["shuffled"] += FLOAT * 2 * out
    return moved


# Followed ------------------------------------------------------------------------------------------------------------


class _Sum(nn.Module):
    """A branch added to its input."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


def stack(channels: int, groups: int, layers: int, between: str = "none", residual: bool = False, last: str = "none") -> nn.Sequential:
    """``layers`` grouped 1x1 convolutions with ReLUs, a depthwise 3x3 and the mixer ``between`` any two of them.

    ``residual``: each layer's input is added to its output.  ``last``: what follows the stack, nothing, a "dense" 1x1, or a "classifier"
    (average over the map, then a dense layer, with as many outputs as channels).  (N, channels, H, W) -> (N, channels, H, W), or 1 x 1.
    """
    choose("mixer", between, MIX)
    made = nn.Sequential()
    for index in range(layers):
        if index:
            made.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
            made.append(MIX[between](channels, groups))
        layer = nn.Sequential(nn.Conv2d(channels, channels, 1, groups=groups), nn.ReLU())
        made.append(_Sum(layer) if residual else layer)
    if choose("last layer", last, LAST) != "none":
        made.extend([nn.AdaptiveAvgPool2d(1)] if last == "classifier" else [])
        made.append(nn.Conv2d(channels, channels, 1))
    return made


def flow(module: nn.Module, channels: int, size: int = 8) -> Tensor:
    """(out, in) bool, exact: which input channel can change which output channel of ``module`` (N, channels, H, W) -> (N, out, ...).

    One input channel at a time is lit in a copy in which nothing cancels (:func:`receptive.positive`).
    """
    net = positive(module)
    lit = torch.eye(channels, dtype=torch.float64)[:, :, None, None].repeat(1, 1, size, size)
    with torch.no_grad():
        out = net(lit) - net(torch.zeros(1, channels, size, size, dtype=torch.float64))
    return (out.flatten(2).amax(2) > 0).T


# Compared ------------------------------------------------------------------------------------------------------------


def definition(most: int) -> dict[str, int]:
    """Reshape to (g, n), transpose, flatten, for all g and n up to ``most``: how many results differ from torch's channel shuffle
    (``unlike_torch``) or from torchvision's (``unlike_torchvision``), are no permutation (``no_permutation``), or do not come back in
    order after a second shuffle, with n (``not_restored``); ``compared``: how many there are.
    """
    import_torchvision()
    from torchvision.models.shufflenetv2 import channel_shuffle

    found = dict.fromkeys(("unlike_torch", "unlike_torchvision", "no_permutation", "not_restored", "compared"), 0)
    for g in range(1, most + 1):
        for n in range(1, most + 1):
            x = torch.arange(float(g * n)).view(1, -1, 1, 1)
            mine = x.reshape(g, n).T.flatten().view_as(x)
            found["compared"] += 1
            found["unlike_torch"] += not torch.equal(mine, F.channel_shuffle(x, g))
            found["unlike_torchvision"] += not torch.equal(mine, channel_shuffle(x, g))
            found["no_permutation"] += not torch.equal(mine.flatten().sort().values, x.flatten())
            found["not_restored"] += not torch.equal(F.channel_shuffle(mine, n), x)
    return found


def branches(model: nn.Module, size: int = 8, seed: int = 0) -> dict[str, Any]:
    """A ResNeXt of timm: ``groups`` and ``pointwise_groups``, the numbers of groups of its 3x3 and 1x1 convolutions (shortcuts left out),
    ``blocks``, and ``difference``: the largest between the outputs of a block with the shape of each stage's first and of the same
    weights in separate branches, on maps of ``size`` x ``size``.
    """
    stages: list[Any] = [getattr(model, f"layer{i}") for i in (1, 2, 3, 4)]
    units_ = [unit for stage in stages for unit in stage]
    differences = []
    for first in (stage[0] for stage in stages):
        torch.manual_seed(seed)
        mid = first.conv2
        block = Bottleneck(first.conv1.in_channels, first.conv3.out_channels, mid.out_channels, mid.stride[0], mid.groups).eval()
        x = torch.randn(2, first.conv1.in_channels, size, size)
        with torch.no_grad():
            differences.append(float((block(x) - Paths(block)(x)).abs().max()))
    return {
        "blocks": len(units_),
        "groups": sorted({unit.conv2.groups for unit in units_}),
        "pointwise_groups": sorted({conv.groups for unit in units_ for conv in (unit.conv1, unit.conv3)}),
        "difference": max(differences),
    }
