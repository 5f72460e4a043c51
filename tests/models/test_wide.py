"""Wide ResNets: the published counts, and what a block computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.models import WideConfig, build


def meta(cfg: WideConfig) -> nn.Module:
    with torch.device("meta"):
        return build(cfg)


@pytest.mark.parametrize(("depth", "k", "published"), [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (16, 8, 11.0), (28, 10, 36.5)])
def test_published_counts(depth: int, k: int, published: float) -> None:
    """Zagoruyko & Komodakis 2016, tables 4 and 5, in millions."""
    assert sum(p.numel() for p in meta(WideConfig(depth, k)).parameters()) / 1e6 == pytest.approx(published, abs=0.05)


def test_published_resnet_164() -> None:
    """He et al. 2016, arXiv:1603.05027, table 4: 1.7 M."""
    assert sum(p.numel() for p in meta(WideConfig(164, 1, bottleneck=True)).parameters()) / 1e6 == pytest.approx(1.7, abs=0.05)


def test_depth_counts_as_the_papers_do() -> None:
    """WRN: all convolutions; ResNet-164: convolutions but for projections, and the linear layer."""

    def convs(net: nn.Module, skip: str = "-") -> int:
        return sum(isinstance(m, nn.Conv2d) and skip not in n for n, m in net.named_modules())

    assert convs(meta(WideConfig(28, 2))) == 28
    assert convs(meta(WideConfig(164, 1, bottleneck=True)), "shortcut") + 1 == 164


def test_k_widens_every_convolution_but_the_stem() -> None:
    thin, wide = ({n: m.out_channels for n, m in meta(WideConfig(28, k)).named_modules() if isinstance(m, nn.Conv2d)} for k in (1, 10))
    assert len(thin) == 27  # at k = 1 the first stage changes no width and needs no projection
    assert {name for name, channels in thin.items() if wide[name] != 10 * channels} == {"stem.conv"}
    assert wide["stem.conv"] == 16


@pytest.mark.parametrize("bottleneck", [False, True])
def test_blocks_by_hand(bottleneck: bool) -> None:
    net = build(WideConfig(20 if bottleneck else 16, 2, bottleneck=bottleneck)).eval()
    first, second = net.stages[1]
    x = torch.randn(2, 128 if bottleneck else 32, 8, 8)
    pre = first.before[0](x).relu()
    b, h = first.branch, pre
    h = b.conv2(b.norm2(b.conv1(h)).relu())
    if bottleneck:
        h = b.conv3(b.norm3(h).relu())
    made = first(x)
    torch.testing.assert_close(made, h + first.shortcut(pre))  # the projection sees the activated input
    assert made.shape == (2, 256 if bottleneck else 64, 4, 4)
    nn.init.zeros_(second.branch[-1].weight)
    assert second.shortcut is None
    assert torch.equal(second(made), made)  # with a silent branch the sum is the input itself, not its activation
