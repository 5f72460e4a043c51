"""Blocks by themselves: build one, count it, time it.  What a dense, grouped, depthwise, pointwise or separable convolution, a channel
shuffle, a gate, a residual block really costs, beside what its MACs say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cnnstudy.config import Refused, Setup, choose
from cnnstudy.layers import NORM, SqueezeExcite, conv
from cnnstudy.models.bottleneck import Bottleneck, Paths
from cnnstudy.models.resnet import Block, ResNetConfig
from cnnstudy.models.shuffle import Shuffle
from cnnstudy.probes.tape import inference_tape
from cnnstudy.stopwatch import race, runner

FLOAT = 4  # bytes


@dataclass(frozen=True)
class BlockConfig:
    """A block on maps of ``size`` x ``size`` pixels, (N, channels_in, size, size) -> (N, channels_out, size / stride, size / stride).

    ``op`` (not "kind", which in a record names the config):

    - "dense": one convolution ``kernel`` x ``kernel`` in ``groups`` groups;  "pointwise": the same with a 1x1 kernel;
    - "depthwise": one filter for each channel;  "separable": depthwise, then pointwise (in ``groups`` groups);
    - "stack": ``depth`` dense convolutions one after the other, the first one widening;
    - "shuffle": the channel shuffle with ``groups``, nothing else;  "se": a squeeze-and-excite gate, a quarter as wide;
    - "basic": ResNet's two 3x3 with shortcut;  "bottleneck": 1x1, 3x3 in ``groups`` groups, 1x1 with shortcut, ``inner`` channels inside;
    - "paths": that bottleneck written as ``groups`` separate paths, run one after the other;  "path": one of them, alone.

    ``norm``: batch norm and ReLU after each convolution (the last ReLU of a residual block after its addition).  ``inner`` 0: a
    quarter of ``channels_out``.
    """

    op: str = "dense"
    channels_in: int = 64
    channels_out: int = 64
    kernel: int = 3
    groups: int = 1
    size: int = 56
    stride: int = 1
    depth: int = 1
    inner: int = 0
    norm: bool = False

    def __post_init__(self) -> None:
        choose("block", self.op, OPS)
        for name in ("channels_in", "channels_out", "kernel", "groups", "size", "stride", "depth"):
            if getattr(self, name) < 1:
                raise Refused(f"{name} {getattr(self, name)} of a block must be at least 1")
        if self.kernel % 2 == 0:
            raise Refused(f"kernel {self.kernel} of a block must be odd")
        if self.op in ("depthwise", "shuffle", "se") and self.channels_in != self.channels_out:
            raise Refused(f"a block {self.op!r} has as many channels out as in; got {self.channels_in} and {self.channels_out}")
        both = {self.channels_in, self.channels_out}
        divided = {"dense": both, "pointwise": both, "separable": both, "shuffle": both}.get(self.op, set())
        divided = {self.width} if self.op in ("bottleneck", "paths", "path") else divided
        if any(channels % self.groups for channels in divided):
            raise Refused(f"{self.groups} groups don't divide {' and '.join(map(str, sorted(divided)))} channels of a block {self.op!r}")

    @property
    def width(self) -> int:
        """Channels inside a bottleneck."""
        return self.inner or max(1, self.channels_out // 4)


def _with_norm(cfg: BlockConfig, *convs: nn.Conv2d) -> nn.Module:
    """The convolutions, each followed by batch norm and ReLU where the config says so."""
    parts: list[nn.Module] = []
    for one in convs:
        parts += [one, nn.BatchNorm2d(one.out_channels), nn.ReLU(inplace=True)] if cfg.norm else [one]
    return nn.Sequential(*parts)


def _single(cfg: BlockConfig, kernel: int = 0, groups: int = 0) -> nn.Module:
    one = conv(cfg.channels_in, cfg.channels_out, kernel or cfg.kernel, cfg.stride, groups or cfg.groups)
    return _with_norm(cfg, one)


def _separable(cfg: BlockConfig) -> nn.Module:
    depthwise = conv(cfg.channels_in, cfg.channels_in, cfg.kernel, cfg.stride, cfg.channels_in)
    return _with_norm(cfg, depthwise, conv(cfg.channels_in, cfg.channels_out, 1, groups=cfg.groups))


def _stack(cfg: BlockConfig) -> nn.Module:
    widths = [cfg.channels_in] + cfg.depth * [cfg.channels_out]
    strides = [cfg.stride] + cfg.depth * [1]
    return _with_norm(cfg, *(conv(a, b, cfg.kernel, s) for a, b, s in zip(widths, widths[1:], strides, strict=False)))


def _basic(cfg: BlockConfig) -> nn.Module:
    block = Block(ResNetConfig(shortcut="B"), cfg.channels_in, cfg.channels_out, cfg.stride)
    return block if cfg.norm else _without_norms(block)


def _bottleneck(cfg: BlockConfig) -> Bottleneck:
    norm = "batch" if cfg.norm else "none"
    return Bottleneck(cfg.channels_in, cfg.channels_out, cfg.width, cfg.stride, cfg.groups, norm)


def _without_norms(block: nn.Module) -> nn.Module:
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            block.set_submodule(name, NORM["none"](0))
    return block


def _path(cfg: BlockConfig) -> nn.Module:
    path = Paths(_bottleneck(cfg)).paths[0]
    assert isinstance(path, nn.Module)
    return path


OPS: dict[str, Callable[[BlockConfig], nn.Module]] = {
    "dense": _single,
    "pointwise": partial(_single, kernel=1),
    "depthwise": lambda cfg: _single(cfg, groups=cfg.channels_in),
    "separable": _separable,
    "stack": _stack,
    "shuffle": lambda cfg: Shuffle(cfg.channels_in, cfg.groups),
    "se": lambda cfg: SqueezeExcite(cfg.channels_in, max(1, cfg.channels_in // 4), "relu"),
    "basic": _basic,
    "bottleneck": _bottleneck,
    "paths": lambda cfg: Paths(_bottleneck(cfg)),
    "path": _path,
}


def build(cfg: BlockConfig) -> nn.Module:
    """The block, randomly initialised, in training mode.  Works under ``torch.device("meta")``."""
    return OPS[cfg.op](cfg)


def arithmetic(cfg: BlockConfig, batch: int = 1) -> dict[str, Any]:
    """What a forward pass of the block does, exactly (float32, for the whole batch):

    - ``macs``, ``flops`` (2 macs); ``conv_weights`` and ``params`` (with norms and biases);
    - ``weight_bytes`` (statistics of norms with them); ``bytes``: moved if every operation reads its inputs from memory and writes
      its result there, weights once; ``least_bytes``: if all is done in one pass: weights, the block's input and its output;
    - ``intensity`` = macs / bytes and ``best_intensity`` = macs / least_bytes, in MACs per byte;
    - ``activations``: output elements of its convolutions.
    """
    with torch.device("meta"):
        block = build(cfg).eval()
        x = torch.zeros(batch, cfg.channels_in, cfg.size, cfg.size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        out = block(x)
    tape = inference_tape(block, cfg.size, batch, channels=cfg.channels_in)
    weights = FLOAT * sum(p.numel() for p in (*block.parameters(), *block.buffers()) if p.is_floating_point())
    moved = weights + sum(tape.storages[number].bytes for one in tape.operations for number in (*one.reads, one.writes[0]))
    least = weights + FLOAT * (x.numel() + out.numel())
    convs = [tape.storages[one.writes[0]].shape for one in tape.operations if one.op == "convolution"]
    macs = counter.get_total_flops() // 2
    return {
        "macs": macs,
        "flops": 2 * macs,
        "conv_weights": sum(m.weight.numel() for m in block.modules() if isinstance(m, nn.Conv2d)),
        "params": sum(p.numel() for p in block.parameters()),
        "weight_bytes": weights,
        "bytes": moved,
        "least_bytes": least,
        "intensity": macs / max(moved, 1),  # a shuffle with one group moves nothing
        "best_intensity": macs / least,
        "activations": sum(math.prod(shape) for shape in convs),
    }


def latency(setups: Sequence[Setup], seed: int) -> list[dict[str, Any]]:
    """Experiment "block_latency", hardware, ``together="block"``: blocks timed in turn.

    A setup has ``block``, and ``batch``, ``engine`` (see ``stopwatch.ENGINES``), ``threads`` (0: all cores) and ``runs``, equal in all.
    Returns for each what ``stopwatch.race`` and :func:`arithmetic` return, and ``gmacs_per_second`` and ``gbytes_per_second`` of the
    forward pass (None for a training step).
    """
    one = setups[0]
    makers = {str(i): partial(_ready, setup) for i, setup in enumerate(setups)}
    times = race(makers, threads=one.threads, runs=one.runs, seed=seed, cuda="cuda" in one.engine)
    results = []
    for i, setup in enumerate(setups):
        done, ms = arithmetic(setup.block, one.batch), times[str(i)]["latency_ms"]
        rates = {f"g{name}_per_second": None if "train" in one.engine or not ms else done[name] / ms / 1e6 for name in ("macs", "bytes")}
        results.append({**times[str(i)], **done, **rates})
    return results


def _ready(setup: Setup) -> Any:
    cfg: BlockConfig = setup.block
    x = torch.randn(setup.batch, cfg.channels_in, cfg.size, cfg.size)
    return runner(setup.engine, build(cfg), x.requires_grad_("train" in setup.engine), setup.threads)
