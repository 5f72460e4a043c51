"""Where batch norm stands: what follows each convolution of a network, what a bias in front of a norm does, what a shifted order changes.

Everything here is exact: operations are counted as executed (:mod:`cnnstudy.probes.wiring`), outputs are compared in double precision.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import choose
from cnnstudy.models import ChainConfig, build
from cnnstudy.probes.tape import images, network
from cnnstudy.probes.taps import inputs, outputs
from cnnstudy.probes.wiring import Node, trace

ACTS = ("relu", "relu6", "leaky_relu", "prelu", "elu", "silu", "hardswish", "gelu", "sigmoid", "hardsigmoid", "tanh", "mish")
CHAINS = ("norm act", "norm", "act norm", "act", "bare")
COMPATIBLE = ("norm act", "norm")  # conv, norm, act; and a linear layer's conv, norm
STATES = ("training", "frozen", "evaluation", "evaluation, absorbed")


def census(model: Any, resolution: int = 224) -> dict[str, Any]:
    """What follows the convolutions of a network or a config, as executed.

    A convolution by what comes next: ``norm_act``, ``norm`` (then anything but an activation: an addition, a convolution), ``act_norm``,
    ``act``, ``bare`` (neither); ``convs`` in all of these.  Convolutions on maps of a single pixel are linear layers on pooled values
    (squeeze-and-excitation, classifiers): ``pooled``, left out.  ``compatible``: all are norm_act or norm; ``compatible_share``.  Of the
    convolutions directly before a norm (``normed``): ``biased`` have a bias, of ``wasted`` parameters in all; ``unbiased``: none has.
    """
    net = network(model, "meta", training=False)
    x = images(net, resolution, 1, "meta").to(next(net.parameters()).dtype)
    nodes, _ = trace(net, x)
    next_to: dict[int, list[Node]] = {node.index: [] for node in nodes}
    for node in nodes:
        for i in node.inputs:
            next_to[i].append(node)
    convs = [node for node in nodes if node.op == "conv"]
    large = [node for node in convs if node.shape[-1] * node.shape[-2] > 1]
    kinds = {node.index: _chain(node, next_to) for node in large}
    count = Counter(kinds.values())
    normed = [net.get_submodule(node.module) for node in large if kinds[node.index] in COMPATIBLE]
    biases = [bias.numel() for m in normed for name, bias in m.named_parameters(recurse=False) if name == "bias"]
    good = sum(count[kind] for kind in COMPATIBLE)
    return {kind.replace(" ", "_"): count[kind] for kind in CHAINS} | {
        "convs": len(large), "pooled": len(convs) - len(large), "compatible": good == len(large), "compatible_share": good / len(large),
        "normed": len(normed), "biased": len(biases), "wasted": sum(biases), "unbiased": not biases,
        "params": sum(p.numel() for p in net.parameters()),
    }  # fmt: skip


def _after(node: Node, next_to: dict[int, list[Node]]) -> set[str]:
    """Operations that read a node's output; what changes no value is looked through.  "norm", "act", or the operation's name."""
    found = set()
    for one in next_to[node.index]:
        found |= _after(one, next_to) if not one.op else {"act" if one.op in ACTS else one.op}
    return found


def _chain(conv: Node, next_to: dict[int, list[Node]]) -> str:
    names = []
    node = conv
    for _ in range(2):
        after = _after(node, next_to)
        name = next((n for n in ("norm", "act") if n in after), "")
        if not name or name in names:
            break
        names.append(name)
        node = _reader(node, name, next_to)
    return " ".join(names) or "bare"


def _reader(node: Node, name: str, next_to: dict[int, list[Node]]) -> Node:
    """The operation called ``name`` that reads a node's output."""
    todo = list(next_to[node.index])
    while todo:
        one = todo.pop(0)
        if one.op == name or (name == "act" and one.op in ACTS):
            return one
        todo += next_to[one.index] if not one.op else []
    raise AssertionError(f"nothing called {name} reads node {node.index}")


