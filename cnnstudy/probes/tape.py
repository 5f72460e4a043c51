"""The tape: every operation of a forward (and backward) pass, with the memory that it takes and that is released after it.

A tensor's memory is its *storage*: views share one, an operation in place takes no new one.  A storage is born in the operation
that allocates it, and dies when nothing refers to it any more: no Python variable, no backward node.  Parameters and
buffers are left out.  On the meta device this takes milliseconds and no memory, and the bytes are those of a real run.
"""

from __future__ import annotations

import copy
import dataclasses
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker
from torch.utils.weak import WeakIdKeyDictionary

from cnnstudy.config import Refused
from cnnstudy.models import build
from cnnstudy.models.zoo import ZooConfig, zoo


@dataclass
class Storage:
    """Memory of one tensor: ``born`` and ``died`` are indices of operations; it is alive while they run, both included.

    ``module``: who made it (dotted name, "" is the network itself); ``op``: with which operation ("input": given);
    ``kind``: "input", "activation", or "gradient" (of a parameter).
    """

    bytes: int
    shape: tuple[int, ...]
    dtype: str
    module: str
    op: str
    born: int
    died: int | None = None
    kind: str = "activation"
    saved: bool = False


@dataclass
class Operation:
    """One operation: the storages that it reads and writes, by their number on the tape."""

    op: str
    module: str
    reads: list[int]
    writes: list[int]


@dataclass
class Tape:
    """What was recorded; ``forward``: number of operations before the backward pass begins (the loss included)."""

    operations: list[Operation] = field(default_factory=list)
    storages: list[Storage] = field(default_factory=list)
    forward: int = 0

    def timeline(self, *kinds: str) -> np.ndarray:
        """Bytes alive while each operation runs (int64, one entry an operation), of storages of ``kinds`` (none: of all)."""
        steps = np.zeros(len(self.operations) + 1, dtype=np.int64)
        for storage in self.storages:
            if not kinds or storage.kind in kinds:
                steps[max(storage.born, 0)] += storage.bytes
                if storage.died is not None:
                    steps[storage.died + 1] -= storage.bytes
        return np.cumsum(steps)[:-1]

    def alive(self, index: int) -> list[Storage]:
        """The storages that are alive while an operation runs, largest first."""
        there = [s for s in self.storages if s.born <= index and (s.died is None or s.died >= index)]
        return sorted(there, key=lambda s: -s.bytes)


class _Tracker(ModuleTracker):
    """torch's own, but it puts no hooks on a block that is recomputed in the backward pass: they would keep its tensors alive."""

    def _fw_pre_hook(self, mod: nn.Module, input: Any) -> None:
        if self.is_bw:
            self.parents.add(self._get_mod_name(mod))
        else:
            super()._fw_pre_hook(mod, input)

    def _fw_post_hook(self, mod: nn.Module, input: Any, output: Any) -> None:
        if self.is_bw:
            self.parents.discard(self._get_mod_name(mod))
        else:
            super()._fw_post_hook(mod, input, output)


class _Recorder(TorchDispatchMode):
    """Writes the tape.  ``tracker`` knows which modules are being executed."""

    def __init__(self, tracker: ModuleTracker, root: str) -> None:
        super().__init__()
        self.tape = Tape()
        self.tracker = tracker
        self.root = root
        self.closed = False  # nothing is recorded any more, deaths included
        self.numbers: Any = WeakIdKeyDictionary()  # storage -> its number; of parameters and buffers None

    def leave_out(self, tensor: Tensor) -> None:
        self.numbers[tensor.untyped_storage()] = None

    def number(self, tensor: Tensor, op: str) -> tuple[int | None, bool]:
        """The number of a tensor's storage on the tape, and whether it is new."""
        storage = tensor.untyped_storage()
        if storage in self.numbers:
            return self.numbers[storage], False
        number = len(self.tape.storages)
        self.numbers[storage] = number
        shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        born = len(self.tape.operations) if op != "input" else -1
        entry = Storage(storage.nbytes(), shape, dtype, self.module(), op, born, kind="input" if op == "input" else "activation")
        self.tape.storages.append(entry)
        weakref.finalize(storage, self._died, entry).atexit = False
        return number, True

    def _died(self, entry: Storage) -> None:
        if not self.closed:
            entry.died = max(len(self.tape.operations) - 1, entry.born)

    def module(self) -> str:
        return max(self.tracker.parents - {"Global"}, key=len, default=self.root).removeprefix(self.root).removeprefix(".")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = func.overloadpacket.__name__
        reads = [self.number(t, op)[0] for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        out = func(*args, **kwargs)
        written = [self.number(t, op) for t in tree_leaves(out) if isinstance(t, Tensor)]
        ours = [number for number, _ in written if number is not None]
        allocates = any(new and number is not None and self.tape.storages[number].bytes for number, new in written)
        if allocates or (ours and func._schema.is_mutable):  # what is left out: views, and updates of running statistics
            self.tape.operations.append(Operation(op, self.module(), [number for number in reads if number is not None], ours))
        return out

    def pack(self, tensor: Tensor) -> Tensor:
        """Called by autograd with each tensor that it saves for the backward pass."""
        number, _ = self.number(tensor, "saved")
        if number is not None:
            self.tape.storages[number].saved = True
        return tensor


def network(model: Any, device: str, training: bool) -> nn.Module:
    """The network of a config (zoo or family) on ``device``; a module is copied there, so that the original stays as it is."""
    if isinstance(model, nn.Module):
        memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to(device), p.requires_grad) for p in model.parameters()}
        memo |= {id(b): b.detach().to(device, copy=True) for b in model.buffers()}
        return copy.deepcopy(model, memo).train(training)
    with torch.device(device):
        net = zoo(model) if isinstance(model, ZooConfig) else build(model)
    return net.to(device).train(training)


