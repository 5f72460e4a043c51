"""Checkpointing keeps less and changes no gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import ResNetConfig, build
from cnnstudy.models.zoo import ZooConfig, zoo
from cnnstudy.probes import allocator, memory, recompute


def test_block_by_block_by_hand() -> None:
    """What is kept: the images, each block's input, the last output (the pooling's mean keeps nothing), and the head's."""
    model = build(ResNetConfig(depth=20))
    twin = recompute.checkpointed(model)
    before, after = memory.training(model, 32, 2), memory.training(twin, 32, 2)
    sizes = [16 * 32 * 32] * 3 + [32 * 16 * 16] * 3 + [64 * 8 * 8] * 3  # outputs of the nine blocks
    stem = 16 * 32 * 32
    images = 2 * 3 * 32 * 32  # as given and normalised
    # stem: convolution (kept by its norm) and norm with activation in one storage or two; the first block's input is the latter
    low = 2 * 4 * (images + stem + stem + sum(sizes[:-1]))
    assert low <= after["kept_bytes"] <= 1.1 * low
    assert after["kept_bytes"] < 0.5 * before["kept_bytes"]
    assert after["peak_bytes"] < before["peak_bytes"]
    real = allocator.measured(twin, 32, 2)
    assert real["kept_bytes"] == after["kept_bytes"]
    assert after["peak_bytes"] <= real["peak_bytes"] <= 1.3 * after["peak_bytes"]


def test_gradients_do_not_change() -> None:
    torch.manual_seed(0)
    model = zoo(ZooConfig("resnet18"))
    x = torch.randn(2, 3, 64, 64)
    twin = recompute.checkpointed(model)
    assert recompute.gradient_difference(model, twin, x) < 1e-4
    with torch.no_grad():
        next(twin.parameters()).mul_(1.1)
    assert recompute.gradient_difference(model, twin, x) > 1e-3  # it can tell


def test_blocks_are_found() -> None:
    assert len(recompute.residual_blocks(build(ResNetConfig(depth=20)))) == 9
    assert len(recompute.residual_blocks(zoo(ZooConfig("resnet50")))) == 16
    assert len(recompute.residual_blocks(zoo(ZooConfig("mobilenetv2_100")))) == 17


def test_refusals() -> None:
    with pytest.raises(Refused, match="no residual blocks"):
        recompute.checkpointed(nn.Sequential(nn.Conv2d(3, 3, 1)))
    with pytest.raises(Refused, match="twins"):
        recompute.gradient_difference(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1, bias=False), torch.rand(1, 3, 8, 8))
