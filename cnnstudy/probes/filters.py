"""What filters a network is made of, how long its specification is, and what a stack of small ones has in place of a large one.

A stack of k filters 3x3 sees (2 k + 1) x (2 k + 1) pixels (Simonyan & Zisserman 2015, arXiv:1409.1556, section 2.3).
"""

from __future__ import annotations

import ast
import importlib
import inspect
import math
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.models.stacks import stack
from cnnstudy.models.torchvision_mend import import_torchvision
from cnnstudy.probes import receptive
from cnnstudy.probes.layer_costs import blocks_between_poolings, layers

# What torchvision needs to define a network: the parts of its module, weights and builders of other variants left out.
PARTS = {
    "alexnet": ("AlexNet",),
    "vgg": ("VGG", "make_layers", "cfgs"),
    "googlenet": ("GoogLeNet", "Inception", "InceptionAux", "BasicConv2d"),
    "resnet": ("conv3x3", "conv1x1", "Bottleneck", "ResNet"),
}


def kernel_sizes(model: Any, resolution: int = 224) -> dict[str, Any]:
    """The convolutions of a network: ``kernels`` ("3x3", ... in order), ``other`` (how many are not 3x3), ``layers``,
    ``share`` and ``macs_share`` of 3x3 among the convolutions; ``kinds``: distinct (kernel, stride, channels in, channels out) among
    all layers, ``fc`` the side of the map that each fully connected layer covers.
    """
    table = layers(model, resolution)
    convs = table[table["role"] != "head"]
    small = convs["kernel"] == 3
    kinds = table[["type", "kernel", "stride", "groups", "channels_in", "channels"]].drop_duplicates()
    filters = convs[["kernel", "stride", "groups"]].drop_duplicates()
    return {
        "kernels": [f"{k}x{k}" for k in convs["kernel"]],
        "other": int((~small).sum()),
        "layers": len(convs),
        "share": float(small.mean()),
        "macs_share": float(convs.loc[small, "macs"].sum() / convs["macs"].sum()),
        "all_layers": len(table),
        "kinds": len(kinds),
        "filters": len(filters),
        "fc": [int(k) for k in table.loc[table["role"] == "head", "kernel"]],
    }


def code_lines(name: str) -> int:
    """Lines of code that define a network's family in torchvision, as they stand there: no comments, docstrings or blank lines."""
    import_torchvision()
    family = name.rstrip("0123456789")
    wanted = PARTS[choose("family of a network with a specification", family, PARTS)]
    text = inspect.getsource(importlib.import_module(f"torchvision.models.{family}"))
    tree = ast.parse(text)
    lines: set[int] = set()
    for node in tree.body:
        target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0] if isinstance(node, ast.Assign) else node
        if getattr(target, "name", getattr(target, "id", None)) in wanted:
            lines |= _span(node)
            for inner in ast.walk(node):
                if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner) is not None:
                    lines -= _span(inner.body[0])
    source = text.splitlines()
    return sum(bool(source[i - 1].partition("#")[0].strip()) for i in lines)


def _span(node: Any) -> set[int]:
    return set(range(node.lineno, node.end_lineno + 1))