def bias_cancellation(state: str, padding: str = "zeros", seed: int = 0, std: float = 3.0) -> dict[str, float]:
    """Random biases (of this ``std``) at a convolution right before batch norm, in double precision.

    ``state``: "training" (statistics of the batch); "frozen" (training goes on, statistics stay those of before); "evaluation" (the same
    for inference); "evaluation, absorbed": the norm's own shift changed to make up for the bias.  ``padding``: "zeros" or "circular".
    ``output_change``: largest |difference| of the outputs (their standard deviation is near 1); ``gradient_ratio``: norm of the loss
    gradient by the bias over that by the weights, where the loss is a random linear function of the output's ReLU.
    """
    choose("state", state, STATES)
    choose("padding", padding, ("zeros", "circular"))
    torch.manual_seed(seed)
    conv: Any = nn.Conv2d(8, 16, 3, padding=1, padding_mode=padding).double()  # type: ignore[arg-type]
    norm: Any = nn.BatchNorm2d(16).double()
    with torch.no_grad():
        conv.bias.zero_()
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_()
    x, g = torch.randn(16, 8, 12, 12, dtype=torch.float64), torch.randn(16, 16, 12, 12, dtype=torch.float64)
    norm.momentum = 1.0
    norm(conv(x))  # running statistics: those of this batch
    norm.momentum = 0.0
    norm.train(state == "training")
    before = norm(conv(x)).detach()
    shift = std * torch.randn(16, dtype=torch.float64)
    with torch.no_grad():
        conv.bias.copy_(shift)
        if state == "evaluation, absorbed":
            norm.bias -= norm.weight * shift / (norm.running_var + norm.eps).sqrt()
    after = norm(conv(x))
    by_bias, by_weight = torch.autograd.grad((after.relu() * g).sum(), [conv.bias, conv.weight])
    return {"output_change": float((after.detach() - before).abs().max()), "gradient_ratio": float(by_bias.norm() / by_weight.norm())}


def shifted(cfg: ChainConfig, front: str, final: str, x: Tensor) -> dict[str, float]:
    """A conv-norm-act chain against act-conv-norm with the same weights, in training mode and double precision.

    ``front``, ``final``: of the shifted chain ("conv-norm": the first convolution and its norm stand alone in front; "act": the last
    activation is put back).  ``difference``: largest |difference| of the logits for images ``x``, over the logits' standard deviation.
    """
    one = build(cfg).double().train()
    two = build(replace(cfg, order="act-conv-norm", front=front, final=final)).double().train()
    with torch.no_grad():
        for here, there in zip(two.parameters(), one.parameters(), strict=True):
            here.copy_(there)
        a, b = one(x.double()), two(x.double())
    return {"difference": float((a - b).abs().max() / a.std())}


@torch.no_grad()
def channels(model: nn.Module, x: Tensor, train: bool) -> dict[str, np.ndarray]:
    """Mean and standard deviation of every channel behind every batch norm, for images ``x`` as one batch: arrays (all channels,).

    ``before_mean, before_std``: normalised, before the learned scale and shift; ``mean, std``: the norm's output.
    ``train``: statistics of the batch, else the running ones.  Works on a copy.
    """
    twin = copy.deepcopy(model).train(train)
    norms: dict[str, Any] = {name: m for name, m in twin.named_modules() if isinstance(m, nn.BatchNorm2d)}
    stored = {name: (None, None) if train else (m.running_mean.clone(), m.running_var.clone()) for name, m in norms.items()}
    with inputs(norms) as seen, outputs(norms) as made:
        twin(x)
    parts: dict[str, list[Tensor]] = {name: [] for name in ("before_mean", "before_std", "mean", "std")}
    for name, m in norms.items():
        mean, var = stored[name]
        plain = F.batch_norm(seen[name], mean, var, training=train, eps=m.eps)
        for prefix, values in (("before_", plain.double()), ("", made[name].double())):
            parts[f"{prefix}mean"].append(values.mean((0, 2, 3)).cpu())
            parts[f"{prefix}std"].append(values.std((0, 2, 3), correction=0).cpu())
    return {name: torch.cat(found).numpy() for name, found in parts.items()}


def normal_share(mean: np.ndarray, std: np.ndarray, tolerance: float = 0.01) -> dict[str, float]:
    """``share`` of channels with |mean| and |std - 1| below the tolerance; the worst of each, and the median ones."""
    off = np.abs(std - 1)
    fit = (np.abs(mean) < tolerance) & (off < tolerance)
    return {
        "share": float(fit.mean()), "worst_mean": float(np.abs(mean).max()), "worst_std": float(off.max()),
        "median_mean": float(np.median(np.abs(mean))), "median_std": float(np.median(off)),
    }  # fmt: skip
