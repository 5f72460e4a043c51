"""The shortcut route of a residual network: what stands on it, what a block really puts out, what it does when its branch is silent.

Everything here is exact: operations are counted as executed (:mod:`cnnstudy.probes.wiring`), sums are compared in double precision.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from cnnstudy.layers import SHORTCUT, conv
from cnnstudy.models.bottleneck import Bottleneck
from cnnstudy.models.resnet import Block, ResNetConfig
from cnnstudy.models.wide import PreactBlock
from cnnstudy.probes.jacobians import calibrated
from cnnstudy.probes.tape import network
from cnnstudy.probes.taps import inputs
from cnnstudy.probes.wiring import Node, Wired, sums, wired

COUNTED = ("relu", "conv", "norm", "pool", "pad", "subsample")


def words(nodes: list[Node]) -> str:
    """Operations as words; slicing in two directions is one subsampling."""
    names = [name for name, _ in itertools.groupby(nodes, lambda n: (n.op, 0 if n.op == "subsample" else n.index))]
    return " ".join(op for op, _ in names)


def orders(model: Any, resolution: int = 32) -> pd.DataFrame:
    """A row per residual block of a network or a config, operations by name in the order of execution.

    ``block``, ``stage``; ``branch``, ``shortcut``: from the block's input to the sum; ``shared``: those that begin both; ``after``: from
    the sum to the block's output; ``between``: from there to the next block (the last one: to the classifier); ``last``: the branch's
    last operation; ``identity``: nothing on the shortcut.
    """
    return pd.DataFrame([
        {
            "block": b.name, "stage": b.stage, "branch": words(b.branch), "shortcut": words(b.shortcut), "shared": words(_shared(b)),
            "after": words(b.after), "between": words(b.between), "last": b.branch[-1].op if b.branch else "", "identity": b.identity,
        }
        for b in wired(model, resolution)[0]
    ])  # fmt: skip


def _shared(b: Wired) -> list[Node]:
    pairs = itertools.takewhile(lambda pair: pair[0].index == pair[1].index, zip(b.branch, b.shortcut, strict=False))
    return [one for one, _ in pairs]


def route(model: Any, resolution: int = 32) -> dict[str, Any]:
    """What is not the identity on the way along the shortcuts, from the first block's input to the last block's output.

    ``operations`` in all, and by kind ``relu``, ``conv``, ``norm``, ``pool``, ``pad``, ``subsample``, ``other``; ``by_stage``: a list;
    ``clean_blocks``: of ``blocks``, those without any (on the shortcut, after the sum, or before the next block).  ``stem`` and ``head``:
    the operations before and after (up to the classifier), in words; they are not in the counts.
    """
    found, stem = wired(model, resolution)
    ways = [_words_on_route(b, last=b is found[-1]) for b in found]
    total = Counter(itertools.chain.from_iterable(ways))
    stages = range(1, found[-1].stage + 1)
    return {
        "blocks": len(found), "stages": len(stages), "operations": sum(total.values()),
        **{name: total[name] for name in COUNTED}, "other": sum(n for name, n in total.items() if name not in COUNTED),
        "clean_blocks": sum(not way for way in ways),
        "by_stage": [sum(len(way) for b, way in zip(found, ways, strict=True) if b.stage == stage) for stage in stages],
        "stem": words(stem), "head": words(found[-1].between),
    }  # fmt: skip


def _words_on_route(b: Wired, last: bool) -> list[str]:
    return words([*b.shortcut, *b.after, *([] if last else b.between)]).split()


def census(model: Any, resolution: int = 32) -> dict[str, Any]:
    """Shortcuts by kind: ``identity``, ``projection`` (a convolution on it), ``padding``, ``other``, of ``blocks``; and parameters:
    ``params`` of the network, ``projection_params`` of the modules that only the projections use, ``projection_share``.
    """
    net = network(model, "meta", training=False)
    found, _ = wired(net, resolution)
    kinds = Counter("identity" if b.identity else "projection" if "conv" in words(b.shortcut) else "other" for b in found)
    padded = sum("pad" in words(b.shortcut) for b in found)
    own = {n.module for b in found for n in b.shortcut} - {n.module for b in found for n in b.branch}
    params = sum(p.numel() for p in net.parameters())
    projection = sum(p.numel() for name in own for p in net.get_submodule(name).parameters())
    return {
        "blocks": len(found), "identity": kinds["identity"], "projection": kinds["projection"], "padding": padded,
        "other": kinds["other"] - padded, "params": params, "projection_params": projection, "projection_share": projection / params,
    }  # fmt: skip


def rectified(model: nn.Module, x: Tensor) -> pd.DataFrame:
    """Per convolution, for images ``x`` in evaluation mode: ``name``, ``negative`` (share of inputs below 0), ``rectified`` (none are)."""
    net = copy.deepcopy(model).eval()
    convs = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    with torch.no_grad(), inputs(convs) as seen:
        net(x)
    rows = [{"name": name, "negative": float((seen[name] < 0).double().mean())} for name in convs]
    return pd.DataFrame(rows).assign(rectified=lambda t: t["negative"] == 0)


def _norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]


def randomised(model: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    """A copy in double precision and evaluation mode whose batch norms hold random statistics, scales and shifts.

    Means and variances scatter around those that ``x`` gives (by half a standard deviation; by a factor of 0.5 to 1.5), so that
    activations neither vanish nor explode; scales are uniform in [0.5, 1.5], shifts normal with standard deviation 0.5.
    """
    twin = calibrated(model, x)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in _norms(twin):
            _scatter(norm, generator)
    return twin


def _scatter(norm: nn.BatchNorm2d, generator: torch.Generator) -> None:
    def uniform() -> Tensor:
        return 0.5 + torch.rand(norm.num_features, generator=generator, dtype=torch.float64)

    def normal() -> Tensor:
        return 0.5 * torch.randn(norm.num_features, generator=generator, dtype=torch.float64)

    mean, var = norm.running_mean, norm.running_var
    assert mean is not None and var is not None
    mean += normal() * var.sqrt()
    var *= uniform()
    norm.weight.copy_(uniform())
    norm.bias.copy_(normal())


def _images(resolution: int, seed: int, batch: int = 8) -> Tensor:
    return torch.rand(batch, 3, resolution, resolution, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def block_outputs(model: Any, resolution: int = 32, seed: int = 0) -> pd.DataFrame:
    """Is a block's output F(x) + x?  A row per block of a network or a config with random weights and statistics (:func:`randomised`).

    Largest differences, in double precision: ``difference`` |y - (F(x) + x)| (NaN where x has another shape), ``sum_difference``
    |sum - (branch + shortcut)|, ``shortcut_difference`` |shortcut - x|, ``norm_difference`` |shortcut - norm(x)| where the branch begins
    with a norm.  ``branch_min``: smallest value of the branch.  ``block``, ``stage``, ``identity``, ``after`` as in :func:`orders`.
    """
    torch.manual_seed(seed)
    net = randomised(network(model, "cpu", training=False), _images(resolution, seed), seed)
    table, rows = orders(net, resolution), []
    for order, b in zip(table.itertuples(), sums(net, _images(resolution, seed + 1)), strict=True):
        fits = b.x.shape == b.total.shape
        normed = _first_norm(net, str(b.block), b.x) if str(order.branch).startswith("norm") and fits else None
        rows.append({
            "block": b.block, "stage": b.stage, "identity": b.identity, "after": order.after,
            "difference": _largest(b.y - (b.branch + b.x)) if fits else math.nan,
            "sum_difference": _largest(b.total - (b.branch + b.shortcut)),
            "shortcut_difference": _largest(b.shortcut - b.x) if fits else math.nan,
            "norm_difference": math.nan if normed is None else _largest(b.shortcut - normed),
            "branch_min": float(b.branch.min()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


def _first_norm(net: nn.Module, block: str, x: Tensor) -> Tensor:
    """Batch norm alone (timm's brings its activation along) of a block's input, with the block's first norm."""
    n = _norms(net.get_submodule(block))[0]
    return nn.functional.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, False, 0.0, n.eps)


