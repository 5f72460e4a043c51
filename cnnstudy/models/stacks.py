"""Networks that differ in how a stage covers its receptive field: one 7x7, three 3x3, one 5x5, two 3x3, ...

Three stages without shortcuts, 2x2 max pooling after each, batch norm after each convolution; a stage is a stack of
convolutions given by their sizes.  With ``growth`` 1 every stage has equally many channels going in and out, the case that
Simonyan & Zisserman (2015, arXiv:1409.1556, section 2.3) count: 49 C^2 weights for one 7x7, 27 C^2 for three 3x3.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from cnnstudy.config import Refused
from cnnstudy.layers import conv
from cnnstudy.models.pooled import Pooled

STAGES = 3


@dataclass(frozen=True)
class StackConfig:
    """``kernels``: sizes in every stage ("7", "3-3-3", "5", "3-3"), or stage by stage ("11/5/3-3-3").

    ``width``: channels of the first stage, ``growth``: how many times as many the next one has.  ``inner_act=False``: one
    ReLU at the end of each stack, none inside.  ``stem``: a 3x3 from the image's 3 channels to ``width`` before the stages;
    without it the first convolution of the first stage sees the image.
    """

    kernels: str = "3-3-3"
    width: int = 16
    growth: int = 1
    inner_act: bool = True
    stem: bool = True
    classes: int = 10

    def __post_init__(self) -> None:
        for name in ("width", "growth", "classes"):
            if getattr(self, name) < 1:
                raise Refused(f"{name} {getattr(self, name)} must be at least 1")
        self.sizes()

    def sizes(self) -> list[list[int]]:
        """The kernel sizes of each stage.  Raises Refused for what is none."""
        stages = self.kernels.split("/")
        stages = stages * STAGES if len(stages) == 1 else stages
        try:
            sizes = [[int(size) for size in stage.split("-")] for stage in stages]
        except ValueError:
            sizes = []
        if len(sizes) != STAGES or any(size < 1 or size % 2 == 0 for stage in sizes for size in stage):
            raise Refused(f"kernels {self.kernels!r} are not valid; odd sizes for all stages ('7', '3-3-3') or for {STAGES} ('11/5/3-3-3')")
        return sizes


class Stacks(Pooled):
    """``forward``: (N, 3, H, W) in [0, 1] -> logits (N, classes); ``features``: -> (N, width growth^2)."""

    def __init__(self, cfg: StackConfig) -> None:
        super().__init__()
        c_in = cfg.width if cfg.stem else 3
        if cfg.stem:
            self.stem = stack([3], 3, cfg.width)
        for i, sizes in enumerate(cfg.sizes()):
            c_out = cfg.width * cfg.growth**i
            stage = stack(sizes, c_in, c_out, cfg.inner_act)
            stage.add_module("pool", nn.MaxPool2d(2))
            self.stages.append(stage)
            c_in = c_out
        self.classify(c_in, cfg.classes)


def stack(sizes: list[int], c_in: int, c_out: int, inner_act: bool = True, norm: bool = True) -> nn.Sequential:
    """Convolutions of these sizes, each with batch norm (if ``norm``) and ReLU (if not ``inner_act``: the last one only).

    (N, c_in, H, W) -> (N, c_out, H, W).
    """
    parts: list[tuple[str, nn.Module]] = []
    for i, size in enumerate(sizes, 1):
        parts.append((f"conv{i}", conv(c_in if i == 1 else c_out, c_out, size)))
        if norm:
            parts.append((f"norm{i}", nn.BatchNorm2d(c_out)))
        if inner_act or i == len(sizes):
            parts.append((f"act{i}", nn.ReLU()))
    return nn.Sequential(OrderedDict(parts))
