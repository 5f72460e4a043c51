"""MobileNetV1 for 32 pixels: the paper's layers, its dense twin, its width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.models import MobileNetV1Config, build
from cnnstudy.probes.cost import cost

# Howard et al. 2017, table 1: output channels and strides of the 13 layers
CHANNELS = [64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
STRIDES = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]


def layers(cfg: MobileNetV1Config) -> list[nn.Sequential]:
    with torch.device("meta"):
        return [layer for stage in build(cfg).stages for layer in stage]


@pytest.mark.parametrize("alpha", [1.0, 0.75, 0.5, 0.25])
def test_layers_of_the_paper(alpha: float) -> None:
    found = layers(MobileNetV1Config(alpha))
    assert [m[3].out_channels for m in found] == [c * alpha for c in CHANNELS]
    assert [m[0].stride[0] for m in found] == STRIDES
    assert all(m[0].groups == m[0].in_channels and m[3].kernel_size == (1, 1) for m in found)


def test_dense_twin_has_the_same_shapes() -> None:
    x = torch.rand(1, 3, 32, 32)
    maps = []
    for separable in (True, False):
        net = build(MobileNetV1Config(0.25, separable)).eval()
        h = net.stem(net.normalize(x))
        seen = [h.shape]
        for stage in net.stages:
            for layer in stage:
                h = layer(h)
                seen.append(h.shape)
        maps.append(seen)
    assert maps[0] == maps[1] and maps[0][-1] == (1, 256, 2, 2)


def test_dense_twin_costs_what_the_formula_says() -> None:
    """Each pair of a separable layer against its dense one: 9 c_in c_out over 9 c_in + c_in c_out weights."""
    for slim, dense in zip(layers(MobileNetV1Config()), layers(MobileNetV1Config(separable=False)), strict=True):
        c_in, c_out = dense[0].in_channels, dense[0].out_channels
        assert dense[0].weight.numel() == 9 * c_in * c_out
        assert slim[0].weight.numel() + slim[3].weight.numel() == 9 * c_in + c_in * c_out
    ratio = cost(MobileNetV1Config(separable=False), 32)["macs"] / cost(MobileNetV1Config(), 32)["macs"]
    assert 8 < ratio < 9


def test_blocks_by_stage() -> None:
    assert [m[3].out_channels for m in layers(MobileNetV1Config(blocks=(1, 1, 1, 2, 1)))] == [64, 128, 256, 512, 512, 1024]
    assert MobileNetV1Config(blocks=[1, 1, 1, 1, 1]) == MobileNetV1Config(blocks=(1, 1, 1, 1, 1))  # type: ignore[arg-type]
