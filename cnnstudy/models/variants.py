"""The CIFAR ResNet with its parts moved about: other orders of convolution, norm and activation, operations on the shortcut.

The orders and the shortcuts of He et al. 2016 ("Identity Mappings in Deep Residual Networks", arXiv:1603.05027, figures 2 and 4)
and the two that put batch norm after the activation.  Widths, strides and the meaning of "A" and "B" are those of
:class:`cnnstudy.models.resnet.ResNetConfig`; its original and pre-activation networks are two rows of the table here, with the same
names of weights and, for the same seed, the same weights.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import ACT, BRANCH_INIT, NORM, SHORTCUT, WEIGHT_INIT, conv, scale_branch, shortcut
from cnnstudy.models.pooled import Pooled


@dataclass(frozen=True)
class Order:
    """Operations by name ("conv norm act"): of a branch, after the sum, before the head, and of the stem.

    ``bare``: the stem without a plain convolution in front, so that its first operation meets the image; "": there is no such stem.
    """

    branch: str
    after: str = ""
    final: str = ""
    stem: str = "conv norm act"
    bare: str = ""


ORDERS: dict[str, Order] = {
    "conv-norm-act": Order("conv norm act conv norm", after="act"),  # the original: the branch's last activation comes after the sum
    "norm-act-conv": Order("norm act conv norm act conv", final="norm act", stem="conv", bare="norm act conv"),  # pre-activation
    "conv-act-norm": Order("conv act norm conv act norm", stem="conv act norm"),
    "act-conv-norm": Order("act conv norm act conv norm", final="act", stem="conv norm", bare="act conv norm"),  # ReLU-only pre-activation
    "conv-norm-act-inside": Order("conv norm act conv norm act"),  # figure 4c: the last activation on the branch, nothing after the sum
    "norm-after-sum": Order("conv norm act conv", after="norm act"),  # figure 4b
}


class Half(nn.Module):
    """Half of the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.5


# What is put on every shortcut that would be the identity: (channels, norm) -> module.
ON_SHORTCUT: dict[str, Callable[[int, str], nn.Module]] = {
    "identity": lambda channels, norm: nn.Identity(),
    "norm": lambda channels, norm: NORM[norm](channels),
    "relu": lambda channels, norm: nn.ReLU(),
    "half": lambda channels, norm: Half(),
    "conv": lambda channels, norm: conv(channels, channels, 1),
}


@dataclass(frozen=True)
class VariantConfig:
    """A network of ``depth`` = 6n + 2 weighted layers.

    ``order``: a name in ORDERS; ``on_shortcut``: what stands on each shortcut that would be the identity (a name in ON_SHORTCUT);
    ``shortcut``: "A" or "B" where shapes change; ``skip=False``: no shortcuts at all.  ``bias``: the convolutions on the main path have
    biases, zero at first (without norms they always do).  ``init``: as in ResNetConfig.  ``plain_stem=False``: no plain convolution in
    front of an order that begins with a norm or an activation.
    """

    depth: int = 20
    width: int = 16
    order: str = "conv-norm-act"
    on_shortcut: str = "identity"
    shortcut: str = "A"
    skip: bool = True
    norm: str = "batch"
    act: str = "relu"
    bias: bool = False
    init: str = "he"
    plain_stem: bool = True
    classes: int = 10

    def __post_init__(self) -> None:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise Refused(f"depth {self.depth} is not a CIFAR ResNet's; valid: 6n + 2 (8, 14, 20, 32, 56, 110, ...)")
        if self.width < 1 or self.classes < 1:
            raise Refused(f"width {self.width} and classes {self.classes} must be at least 1")
        for name, valid in (("order", ORDERS), ("on_shortcut", ON_SHORTCUT), ("shortcut", SHORTCUT), ("norm", NORM), ("act", ACT)):
            choose(name, getattr(self, name), valid)
        choose("init", self.init, [*WEIGHT_INIT, *BRANCH_INIT])
        if not self.skip and (self.on_shortcut != "identity" or self.init in BRANCH_INIT):
            raise Refused("skip is false: there is no shortcut to put an operation on, and no branch to scale; valid: identity, he, ...")
        if self.norm == "none" and self.on_shortcut == "norm":
            raise Refused("on_shortcut 'norm' needs norm 'batch'")
        if not self.plain_stem and not ORDERS[self.order].bare:
            fit = ", ".join(name for name, order in ORDERS.items() if order.bare)
            raise Refused(f"plain_stem false: order {self.order!r} begins with a convolution anyway; valid: {fit}")


