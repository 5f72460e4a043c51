"""ShuffleNet units (Zhang et al. 2018, arXiv:1707.01083): grouped 1x1 convolutions with the channels mixed between them.

``ShuffleConfig`` is a small network for 32 x 32 in which the mixing can be the shuffle, a fixed random permutation or
nothing, at equal weights and MACs; groups 1 is its dense form.  ``ShuffleNetConfig`` is ShuffleNetV1 for 224 x 224 as
in the paper's table 1 (timm and torchvision have the second version only).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.layers import conv, init_weights
from cnnstudy.models.pooled import Pooled

STEM = 24
# table 1 of the paper: channels that the first stage puts out, by number of groups; each further stage has twice as many
CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
REPEATS = (4, 8, 4)
INNER = 4  # a unit's inside has a quarter of the channels that it puts out (section 3.2)


class Shuffle(nn.Module):
    """Channels g n, seen as (g, n), transposed to (n, g) and flattened: channel j comes from (j mod g) n + j // g.

    (N, C, H, W) -> the same shape.  Raises Refused if the groups don't divide the channels.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        _check(channels, groups)
        self.groups, self.each = groups, channels // groups

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():  # the export to ONNX does not know torch's operator
            return x.unflatten(1, (self.groups, self.each)).transpose(1, 2).flatten(1, 2)
        return F.channel_shuffle(x, self.groups)  # keeps channels_last; training as a whole is a quarter faster than with the line above


class Permute(nn.Module):
    """A permutation of the channels, drawn once from torch's global generator and kept with the weights."""

    order: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)[..., self.order].permute(0, 3, 1, 2)  # channels last, as networks are trained


MIX: dict[str, Callable[[int, int], nn.Module]] = {
    "shuffle": Shuffle,
    "none": lambda channels, groups: nn.Identity(),
    "random": lambda channels, groups: Permute(channels),
}


def _check(channels: int, groups: int) -> None:
    if groups < 1 or channels % groups:
        valid = ", ".join(str(g) for g in range(1, channels + 1) if channels % g == 0)
        raise Refused(f"{groups} groups don't divide {channels} channels; valid: {valid}")


