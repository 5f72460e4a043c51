"""What a forward pass costs, without running it: parameters, MACs, activations, by layer, type and resolution.

The MACs are counted by torch's own ``FlopCounterMode`` on the meta device (no numbers are computed); this file
only attributes them to layers.  1 MAC = 2 FLOPs, everywhere in this book.  A layer is a convolution or a linear
layer; elementwise and pooling operations are counted apart, as they are in no published MAC count.
"""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cnnstudy.config import Refused
from cnnstudy.models import build

# Elementary operations per output element: comparison, addition, multiplication, division, exponential one each.
ELEMENTARY = {
    "relu": 1,  # max(x, 0)
    "hardtanh": 2,  # ReLU6: min(max(x, 0), 6)
    "hardsigmoid": 4,  # min(max(x + 3, 0), 6) / 6
    "hardswish": 5,  # x * hardsigmoid(x)
    "sigmoid": 4,  # 1 / (1 + exp(-x))
    "silu": 5,  # x * sigmoid(x)
    "tanh": 5,  # (exp(2x) - 1) / (exp(2x) + 1)
    "gelu": 5,  # x / 2 * (1 + erf(x / sqrt 2))
    "native_batch_norm": 2,  # folded: one scale, one shift
}  # other elementwise operations: 1
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
PROJECTIONS = {"downsample", "shortcut"}  # timm's and our names of a shortcut that has weights


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer; ``macs`` and ``activations`` (output elements) are per image.

    ``type``: "3x3", "1x1", "7x7", ..., "depthwise", "grouped", "fc", or "gate" (a layer of a squeeze-excite gate);
    ``size``: height of its output map (1: a vector); ``main``: on the main path, neither gate nor projection shortcut.
    """

    name: str
    stage: str
    type: str
    size: int
    channels: int
    macs: int
    activations: int
    params: int
    main: bool


def _same_shape(op: str, args: Any) -> Any:
    """The result on the meta device of an operation that keeps its input's shape, or None if ``op`` is another one.

    torch takes up to 10 ms for each of these, in Python, to find a shape that is known.  They hold no MACs.
    """
    x = args[0]
    if op == "native_batch_norm":
        return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    if op.rstrip("_") in ("add", "mul"):
        if not isinstance(args[1], Tensor) or (args[1].shape, args[1].dtype) != (x.shape, x.dtype):
            return None
    elif op.rstrip("_") not in ELEMENTARY:
        return None
    return x if op.endswith("_") else torch.empty_like(x)


class _Watch(TorchDispatchMode):
    """Writes down each layer's map sizes, counts elementwise operations, follows how many bytes are alive."""

    def __init__(self, parents: set[str]) -> None:
        super().__init__()
        self.parents = parents  # names of the modules being executed, kept by FlopCounterMode
        self.calls: dict[str, tuple[int, int, int, int]] = {}  # name -> sizes in and out, channels, output elements
        self.elementwise: dict[str, int] = {}
        self.alive = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = func.overloadpacket.__name__
        out = _same_shape(op, args) if args and isinstance(args[0], Tensor) and args[0].is_meta else None
        if out is None:
            out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple | list) else out
        if not isinstance(first, Tensor) or func.is_view:
            return out
        if op in ("convolution", "addmm", "mm"):
            given = args[1] if op == "addmm" else args[0]
            size_in, size = (t.shape[2] if t.dim() == 4 else 1 for t in (given, first))
            name = max(self.parents, key=len)
            seen = self.calls[name][3] if name in self.calls else 0  # a module may be called more than once
            self.calls[name] = (size_in, size, first.shape[1], seen + first.numel())
        else:
            self._count(op.rstrip("_"), func, args, first)
        if not any(first is a for a in args):  # in place: no new memory
            self.hold(first)
        return out

    def hold(self, tensor: Tensor) -> None:
        """Count ``tensor`` as alive until it is collected."""
        size = tensor.numel() * tensor.element_size()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(tensor, self._free, size).atexit = False

    def _free(self, size: int) -> None:
        self.alive -= size

    def _count(self, op: str, func: Any, args: Any, out: Tensor) -> None:
        if op.startswith("max_pool2d"):
            count = out.numel() * math.prod(args[1])
        elif op in ("mean", "sum", "_adaptive_avg_pool2d", "avg_pool2d"):
            count = args[0].numel()
        elif op in ELEMENTARY or torch.Tag.pointwise in func.tags:
            count = out.numel() * ELEMENTARY.get(op, 1)
        else:
            return
        self.elementwise[op] = self.elementwise.get(op, 0) + count


