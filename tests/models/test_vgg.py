"""VGG-16 and VGG-19 at 32 pixels."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.models import DeepVggConfig, build


def meta(cfg: DeepVggConfig) -> nn.Module:
    with torch.device("meta"):
        return build(cfg)


def body(net: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_channels, m.out_channels) for m in net.stages.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize(("depth", "blocks"), [(11, [1, 1, 2, 2, 2]), (13, [2] * 5), (16, [2, 2, 3, 3, 3]), (19, [2, 2, 4, 4, 4])])
def test_layers_of_the_paper(depth: int, blocks: list[int]) -> None:
    net = meta(DeepVggConfig(depth, head="fc"))
    assert [sum(isinstance(m, nn.Conv2d) for m in stage) for stage in net.stages] == blocks
    assert sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) == depth
    assert {(m.kernel_size, m.stride, m.padding) for m in net.modules() if isinstance(m, nn.Conv2d)} == {((3, 3), (1, 1), (1, 1))}
    assert [m.out_features for m in net.modules() if isinstance(m, nn.Linear)] == [4096, 4096, 10]


def test_vgg19_is_vgg16_and_one_more_layer_in_three_blocks() -> None:
    long = body(meta(DeepVggConfig(19)))
    for end in (16, 12, 8):
        del long[end - 1]
    assert long == body(meta(DeepVggConfig(16)))


@pytest.mark.parametrize(("head", "last_pool", "side", "features"), [("gap", True, 1, 64), ("gap", False, 2, 64), ("fc", False, 2, 512)])
def test_what_the_heads_see(head: str, last_pool: bool, side: int, features: int) -> None:
    net = build(DeepVggConfig(width=0.125, head=head, last_pool=last_pool)).eval()
    x = torch.rand(2, 3, 32, 32)
    maps = net.stages(net.normalize(x))
    assert maps.shape == (2, 64, side, side)
    assert net.features(x).shape == (2, features)
    if head == "gap":
        torch.testing.assert_close(net.features(x), maps.mean((2, 3)))
    else:
        h = maps.flatten(1)
        for layer in net.hidden:
            h = layer(h)
        torch.testing.assert_close(net.features(x), h)
        assert net.hidden[0].in_features == 256  # every position has its own weights


def test_dropout_acts_in_training_only() -> None:
    net, x = build(DeepVggConfig(width=0.125, norm="none", head="fc")), torch.rand(2, 3, 32, 32)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))