class ShuffleUnit(nn.Module):
    """Grouped 1x1 to ``inner`` channels, ``mix``, 3x3 depthwise, grouped 1x1 (figure 2b, 2c of the paper), then ReLU.

    Stride 1: added to ``x``, c_in = c_out.  Stride 2: put beside ``x`` averaged 3x3, so that the branch makes
    c_out - c_in channels.  ``first_groups``: groups of the first 1x1 (default: ``groups``).
    ``x``: (N, c_in, H, W) -> (N, c_out, H / stride, W / stride).
    """

    def __init__(
        self, c_in: int, c_out: int, inner: int, stride: int, groups: int, mix: str = "shuffle", first_groups: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        made = c_out - c_in if stride == 2 else c_out
        if stride not in (1, 2) or made < 1 or (stride == 1 and c_in != c_out):
            raise Refused(f"stride {stride} from {c_in} to {c_out} channels; valid: 1 (equally many) or 2 (more)")
        first_groups = groups if first_groups is None else first_groups
        for channels, g in ((c_in, first_groups), (inner, first_groups), (inner, groups), (made, groups)):
            _check(channels, g)
        self.branch = nn.Sequential(
            conv(c_in, inner, 1, groups=first_groups), nn.BatchNorm2d(inner), nn.ReLU(),
            MIX[choose("mix", mix, MIX)](inner, groups),
            conv(inner, inner, 3, stride, groups=inner), nn.BatchNorm2d(inner),
            conv(inner, made, 1, groups=groups), nn.BatchNorm2d(made),
        )  # fmt: skip
        self.pool = nn.AvgPool2d(3, 2, 1) if stride == 2 else None
        self.out = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        return self.out(x + y if self.pool is None else torch.cat((self.pool(x), y), 1))


def stages(c_in: int, channels: int, repeats: Sequence[int], groups: int, mix: str) -> nn.Sequential:
    """Three stages of units that put out ``channels``, twice and four times as many; the first unit of each has stride 2.

    The very first 1x1 is dense, as its input is narrow (section 3.2).  A unit's inside is rounded to a multiple of ``groups``.
    """
    made = nn.Sequential()
    for i, repeat in enumerate(repeats):
        c_out = channels * 2**i
        inner = inner_width(c_out, groups)
        first = ShuffleUnit(c_in, c_out, inner, 2, groups, mix, first_groups=1 if i == 0 else None)
        made.append(nn.Sequential(first, *(ShuffleUnit(c_out, c_out, inner, 1, groups, mix) for _ in range(repeat - 1))))
        c_in = c_out
    return made


def inner_width(c_out: int, groups: int) -> int:
    """A quarter of ``c_out``, to the nearest multiple of ``groups`` (the paper does not say how it rounds; halves go up)."""
    return max(1, (2 * c_out // INNER + groups) // (2 * groups)) * groups


# For 32 x 32 ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShuffleConfig:
    """``channels`` that the first stage puts out; ``groups`` of the 1x1 layers; ``mix``: "shuffle", "random" or "none".

    ``blocks``: units in each of the three stages (the paper's network has 4, 8, 4).
    """

    groups: int = 4
    mix: str = "shuffle"
    channels: int = 256
    blocks: tuple[int, ...] = (2, 4, 2)
    classes: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", tuple(self.blocks))  # JSON has lists
        choose("mix", self.mix, MIX)
        if self.groups < 1 or self.classes < 1:
            raise Refused(f"groups {self.groups} and classes {self.classes} must be at least 1")
        if len(self.blocks) != len(REPEATS) or min(self.blocks) < 1:
            raise Refused(f"blocks {list(self.blocks)} are not valid; {len(REPEATS)} numbers of at least 1, e.g. 2, 4, 2")
        if STEM % self.groups:
            raise Refused(f"groups {self.groups} don't divide the stem's {STEM} channels; valid: 1, 2, 3, 4, 6, 8, 12, 24")
        step = INNER * self.groups
        if self.channels % step or self.channels <= STEM:
            low = max(self.channels // step * step, (STEM // step + 1) * step)
            raise Refused(
                f"channels {self.channels} don't divide into {self.groups} groups inside a unit; "
                f"valid: multiples of {step} above {STEM} ({low}, {low + step}, ...)"
            )


class ShuffleMini(Pooled):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, 4 channels).

    Against the paper's network: the stem keeps the resolution and no pooling follows it, so that the stages work on 16, 8 and 4 pixels.
    """

    def __init__(self, cfg: ShuffleConfig) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, STEM), nn.BatchNorm2d(STEM), nn.ReLU())
        self.stages = stages(STEM, cfg.channels, cfg.blocks, cfg.groups, cfg.mix)
        self.classify(4 * cfg.channels, cfg.classes)


# For 224 x 224 -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShuffleNetConfig:
    """ShuffleNetV1 ``width`` x with ``groups`` 1, 2, 3, 4 or 8; ``mix`` as in ShuffleConfig."""

    groups: int = 3
    width: float = 1.0
    mix: str = "shuffle"
    classes: int = 1000

    def __post_init__(self) -> None:
        choose("groups", self.groups, CHANNELS)
        choose("mix", self.mix, MIX)
        if not self.width > 0 or self.classes < 1:
            raise Refused(f"width {self.width} must be above 0, classes {self.classes} at least 1")

    def widths(self) -> tuple[int, int]:
        """Channels of the stem and of the first stage's output.

        Both times ``width``; the stage's to a multiple of the groups, the stem's up to the next number that the groups divide
        (they have to divide what the first unit adds to it).  The authors' code has the same 12 and 16 at width 0.5 and 48 at 2,
        but 24 also at 1.5 (2.6 % fewer MACs).
        """
        out = max(1, round(CHANNELS[self.groups] * self.width / self.groups)) * self.groups
        return -(-int(STEM * self.width + 0.5) // self.groups) * self.groups, out


class ShuffleNet(nn.Module):
    """``forward``: (N, 3, H, W), normalised -> logits (N, classes).  Works under ``torch.device("meta")``."""

    def __init__(self, cfg: ShuffleNetConfig) -> None:
        super().__init__()
        stem, channels = cfg.widths()
        self.stem = nn.Sequential(conv(3, stem, 3, 2), nn.BatchNorm2d(stem), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.stages = stages(stem, channels, REPEATS, cfg.groups, cfg.mix)
        self.head = nn.Linear(4 * channels, cfg.classes)
        nn.init.zeros_(self.head.bias)
        init_weights(self, "he")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))