def _shadow(model: nn.Module, device: str, dtype: torch.dtype) -> nn.Module:
    """A copy of ``model`` on ``device`` in evaluation mode, made without copying its weights first."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, dtype if tensor.is_floating_point() else tensor.dtype)

    memo: dict[int, Any] = {id(p): nn.Parameter(move(p), p.requires_grad) for p in model.parameters()}
    memo |= {id(b): move(b) for b in model.buffers()}
    return copy.deepcopy(model, memo).eval()


def _stage(name: str) -> str:
    """The part of the network that a layer belongs to: the first component of its name, or two ("stages.0")."""
    parts = name.split(".")
    deep = parts[0] in ("blocks", "stages") or (parts[0] == "features" and not parts[1].isdigit())
    return ".".join(parts[:2]) if deep else parts[0]


def _type(module: Any, size_in: int, size: int) -> str:
    if isinstance(module, nn.Linear):
        return "fc"
    if size == 1 and module.kernel_size[0] == size_in:
        return "fc"  # a convolution whose kernel covers its whole input is a fully connected layer
    if module.groups > 1:
        return "depthwise" if module.groups == module.in_channels else "grouped"
    return "x".join(str(k) for k in module.kernel_size)


def _layers(modules: Mapping[str, nn.Module], calls: Mapping[str, tuple[int, ...]], macs: Mapping[str, int], batch: int) -> list[Layer]:
    """The layers in the order of their first execution."""
    layers = []
    for name, (size_in, size, channels, activations) in calls.items():
        module = modules[name]
        layers.append(
            Layer(
                name=name,
                stage=_stage(name),
                type=_type(module, size_in, size),
                size=size,
                channels=channels,
                macs=macs[name] // batch,
                activations=activations // batch,
                params=sum(p.numel() for p in module.parameters() if p.requires_grad),
                main=not (PROJECTIONS & set(name.split(".")) and getattr(module, "kernel_size", ()) == (1, 1)),
            )
        )
    # A fully connected layer that a layer on a map still follows stands in a gate, not at the network's end.
    last_map = max((i for i, layer in enumerate(layers) if layer.type != "fc"), default=-1)
    return [replace(layer, type="gate", main=False) if layer.type == "fc" and i < last_map else layer for i, layer in enumerate(layers)]


def total(layers: Iterable[Mapping[str, Any]], by: str, what: str = "macs") -> dict[Any, int]:
    """Sum of ``what`` ("macs", "params", "activations") over layers with equal ``by`` ("type", "stage", ...)."""
    sums: dict[Any, int] = {}
    for layer in layers:
        sums[layer[by]] = sums.get(layer[by], 0) + layer[what]
    return sums


def cost(model: Any, resolution: int, batch: int = 1, device: str = "meta", dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Costs of one forward pass of ``model`` (a network, or a config) on ``resolution`` x ``resolution`` images.

    Evaluation mode; every count is per image, whatever the ``batch``.  Returns

    - ``params`` (trainable), ``macs``, ``flops`` (2 macs);
    - ``activations``: output elements of convolutions and linear layers (Radosavovic et al. 2020, arXiv:2003.13678);
      ``peak_bytes``: most bytes of activations alive at once, input included, for the whole batch in ``dtype``;
    - ``weighted_layers`` (on the main path, He et al.'s way of counting), ``weighted_layers_all`` (with projection
      shortcuts and gates), ``weighted_layers_and_norms``;
    - ``elementwise``: elementary operations outside those layers, as ``ELEMENTARY`` counts them, and
      ``elementwise_by_op``; ``operations``: flops + elementwise;
    - ``layers``: list of dicts, see :class:`Layer`, and sums of it: ``macs_by_type``, ``macs_by_stage``,
      ``macs_by_size``, ``macs_by_channels``, ``params_by_type``, ``params_by_stage``, ``activations_by_stage``.

    ``model`` is left as it was found.  Raises Refused for a network that can't take such images.
    """
    if resolution < 1 or batch < 1:
        raise Refused(f"resolution {resolution} and batch {batch} must be at least 1")
    if isinstance(model, nn.Module):
        net = _shadow(model, device, dtype)
    else:
        with torch.device(device):
            net = build(model).to(dtype).eval()
    x = torch.zeros(batch, 3, resolution, resolution, device=device, dtype=dtype)
    counter = FlopCounterMode(display=False)
    watch = _Watch(counter.mod_tracker.parents)
    watch.hold(x)
    try:
        with torch.no_grad(), counter, watch:
            net(x)
    except RuntimeError as error:
        line = str(error).strip().splitlines()[0]
        raise Refused(f"{type(net).__name__} can't take images of {resolution} x {resolution}: {line}") from error
    root = type(net).__name__ + "."  # FlopCounterMode's names start with it: "ResNet.layer1.0.conv1"
    modules = {name: module for name, module in net.named_modules() if isinstance(module, LAYERS)}
    calls = {name.removeprefix(root): call for name, call in watch.calls.items()}
    calls = {name: call for name, call in calls.items() if name in modules}
    macs = {name.removeprefix(root): sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    flops = counter.get_total_flops() // batch
    layers = [asdict(layer) for layer in _layers(modules, calls, macs, batch)]
    elementwise = {op: count // batch for op, count in watch.elementwise.items()}
    norms = sum(isinstance(module, NORMS) for module in net.modules())
    return {
        "params": sum(p.numel() for p in net.parameters() if p.requires_grad),
        "macs": flops // 2,
        "flops": flops,
        "activations": sum(layer["activations"] for layer in layers),
        "peak_bytes": watch.peak,
        "weighted_layers": sum(layer["main"] for layer in layers),
        "weighted_layers_all": len(layers),
        "weighted_layers_and_norms": len(layers) + norms,
        "elementwise": sum(elementwise.values()),
        "elementwise_by_op": elementwise,
        "operations": flops + sum(elementwise.values()),
        "layers": layers,
        "macs_by_type": total(layers, "type"),
        "macs_by_stage": total(layers, "stage"),
        "macs_by_size": total(layers, "size"),
        "macs_by_channels": total(layers, "channels"),
        "params_by_type": total(layers, "type", "params"),
        "params_by_stage": total(layers, "stage", "params"),
        "activations_by_stage": total(layers, "stage", "activations"),
    }