@contextmanager
def _recording(net: nn.Module) -> Iterator[_Recorder]:
    with _Tracker() as tracker:
        recorder = _Recorder(tracker, type(net).__name__)
        for tensor in (*net.parameters(), *net.buffers()):
            recorder.leave_out(tensor)
        with recorder:
            yield recorder


def _refusal(net: nn.Module, shape: tuple[int, ...], error: RuntimeError | ValueError) -> Refused:
    line = str(error).strip().splitlines()[0]
    return Refused(f"{type(net).__name__} can't take images of shape {shape}: {line}")


def images(net: nn.Module, resolution: int, batch: int, device: str, channels: int | None = None) -> Tensor:
    """Images of zeros for ``net``: (batch, ``channels``, resolution, resolution); None: as many as its first convolution reads."""
    if resolution < 1 or batch < 1:
        raise Refused(f"resolution {resolution} and batch {batch} must be at least 1")
    channels = channels or next((m.in_channels for m in net.modules() if isinstance(m, nn.Conv2d)), 3)
    return torch.zeros(batch, channels, resolution, resolution, device=device)


def loss_of(out: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (N, classes); of anything else, a part of a network, the mean."""
    return nn.functional.cross_entropy(out, labels) if out.dim() == 2 else out.mean()


def _kept(record: Callable[..., Tape]) -> Callable[..., Tape]:
    """Keep the last tapes of configs on the meta device, which cannot change; those of modules are made anew.  Tapes are read only."""
    cached = lru_cache(maxsize=12)(record)

    @wraps(record)
    def once(model: Any, *args: Any, **kwargs: Any) -> Tape:
        fixed = dataclasses.is_dataclass(model) and "device" not in kwargs
        return cached(model, *args, **kwargs) if fixed else record(model, *args, **kwargs)

    return once


@_kept
def training_tape(model: Any, resolution: int, batch: int = 2, device: str = "meta") -> Tape:
    """One training step without the update: forward pass, cross-entropy (or the output's mean), backward pass.

    Gradients of parameters are None before, as after ``zero_grad(set_to_none=True)``.  Raises Refused for images that don't fit.
    """
    net = network(model, device, training=True)
    x = images(net, resolution, batch, device)
    y = torch.zeros(batch, dtype=torch.long, device=device)
    with _recording(net) as recorder:
        recorder.number(x, "input")
        recorder.leave_out(y)
        try:
            with torch.autograd.graph.saved_tensors_hooks(recorder.pack, lambda saved: saved):
                loss = loss_of(net(x), y)
        except (RuntimeError, ValueError) as error:
            raise _refusal(net, tuple(x.shape), error) from error
        recorder.tape.forward = len(recorder.tape.operations)
        loss.backward()
        for parameter in net.parameters():
            number = None if parameter.grad is None else recorder.number(parameter.grad, "gradient")[0]
            if number is not None:
                recorder.tape.storages[number].kind = "gradient"
        recorder.closed = True
    return recorder.tape


@_kept
def inference_tape(model: Any, resolution: int, batch: int = 1, device: str = "meta", channels: int | None = None) -> Tape:
    """One forward pass in evaluation mode, without gradients.  ``channels`` of the input: see :func:`images`.

    Raises Refused for images that don't fit.
    """
    net = network(model, device, training=False)
    x = images(net, resolution, batch, device, channels)
    with torch.no_grad(), _recording(net) as recorder:
        recorder.number(x, "input")
        try:
            out = net(x)
        except (RuntimeError, ValueError) as error:
            raise _refusal(net, tuple(x.shape), error) from error
        recorder.closed = True
    recorder.tape.forward = len(recorder.tape.operations)
    del out
    return recorder.tape
