"""The residual network for CIFAR of He et al. 2016 (arXiv:1512.03385, section 4.2) and its plain twin.

Three stages of ``n`` blocks, two 3x3 convolutions each, on maps of 32, 16 and 8 pixels with ``width``,
``2 width`` and ``4 width`` channels: ``6n + 2`` weighted layers.  ``preact`` is the variant of arXiv:1603.05027.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import (
    ACT,
    BRANCH_INIT,
    NORM,
    SHORTCUT,
    WEIGHT_INIT,
    Normalize,
    conv,
    conv3x3,
    init_weights,
    scale_branch,
    shortcut,
)


@dataclass(frozen=True)
class ResNetConfig:
    """A network of ``depth`` = 6n + 2 weighted layers.

    ``skip=False`` is the plain twin: the same layers without shortcuts.  ``shortcut`` says what happens where
    shapes change: "A" (subsample and pad with zeros, no parameters) or "B" (1x1 projection).  ``init``:
    "he", "delta_orthogonal", "normal" or "framework" weights; "zero_branch" or "scaled_branch": He's weights with
    each branch starting at 0 or at 1 / sqrt(number of blocks).  ``separable``: depthwise separable 3x3 in the blocks.
    """

    depth: int = 20
    width: int = 16
    skip: bool = True
    norm: str = "batch"
    act: str = "relu"
    preact: bool = False
    shortcut: str = "A"
    init: str = "he"
    separable: bool = False
    classes: int = 10

    def __post_init__(self) -> None:
        if self.depth < 8 or (self.depth - 2) % 6:
            raise Refused(f"depth {self.depth} is not a CIFAR ResNet's; valid: 6n + 2 (8, 14, 20, 32, 56, 110, ...)")
        if self.width < 1 or self.classes < 1:
            raise Refused(f"width {self.width} and classes {self.classes} must be at least 1")
        choose("norm", self.norm, NORM)
        choose("act", self.act, ACT)
        choose("shortcut", self.shortcut, SHORTCUT)
        choose("init", self.init, [*WEIGHT_INIT, *BRANCH_INIT])
        if self.init in BRANCH_INIT and not self.skip:
            raise Refused(f"init {self.init!r} scales branches, but skip is false; valid: {', '.join(WEIGHT_INIT)}")
        if self.separable and self.norm == "none":
            raise Refused("separable needs norm 'batch': without it He's scale doubles at each depthwise convolution")


class Block(nn.Module):
    """Two 3x3 convolutions (``branch``) beside a ``shortcut``.

    With skip: ``out(branch(x) + shortcut(x))``, without: ``out(branch(x))``.  ``out`` is the activation, or the
    identity in the pre-activation variant.  ``x``: (N, c_in, H, W) -> (N, c_out, H / stride, W / stride).
    """

    def __init__(self, cfg: ResNetConfig, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        first = conv3x3(c_in, c_out, stride, cfg.norm, cfg.separable)
        second = conv3x3(c_out, c_out, 1, cfg.norm, cfg.separable)
        norm, act = NORM[cfg.norm], ACT[cfg.act]
        if cfg.preact:
            parts = [("norm1", norm(c_in)), ("act1", act()), ("conv1", first)]
            parts += [("norm2", norm(c_out)), ("act2", act()), ("conv2", second)]
        else:
            parts = [("conv1", first), ("norm1", norm(c_out)), ("act1", act())]
            parts += [("conv2", second), ("norm2", norm(c_out))]
        self.branch = nn.Sequential(OrderedDict(parts))
        self.shortcut = shortcut(cfg.shortcut, c_in, c_out, stride, cfg.norm) if cfg.skip else None
        self.out = nn.Identity() if cfg.preact else act()

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return self.out(y if self.shortcut is None else y + self.shortcut(x))


class ResNet(nn.Module):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 4 width)."""

    def __init__(self, cfg: ResNetConfig) -> None:
        super().__init__()
        w, n = cfg.width, (cfg.depth - 2) // 6
        norm, act = NORM[cfg.norm], ACT[cfg.act]
        self.normalize = Normalize()
        self.stem = nn.Sequential(OrderedDict(conv=conv(3, w, bias=cfg.norm == "none")))
        if not cfg.preact:
            self.stem.add_module("norm", norm(w))
            self.stem.add_module("act", act())
        self.stages = nn.Sequential()
        for c_in, c_out, stride in [(w, w, 1), (w, 2 * w, 2), (2 * w, 4 * w, 2)]:
            blocks = [Block(cfg, c_in, c_out, stride)] + [Block(cfg, c_out, c_out, 1) for _ in range(n - 1)]
            self.stages.append(nn.Sequential(*blocks))
        # The pre-activation variant leaves the last sum unactivated; its norm and activation come once, here.
        self.final = nn.Sequential(norm(4 * w), act()) if cfg.preact else nn.Identity()
        self.head = nn.Linear(4 * w, cfg.classes)
        nn.init.zeros_(self.head.bias)
        init_weights(self, "he" if cfg.init in BRANCH_INIT else cfg.init)
        if cfg.init in BRANCH_INIT:
            for block in self.blocks():
                scale_branch(block.branch, cfg.init, 3 * n)

    def blocks(self) -> list[Block]:
        """All blocks from input to output."""
        return [module for module in self.stages.modules() if isinstance(module, Block)]

    def features(self, x: Tensor) -> Tensor:
        """Globally averaged maps of the last stage: (N, 4 width)."""
        return self.final(self.stages(self.stem(self.normalize(x)))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
