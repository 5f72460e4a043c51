"""Which operation feeds which: a network's wiring as it is executed, and its residual blocks in terms of it.

One forward pass is watched below autograd, so that what counts is what runs: an activation that is never called does not appear,
one inside a function does.  A block is a module in which two activations of one shape are added.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker
from torch.utils.weak import WeakTensorKeyDictionary

from cnnstudy.config import Refused
from cnnstudy.probes.tape import images, network

NAMES = {
    "convolution": "conv", "addmm": "linear", "mm": "linear", "constant_pad_nd": "pad", "sub": "shift", "div": "scale",
    "max_pool2d_with_indices": "pool", "avg_pool2d": "pool", "_adaptive_avg_pool2d": "pool", "hardtanh": "relu6",
}  # fmt: skip
NOTHING = ("clone", "_to_copy", "detach", "alias", "_unsafe_view")


@dataclass(frozen=True)
class Node:
    """One operation: ``op`` ("conv", "norm", "relu", "add", ..., "" for what changes no value), executed in ``module``.

    ``inputs``: the nodes that it reads; weights are left out.  ``shape``: of its (first) output.  Node 0 is the network's input.
    """

    index: int
    op: str
    module: str
    inputs: tuple[int, ...]
    shape: tuple[int, ...]


class _Watcher(TorchDispatchMode):
    def __init__(self, tracker: ModuleTracker, root: str, x: Tensor, keep: Collection[int]) -> None:
        super().__init__()
        self.tracker, self.root, self.keep = tracker, root, keep
        self.nodes = [Node(0, "input", "", (), tuple(x.shape))]
        self.of: Any = WeakTensorKeyDictionary()  # tensor -> its node; an operation in place gives it a new one
        self.of[x] = 0
        self.values: dict[int, Tensor] = {0: x} if 0 in keep else {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = [t for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor)]
        inputs = tuple(dict.fromkeys(self.of[t] for t in read if t in self.of))
        sizes = {t.numel() for t in read}
        out = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not inputs or not made:
            return out
        module = max(self.tracker.parents - {"Global"}, key=len, default=self.root).removeprefix(self.root).removeprefix(".")
        op = _named(func, len(inputs), made[0].numel() in sizes)
        node = Node(len(self.nodes), op, module, inputs, tuple(made[0].shape))
        self.nodes.append(node)
        for tensor in made:
            self.of[tensor] = node.index
        if node.index in self.keep:
            self.values[node.index] = made[0].clone()
        return out


def _named(func: Any, inputs: int, same_size: bool) -> str:
    name = func.overloadpacket.__name__.rstrip("_")
    if func.is_view or name in NOTHING:
        return "" if same_size else "subsample"
    if "_norm" in name:
        return "norm"
    if name in ("add", "mul"):
        return {("add", 1): "shift", ("mul", 1): "scale", ("mul", 2): "gate"}.get((name, inputs), name)
    return NAMES.get(name, name)


def trace(net: nn.Module, x: Tensor, keep: Collection[int] = ()) -> tuple[list[Node], dict[int, Tensor]]:
    """The operations of ``net(x)`` in the order of execution, and copies of the outputs of the nodes in ``keep``.

    ``net`` runs as it is, in its mode, without gradients.
    """
    with torch.no_grad(), ModuleTracker() as tracker:
        watcher = _Watcher(tracker, type(net).__name__, x, keep)
        with watcher:
            net(x)
    return watcher.nodes, watcher.values


@dataclass(frozen=True)
class Wired:
    """A residual block: ``branch`` and ``shortcut`` are the longest and the shortest way from its input to the sum, ``after`` what comes
    between the sum and its output, ``between`` what comes from there to the next block's input (the last block: to the classifier).

    ``enter``, ``ends`` (branch, shortcut), ``total``, ``leave``: the nodes whose outputs are the input x, the two that are added, their
    sum, and the block's output.  ``stage`` counts from 1 and changes with the sum's shape.
    """

    name: str
    stage: int
    enter: Node
    ends: tuple[Node, Node]
    total: Node
    leave: Node
    branch: list[Node]
    shortcut: list[Node]
    after: list[Node]
    between: list[Node]

    @property
    def identity(self) -> bool:
        """The shortcut is the input itself."""
        return self.ends[1].index == self.enter.index or not self.shortcut


def way(nodes: list[Node], start: int, end: int, longest: bool, allowed: Collection[int] | None = None) -> list[Node] | None:
    """Operations on the longest (or shortest) way from ``start`` (left out) to ``end`` through ``allowed`` nodes, None if there is none."""
    best: dict[int, list[Node]] = {start: []}
    for node in nodes[start + 1 : end + 1]:
        if allowed is not None and node.index not in allowed:
            continue
        found = [best[i] for i in node.inputs if i in best]
        if found:
            chosen = (max if longest else min)(found, key=len)
            best[node.index] = [*chosen, node] if node.op else chosen
    return best.get(end)


def blocks(nodes: list[Node]) -> tuple[list[Wired], list[Node]]:
    """The residual blocks from input to output, and the operations before the first one.  Raises Refused where there is none."""
    sums = [n for n in nodes if n.op == "add" and len(n.inputs) == 2 and {nodes[i].shape for i in n.inputs} == {n.shape}]
    if not sums:
        raise Refused("nothing is added in this network: it has no residual blocks")
    parts = [_inside(nodes, node) for node in sums]
    after = [n for n in nodes if n.index > parts[-1][1] and n.op in ("linear", "conv")]  # a classifier may be a 1x1 on averaged maps
    last = after[-1].inputs[0] if after else nodes[-1].index
    goals = [enter for enter, _, _ in parts[1:]] + [last]
    found: list[Wired] = []
    stage, shape = 0, None
    for node, (enter, leave, inside), goal in zip(sums, parts, goals, strict=True):
        stage, shape = stage + (node.shape[1:] != shape), node.shape[1:]
        ends = sorted(node.inputs, key=lambda i: len(way(nodes, enter, i, True, inside) or []), reverse=True)
        between = way(nodes, leave, goal, True)
        if between is None:
            raise Refused(f"the output of block {node.module!r} does not reach the next block")
        branch, shortcut = way(nodes, enter, ends[0], True, inside), way(nodes, enter, ends[1], False, inside)
        found.append(Wired(
            node.module, stage, nodes[enter], (nodes[ends[0]], nodes[ends[1]]), node, nodes[leave],
            branch or [], shortcut or [], way(nodes, node.index, leave, True, inside) or [], between,
        ))  # fmt: skip
    return found, way(nodes, 0, parts[0][0], True) or []


def _inside(nodes: list[Node], total: Node) -> tuple[int, int, set[int]]:
    """Of the module in which ``total`` is added: the node that enters, the one that leaves, and all of its nodes."""
    inside = {n.index for n in nodes if n.module == total.module or n.module.startswith(total.module + ".")}
    enter = {i for n in nodes if n.index in inside for i in n.inputs if i not in inside}
    if not total.module or len(enter) != 1:
        raise Refused(f"a sum in {total.module or 'the network itself'!r} belongs to no block with one input")
    reached = {total.index}
    for node in nodes[total.index + 1 :]:
        if node.index in inside and reached.intersection(node.inputs):
            reached.add(node.index)
    return enter.pop(), max(reached), inside


def wired(model: Any, resolution: int = 32) -> tuple[list[Wired], list[Node]]:
    """:func:`blocks` of a network or a config, in evaluation mode, on the meta device; the network stays as it is."""
    net = network(model, "meta", training=False)
    return blocks(trace(net, _blank(net, resolution))[0])


def _blank(net: nn.Module, resolution: int) -> Tensor:
    """One image of zeros on the meta device, in the precision of the weights."""
    return images(net, resolution, 1, "meta").to(next(net.parameters()).dtype)


@dataclass(frozen=True)
class Sum:
    """The tensors of one block, for the images of a batch: input ``x``, what is added, the ``total``, the block's output ``y``."""

    block: str
    stage: int
    identity: bool
    x: Tensor
    branch: Tensor
    shortcut: Tensor
    total: Tensor
    y: Tensor


def sums(model: nn.Module, x: Tensor) -> list[Sum]:
    """The tensors of every residual block in evaluation mode, from input to output.  Works on a copy of ``model``."""
    net = copy.deepcopy(model).eval()
    found, _ = blocks(trace(net, x[:1])[0])
    keep = {n.index for b in found for n in (b.enter, *b.ends, b.total, b.leave)}
    _, value = trace(net, x, keep)
    return [
        Sum(b.name, b.stage, b.identity, *(value[n.index] for n in (b.enter, *b.ends, b.total, b.leave)))
        for b in found
    ]  # fmt: skip