def silent(model: nn.Module, resolution: int = 32) -> nn.Module:
    """A copy whose branches put out exactly 0: the last norm's or convolution's weight and bias in each are 0."""
    twin = copy.deepcopy(model)
    for b in wired(model, resolution)[0]:
        last: Any = twin.get_submodule([n.module for n in b.branch if n.op in ("conv", "norm")][-1])
        for parameter in (last.weight, last.bias):
            if parameter is not None:
                nn.init.zeros_(parameter)
    return twin


def stage_identity(model: Any, resolution: int = 32, seed: int = 0) -> pd.DataFrame:
    """What a stage's blocks, fed with a signed random tensor x_l, make of it: a row per stage, and one, "all", for the whole chain.

    Counted are the blocks that keep the shape (``blocks``), with random statistics.  With silent branches: ``forward`` largest
    |x_L - x_l|, ``backward`` largest |gradient at x_l - gradient at x_L| (random one).  With the branches in place: ``telescoping``
    largest |x_L - (x_l + sum of branches)| over the largest |x_L|.  NaN for "all" where shapes change on the way.
    """
    torch.manual_seed(seed)
    net = randomised(network(model, "cpu", training=False), _images(resolution, seed), seed)
    found = wired(net, resolution)[0]
    keeping = [b for b in found if b.enter.shape == b.total.shape]
    parts = {str(stage): [b for b in keeping if b.stage == stage] for stage in range(1, found[-1].stage + 1)} | {"all": found}
    quiet = silent(net, resolution)
    rows = []
    for stage, chosen in parts.items():
        row: dict[str, Any] = {"stage": stage, "blocks": len(chosen), "forward": math.nan, "backward": math.nan, "telescoping": math.nan}
        if chosen and len(chosen) == sum(b in keeping for b in chosen):
            x = torch.randn(2, *chosen[0].enter.shape[1:], generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
            row |= _chain(nn.Sequential(*(quiet.get_submodule(b.name) for b in chosen)), x, seed)
            added = sums(nn.Sequential(*(net.get_submodule(b.name) for b in chosen)), x)
            row["telescoping"] = _largest(added[-1].y - (x + sum(b.branch for b in added))) / _largest(added[-1].y)
        rows.append(row)
    return pd.DataFrame(rows)


def _chain(silenced: nn.Module, x: Tensor, seed: int) -> dict[str, float]:
    x = x.clone().requires_grad_()
    y = silenced(x)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)
    (back,) = torch.autograd.grad(y, x, g)
    return {"forward": _largest(y.detach() - x.detach()), "backward": _largest(back - g)}


