"""Wide ResNets for 32 x 32 (Zagoruyko & Komodakis 2016, arXiv:1605.07146), WRN-d-k, and their thin relatives.

Pre-activation networks (He et al. 2016, arXiv:1603.05027): three stages on maps of 32, 16 and 8 pixels whose 3x3 layers
have 16 k, 32 k and 64 k channels; the stem has 16 whatever ``k``.  ``WideConfig(28, 10)`` is WRN-28-10.  With ``bottleneck``
the blocks are 1x1, 3x3, 1x1 of four times the outer channels: ``WideConfig(164, 1, bottleneck=True)`` is ResNet-164.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.layers import conv
from cnnstudy.models.pooled import Pooled

STEM, CHANNELS = 16, (16, 32, 64)


@dataclass(frozen=True)
class WideConfig:
    """WRN-``depth``-``k``: ``depth`` = 6n + 4 as the paper counts (a projection in each stage included).

    With ``bottleneck`` ``depth`` = 9n + 2, counted as in arXiv:1603.05027.
    """

    depth: int = 16
    k: int = 2
    bottleneck: bool = False
    classes: int = 10

    def __post_init__(self) -> None:
        per_block, rest = (9, 2) if self.bottleneck else (6, 4)
        if self.depth < per_block + rest or (self.depth - rest) % per_block:
            some = ", ".join(str(per_block * n + rest) for n in ((1, 2, 11, 18, 111) if self.bottleneck else (1, 2, 3, 4, 6)))
            what = "bottleneck" if self.bottleneck else "wide"
            raise Refused(f"depth {self.depth} is not a {what} pre-activation ResNet's; valid: {per_block}n + {rest} ({some}, ...)")
        if self.k < 1 or self.classes < 1:
            raise Refused(f"k {self.k} and classes {self.classes} must be at least 1")


class PreactBlock(nn.Module):
    """``branch(before(x)) + shortcut``: ``before`` is norm and ReLU; the shortcut is x, or a bare 1x1 of ``before(x)``.

    ``x``: (N, c_in, H, W) -> (N, c_out, H / stride, W / stride).
    """

    def __init__(self, c_in: int, c_out: int, inner: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU())
        if bottleneck:
            convs = [conv(c_in, inner, 1), conv(inner, inner, 3, stride), conv(inner, c_out, 1)]
        else:
            convs = [conv(c_in, inner, 3, stride), conv(inner, c_out, 3)]
        parts: list[tuple[str, nn.Module]] = [("conv1", convs[0])]
        for i, layer in enumerate(convs[1:], 2):
            parts += [(f"norm{i}", nn.BatchNorm2d(inner)), (f"act{i}", nn.ReLU()), (f"conv{i}", layer)]
        self.branch = nn.Sequential(OrderedDict(parts))
        self.shortcut = conv(c_in, c_out, 1, stride) if c_in != c_out or stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        return self.branch(y) + (x if self.shortcut is None else self.shortcut(y))


class Wide(Pooled):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 64 k), with bottlenecks (N, 256 k)."""

    def __init__(self, cfg: WideConfig) -> None:
        super().__init__()
        blocks = (cfg.depth - 2) // 9 if cfg.bottleneck else (cfg.depth - 4) // 6
        self.stem = nn.Sequential(OrderedDict(conv=conv(3, STEM)))
        c_in = STEM
        for channels, first_stride in zip(CHANNELS, (1, 2, 2), strict=True):
            inner = channels * cfg.k
            c_out = inner * 4 if cfg.bottleneck else inner
            stage = nn.Sequential()
            for stride in [first_stride] + [1] * (blocks - 1):
                stage.append(PreactBlock(c_in, c_out, inner, stride, cfg.bottleneck))
                c_in = c_out
            self.stages.append(stage)
        self.final = nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU())
        self.classify(c_in, cfg.classes)

    def blocks(self) -> list[PreactBlock]:
        """All blocks from input to output."""
        return [module for module in self.stages.modules() if isinstance(module, PreactBlock)]

    def maps(self, x: Tensor) -> Tensor:
        """The last sum, normalised and cut off at zero: (N, 64 k or 256 k, h, w)."""
        return self.final(super().maps(x))
