"""Bottleneck ResNets for 32 x 32, with cardinality (He et al. 2016, arXiv:1512.03385; Xie et al. 2017, arXiv:1611.05431).

Three stages of ``n`` blocks on maps of 32, 16 and 8 pixels; a block is 1x1, 3x3, 1x1, so that ``9n + 2`` layers have
weights.  The middle 3x3 works in ``cardinality`` groups of ``path_width`` channels, "C x d" in the second paper's notation:
``BottleneckConfig(width=64, cardinality=8, path_width=64)`` is its ResNeXt-29 8x64d, cardinality 1 is a plain bottleneck ResNet.
:class:`Paths` writes a block as what it is said to be, separate paths that are added up.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import NORM, SHORTCUT, conv, shortcut
from cnnstudy.models.pooled import Pooled

OUTER = 4  # a block puts out four times the channels that a plain bottleneck has inside: figure 5 of the ResNet paper


@dataclass(frozen=True)
class BottleneckConfig:
    """A network of ``depth`` = 9n + 2 weighted layers, C x d = ``cardinality`` x ``path_width``.

    ``width``: channels of the stem; the stages put out 4, 8 and 16 times as many.  ``path_width``: channels of one path's
    3x3 in the first stage, twice and four times as many in the later ones.  ``shortcut``: as in ResNetConfig; "B" is the papers'.
    """

    depth: int = 29
    width: int = 16
    cardinality: int = 1
    path_width: int = 16
    shortcut: str = "B"
    classes: int = 10

    def __post_init__(self) -> None:
        if self.depth < 11 or (self.depth - 2) % 9:
            raise Refused(f"depth {self.depth} is not a bottleneck ResNet's for 32 x 32; valid: 9n + 2 (11, 20, 29, 38, 56, 101, 164, ...)")
        for name in ("width", "cardinality", "path_width", "classes"):
            if getattr(self, name) < 1:
                raise Refused(f"{name} {getattr(self, name)} must be at least 1")
        choose("shortcut", self.shortcut, SHORTCUT)


class Bottleneck(nn.Module):
    """``branch``: 1x1 to ``inner`` channels, 3x3 in ``groups`` groups, 1x1 to ``c_out``; beside it a shortcut; then ReLU.

    The stride is the 3x3's.  ``norm="none"`` leaves the norms out (and adds no biases).
    ``x``: (N, c_in, H, W) -> (N, c_out, H / stride, W / stride).  Raises Refused if the groups don't divide ``inner``.
    """

    def __init__(
        self, c_in: int, c_out: int, inner: int, stride: int = 1, groups: int = 1, norm: str = "batch", kind: str = "B",
    ) -> None:  # fmt: skip
        super().__init__()
        if groups < 1 or inner % groups:
            raise Refused(f"{groups} groups don't divide {inner} channels; valid: {', '.join(str(g) for g in divisors(inner))}")
        parts: list[tuple[str, nn.Module]] = [("conv1", conv(c_in, inner, 1)), ("norm1", NORM[norm](inner)), ("act1", nn.ReLU())]
        parts += [("conv2", conv(inner, inner, 3, stride, groups)), ("norm2", NORM[norm](inner)), ("act2", nn.ReLU())]
        parts += [("conv3", conv(inner, c_out, 1)), ("norm3", NORM[norm](c_out))]
        self.branch = nn.Sequential(OrderedDict(parts))
        self.shortcut = shortcut(kind, c_in, c_out, stride, norm)
        self.out = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.branch(x) + self.shortcut(x))


def divisors(number: int) -> list[int]:
    """All positive divisors of a small number, in order."""
    return [d for d in range(1, number + 1) if number % d == 0]


class Bottlenecks(Pooled):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 16 width)."""

    def __init__(self, cfg: BottleneckConfig) -> None:
        super().__init__()
        w, n = cfg.width, (cfg.depth - 2) // 9
        self.stem = nn.Sequential(OrderedDict(conv=conv(3, w), norm=NORM["batch"](w), act=nn.ReLU()))
        c_in = w
        for times, first_stride in [(1, 1), (2, 2), (4, 2)]:
            c_out, inner = OUTER * w * times, cfg.cardinality * cfg.path_width * times
            stage = nn.Sequential()
            for stride in [first_stride] + [1] * (n - 1):
                stage.append(Bottleneck(c_in, c_out, inner, stride, cfg.cardinality, kind=cfg.shortcut))
                c_in = c_out
            self.stages.append(stage)
        self.classify(c_in, cfg.classes)

    def blocks(self) -> list[Bottleneck]:
        """All blocks from input to output."""
        return [module for module in self.stages.modules() if isinstance(module, Bottleneck)]


class Paths(nn.Module):
    """``block`` written as separate paths, one for each group of its 3x3, with copies of its weights (arXiv:1611.05431, figure 3).

    Each path is 1x1, 3x3, 1x1 and the paths' outputs are added up (figure 3a); with ``concatenate`` the paths end after
    the 3x3, are put side by side, and one 1x1 follows (3b).  Both compute what ``block`` computes (3c).
    """

    def __init__(self, block: Bottleneck, concatenate: bool = False) -> None:
        super().__init__()
        parts: Any = block.branch
        groups = parts.conv2.groups
        each = parts.conv2.out_channels // groups
        self.paths = nn.ModuleList()
        for own in (slice(i * each, (i + 1) * each) for i in range(groups)):
            first, middle = _part_of(parts.conv1, outputs=own), _part_of(parts.conv2, outputs=own)
            path = nn.Sequential(first, _norm_of(parts.norm1, own), nn.ReLU(), middle, _norm_of(parts.norm2, own), nn.ReLU())
            if not concatenate:
                path.append(_part_of(parts.conv3, inputs=own))
            self.paths.append(path)
        self.last = copy.deepcopy(parts.conv3) if concatenate else None
        self.norm: nn.Module = copy.deepcopy(parts.norm3)
        self.shortcut = copy.deepcopy(block.shortcut)
        self.out = nn.ReLU()

    def merged(self, x: Tensor) -> Tensor:
        """The branch before its last norm: the sum of the paths, or the 1x1 of their concatenation."""
        made = [path(x) for path in self.paths]
        return torch.stack(made).sum(0) if self.last is None else self.last(torch.cat(made, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.merged(x)) + self.shortcut(x))


def _part_of(whole: nn.Conv2d, outputs: slice = slice(None), inputs: slice = slice(None)) -> nn.Conv2d:
    """A dense convolution with some of the weights of ``whole``: rows ``outputs``, columns ``inputs``."""
    weight = whole.weight.detach()[outputs, inputs].clone()
    part = nn.Conv2d(weight.shape[1], weight.shape[0], whole.kernel_size, whole.stride, whole.padding, bias=False)  # type: ignore[arg-type]
    part.weight = nn.Parameter(weight)
    return part


def _norm_of(whole: nn.Module, own: slice) -> nn.Module:
    """The batch norm of the channels in ``own``."""
    part = copy.deepcopy(whole)
    if isinstance(part, nn.BatchNorm2d):
        for name in ("weight", "bias"):
            setattr(part, name, nn.Parameter(getattr(part, name).detach()[own].clone()))
        for name in ("running_mean", "running_var"):
            setattr(part, name, getattr(part, name)[own].clone())
        part.num_features = len(part.weight)
    return part
