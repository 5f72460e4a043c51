"""Lesions of single blocks and single layers."""

from __future__ import annotations

import pytest
import torch

from cnnstudy.models import build
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.probes import layer_lesions


def test_only_identity_blocks_and_layers_of_equal_shape_can_go() -> None:
    assert layer_lesions.parts(build(ResNetConfig(14))) == [(0, -1), (1, -1), (3, -1), (5, -1)]  # 2 and 4 change the shape
    plain = layer_lesions.parts(build(ResNetConfig(8, skip=False)))
    assert plain == [(0, 0), (0, 1), (1, 1), (2, 1)]


@pytest.mark.parametrize("skip", [True, False])
def test_what_is_gone_is_the_identity_and_comes_back(skip: bool) -> None:
    model = build(ResNetConfig(14, skip=skip)).eval()
    x = torch.randn(2, 16, 32, 32).relu()
    block = model.blocks()[1]
    before = block(x)
    if skip:
        with layer_lesions.without(model, 1, -1):
            assert torch.equal(block(x), x)
    else:
        with layer_lesions.without(model, 1, 0), layer_lesions.without(model, 1, 1):
            assert torch.equal(block(x), x)
        with layer_lesions.without(model, 1, 1):
            assert torch.equal(block(x), block.branch.act1(block.branch.norm1(block.branch.conv1(x))))
    assert torch.equal(block(x), before) and not torch.equal(before, x)


def test_summary_counts_the_cheap_ones() -> None:
    model = build(ResNetConfig(8, init="zero_branch")).eval()  # branches are silent: nothing is lost
    x, y = torch.rand(20, 3, 32, 32), torch.arange(20) % 10
    found = layer_lesions.summary(model, x, y)
    assert found["block"] == [1] and found["parts"] == 1
    assert found["cheap_share"] == 1.0 and found["worst"] == 0.0 and found["without"] == [found["acc"]]
    assert layer_lesions.summary(model, x, y, cheap=0.0)["cheap_share"] == 0.0