def chain(spec: str) -> tuple[nn.Sequential, dict[str, list[int]]]:
    """Layers by a word each, "3-3s2-p-3d2": 3x3 convolutions, one of stride 2, a 2x2 max pooling, one of dilation 2; one channel.

    Returns them, and kernels, strides, paddings and dilations for the closed form.
    """
    parts: dict[str, list[int]] = {"kernels": [], "strides": [], "paddings": [], "dilations": []}
    net = nn.Sequential()
    for word in spec.split("-"):
        form = re.fullmatch(r"(p)|(\d+)(?:s(\d+))?(?:d(\d+))?", word)
        if form is None or (form[2] and int(form[2]) % 2 == 0):
            raise Refused(f"{word!r} in {spec!r} is no layer; valid: an odd kernel, '3', '3s2', '3d2', or 'p' for a pooling")
        kernel, stride, dilation = (2, 2, 1) if form[1] else (int(form[2]), int(form[3] or 1), int(form[4] or 1))
        padding = 0 if form[1] else dilation * (kernel // 2)
        net.append(nn.MaxPool2d(2) if form[1] else nn.Conv2d(1, 1, kernel, stride, padding, dilation))
        for name, value in zip(parts, (kernel, stride, padding, dilation), strict=True):
            parts[name].append(value)
    return net, parts


def field(spec: str) -> dict[str, int]:
    """The field of a chain of layers: ``height``, ``width``, ``pixels`` by gradient; ``formula``: 1 + the sum of (n - 1) over its
    convolutions, which for k equal ones is k (n - 1) + 1; ``closed``: the closed form with strides and dilations; ``apart``: by how
    much the sides differ from the formula, and the pixels from its square.
    """
    net, parts = chain(spec)
    words = spec.split("-")
    formula = 1 + sum(kernel - 1 for word, kernel in zip(words, parts["kernels"], strict=True) if word != "p")
    closed = int(receptive.stack(**parts)[-1]["size"])
    seen = receptive.support(net, 2 * closed + 2 * math.prod(parts["strides"]))
    sides = seen["height"], seen["width"], seen["pixels"]
    apart = sum(abs(a - b) for a, b in zip(sides, (formula, formula, formula**2), strict=True))
    return {"height": sides[0], "width": sides[1], "pixels": sides[2], "formula": formula, "closed": closed, "apart": apart}


def with_convolutions(model: Any, resolution: int = 224) -> dict[str, int]:
    """``params``, ``macs`` of a network, and ``conv_params``, ``conv_macs`` of its convolutions alone (biases included)."""
    table = layers(model, resolution)
    table["params"] = table["weights"] + table["biases"]
    convs = table[table["role"] != "head"]
    whole = {name: int(table[name].sum()) for name in ("params", "macs")}
    return whole | {f"conv_{name}": int(convs[name].sum()) for name in whole}


def against_single(sizes: list[int], c_in: int, c_out: int) -> dict[str, Any]:
    """Weights of a stack of filters (c_in to c_out in the first, then c_out) and of the one filter with its field.

    ``weights``, ``single`` (both without bias), ``saving`` (share of the single filter's weights that the stack does without; below
    0 if it has more), ``per_c2`` (weights over c_out^2), ``field`` (its side in pixels).
    """
    field = 1 + sum(size - 1 for size in sizes)
    weights, single = (_weights(each, c_in, c_out) for each in (sizes, [field]))
    return {"weights": weights, "single": single, "saving": 1 - weights / single, "per_c2": weights / c_out**2, "field": field}


def _weights(sizes: list[int], c_in: int, c_out: int) -> int:
    with torch.device("meta"):
        net = stack(sizes, c_in, c_out, norm=False)
    return sum(m.weight.numel() for m in net.modules() if isinstance(m, nn.Conv2d))


def vgg_blocks(model: Any, resolution: int = 224) -> list[tuple[int, int, int]]:
    """The blocks of a VGG, between its poolings: (number of 3x3 layers, channels in, channels out) of each."""
    table = layers(model, resolution)
    convs = table[table["role"] != "head"]
    ends = np.cumsum(blocks_between_poolings(model))
    starts = np.concatenate([[0], ends[:-1]])
    if not len(ends) or ends[-1] != len(convs):
        raise Refused(f"{ends[-1] if len(ends) else 0} convolutions stand between poolings, {len(convs)} in all; valid: a VGG")
    rows = convs.to_dict("records")
    return [(int(b - a), int(rows[a]["channels_in"]), int(rows[b - 1]["channels"])) for a, b in zip(starts, ends, strict=True)]


SIDE = 11  # of the part of a map that is kept: the largest field here is 7


def stage_fields(model: Any, x: Tensor, seed: int = 0) -> dict[str, Any]:
    """The effective field of each stage of a ``Stacks`` network, from the stage's input to the centre of its last ReLU, on images ``x``.

    ``sigma``, ``central_share`` (mean over stages; see ``receptive.measures``), the same ``_by_stage``, and ``maps``
    (stages, SIDE, SIDE), each around the centre unit and summing to 1.
    """
    maps, found = [], []
    with torch.no_grad():
        h = model.stem(model.normalize(x))
    for stage in model.stages:
        energy = receptive.effective(stage, h, last_act(stage), seed)
        found.append(receptive.measures(energy))
        maps.append(around_centre(energy))
        with torch.no_grad():
            h = stage(h)
    means = {name: [float(one[name] or math.nan) for one in found] for name in ("sigma", "central_share")}
    return {
        **{name: float(np.mean(values)) for name, values in means.items()},
        **{f"{name}_by_stage": values for name, values in means.items()},
        "maps": np.stack(maps),
    }


def last_act(stage: nn.Module) -> str:
    """The name of the last ReLU in a stage."""
    names = [name for name, module in stage.named_modules() if isinstance(module, nn.ReLU)]
    if not names:
        raise Refused(f"{type(stage).__name__} has no ReLU; valid: a stage of a Stacks network")
    return names[-1]


def around_centre(energy: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The part (side, side) of a map around its centre unit, row and column H // 2; zeros where the map ends."""
    half = side // 2
    padded = np.pad(energy, half)
    row, column = energy.shape[0] // 2, energy.shape[1] // 2
    return np.asarray(padded[row : row + side, column : column + side])