class Block(nn.Module):
    """``out(branch(x) + shortcut(x))``, or ``out(branch(x))`` without skip: (N, c_in, H, W) -> (N, c_out, H / stride, W / stride).

    Of the two convolutions the first one has the stride.
    """

    def __init__(self, cfg: VariantConfig, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        order = ORDERS[cfg.order]
        self.branch = sequence(order.branch, cfg, c_in, c_out, stride)
        self.shortcut: nn.Module | None = None
        if cfg.skip:
            self.shortcut = shortcut(cfg.shortcut, c_in, c_out, stride, cfg.norm)
            if isinstance(self.shortcut, nn.Identity):
                self.shortcut = ON_SHORTCUT[cfg.on_shortcut](c_in, cfg.norm)
        self.out: nn.Module = sequence(order.after, cfg, c_out, c_out) if order.after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return self.out(y if self.shortcut is None else y + self.shortcut(x))


def sequence(operations: str, cfg: VariantConfig, c_in: int, c_out: int, stride: int = 1) -> nn.Sequential:
    """The operations as modules conv1, norm1, act1, conv2, ...: 3x3, the first one from ``c_in`` to ``c_out`` channels with ``stride``."""
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    seen: Counter[str] = Counter()
    channels = c_in
    for name in operations.split():
        seen[name] += 1
        if name == "conv":
            part: nn.Module = conv(channels, c_out, 3, stride, bias=cfg.norm == "none")
            channels, stride = c_out, 1
        else:
            part = NORM[cfg.norm](channels) if name == "norm" else ACT[cfg.act]()
        parts[f"{name}{seen[name]}"] = part
    return nn.Sequential(parts)


class Variant(Pooled):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 4 width)."""

    def __init__(self, cfg: VariantConfig) -> None:
        super().__init__()
        order, w, n = ORDERS[cfg.order], cfg.width, (cfg.depth - 2) // 6
        stem = sequence(order.stem if cfg.plain_stem else order.bare, cfg, 3, w)
        self.stem = nn.Sequential(OrderedDict((name.rstrip("1"), part) for name, part in stem.named_children()))
        for c_in, c_out, stride in [(w, w, 1), (w, 2 * w, 2), (2 * w, 4 * w, 2)]:
            blocks = [Block(cfg, c_in, c_out, stride)] + [Block(cfg, c_out, c_out, 1) for _ in range(n - 1)]
            self.stages.append(nn.Sequential(*blocks))
        self.final = nn.Sequential(*sequence(order.final, cfg, 4 * w, 4 * w)) if order.final else nn.Identity()
        self.classify(4 * w, cfg.classes, "he" if cfg.init in BRANCH_INIT else cfg.init)
        if cfg.bias:  # added to drawn weights, so that a seed means the same weights with and without
            parts = [self.stem, *(block.branch for block in self.blocks())]
            for layer in [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d)]:
                layer.bias = nn.Parameter(torch.zeros_like(layer.weight[:, 0, 0, 0]))
        if cfg.init in BRANCH_INIT:
            for block in self.blocks():
                scale_branch(block.branch, cfg.init, 3 * n)

    def blocks(self) -> list[Block]:
        """All blocks from input to output."""
        return [module for module in self.stages.modules() if isinstance(module, Block)]

    def maps(self, x: Tensor) -> Tensor:
        """What is averaged: (N, 4 width, h, w)."""
        return self.final(super().maps(x))