def zero_weights(seed: int = 0, channels: int = 16) -> pd.DataFrame:
    """Blocks of every kind whose branch convolutions (weights and biases) are 0: ``difference``, largest |output - input|.

    ``kind`` basic, bottleneck; ``order`` original, preact; ``shortcut`` identity, projection (1x1, as many channels out as in, so that
    output and input can be compared; it keeps its random weights); ``mode`` train, eval; ``statistics`` batch (train), fresh (eval: mean 0,
    variance 1), random (eval); ``bias``: of the norms, zero or random; ``inputs`` nonnegative, signed.
    """
    states = [("train", "batch"), ("eval", "fresh"), ("eval", "random")]
    cases = itertools.product(
        ("basic", "bottleneck"), ("original", "preact"), ("identity", "projection"), states, ("zero", "random"), ("nonnegative", "signed")
    )
    rows = []
    for kind, order, shortcut, (mode, statistics), bias, sign in cases:
        torch.manual_seed(seed)
        block = _block(kind, order, shortcut, channels).double().train(mode == "train")
        for module in block.branch.modules():  # type: ignore[union-attr]
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.weight)
        for norm in _norms(block):
            nn.init.zeros_(norm.bias) if bias == "zero" else nn.init.normal_(norm.bias)
            if statistics == "random":
                nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
                nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        x = torch.randn(4, channels, 8, 8, dtype=torch.float64)
        x = x.relu() if sign == "nonnegative" else x
        with torch.no_grad():
            difference = _largest(block(x) - x)
        rows.append({
            "kind": kind, "order": order, "shortcut": shortcut, "mode": mode, "statistics": statistics, "bias": bias, "inputs": sign,
            "difference": difference,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _block(kind: str, order: str, shortcut: str, channels: int) -> nn.Module:
    """A block from ``channels`` to as many, with random weights."""
    block: Any
    if order == "preact":
        block = PreactBlock(channels, channels, channels // (4 if kind == "bottleneck" else 1), 1, kind == "bottleneck")
        if shortcut == "projection":
            block.shortcut = conv(channels, channels, 1)
        return block
    block = Block(ResNetConfig(), channels, channels, 1) if kind == "basic" else Bottleneck(channels, channels, channels // 4)
    if shortcut == "projection":
        block.shortcut = SHORTCUT["B"](channels, channels, 1, "batch")
    return block
