"""Stacks of small filters against single large ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.models import StackConfig, build
from cnnstudy.models.stacks import stack


def weights(cfg: StackConfig) -> list[int]:
    """Convolution weights of each stage."""
    return [sum(m.weight.numel() for m in stage.modules() if isinstance(m, nn.Conv2d)) for stage in build(cfg).stages]


@pytest.mark.parametrize("width", [8, 16])
def test_weights_per_stage(width: int) -> None:
    c2 = width * width
    assert weights(StackConfig("7", width)) == [49 * c2] * 3
    assert weights(StackConfig("3-3-3", width)) == [27 * c2] * 3
    assert weights(StackConfig("5", width)) == [25 * c2] * 3
    assert weights(StackConfig("3-3", width)) == [18 * c2] * 3
    assert weights(StackConfig("7", width, growth=2)) == [49 * c2, 98 * c2, 392 * c2]


@pytest.mark.parametrize(("kernels", "side"), [("7", 7), ("3-3-3", 7), ("5", 5), ("3-3", 5), ("3-5", 7)])
def test_stacks_of_a_pair_see_the_same_square(kernels: str, side: int) -> None:
    sizes = [int(k) for k in kernels.split("-")]
    x = torch.zeros(1, 4, 15, 15, requires_grad=True)
    net = stack(sizes, 4, 4, norm=False)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.uniform_(layer.weight)  # positive, so that no ReLU cuts a way off
    net(x + 1)[0, :, 7, 7].sum().backward()
    seen = x.grad.abs().sum((0, 1)) > 0
    assert seen.sum() == side * side and seen[7 - side // 2 : 8 + side // 2, 7 - side // 2 : 8 + side // 2].all()


def test_inner_activations_are_all_that_differs() -> None:
    with_inner, without = (build(StackConfig(inner_act=inner)) for inner in (True, False))
    relus = [[sum(isinstance(m, nn.ReLU) for m in stage) for stage in net.stages] for net in (with_inner, without)]
    assert relus == [[3, 3, 3], [1, 1, 1]]
    assert [(n, p.shape) for n, p in with_inner.named_parameters()] == [(n, p.shape) for n, p in without.named_parameters()]
    convs = [m for m in without.stages[1] if not isinstance(m, nn.ReLU | nn.MaxPool2d)]
    assert [type(m) for m in convs] == [nn.Conv2d, nn.BatchNorm2d] * 3
    assert isinstance(list(without.stages[1])[-2], nn.ReLU)


def test_stage_by_stage_and_without_a_stem() -> None:
    net = build(StackConfig("11/5/3-3-3", 8, growth=2, stem=False))
    found = [(m.kernel_size[0], m.in_channels, m.out_channels) for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert found == [(11, 3, 8), (5, 8, 16), (3, 16, 32), (3, 32, 32), (3, 32, 32)]
    assert isinstance(net.stem, nn.Identity)
    assert net.stages(torch.rand(1, 3, 32, 32)).shape == (1, 32, 4, 4)
