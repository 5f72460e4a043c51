"""Bottlenecks: the block's arithmetic, its three forms, the published counts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import BottleneckConfig, build
from cnnstudy.models.bottleneck import Bottleneck, Paths


def block(groups: int, norm: str = "batch", stride: int = 1, c_out: int = 32) -> Bottleneck:
    torch.manual_seed(0)
    made = Bottleneck(32, c_out, 24, stride, groups, norm)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):  # so that mixed-up channels show
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return made.double()


def params(cfg: BottleneckConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build(cfg).parameters())


@pytest.mark.parametrize(("paths", "published"), [(8, 34.4), (16, 68.1)])
def test_published_resnext_29(paths: int, published: float) -> None:
    """Xie et al. 2017, table 7: ResNeXt-29 8x64d and 16x64d, in millions."""
    assert params(BottleneckConfig(29, 64, paths, 64)) / 1e6 == pytest.approx(published, abs=0.06)


def test_the_bottleneck_that_the_source_counts() -> None:
    made = Bottleneck(256, 256, 64, norm="none")
    assert [p.numel() for p in made.parameters()] == [16_384, 36_864, 16_384]
    assert isinstance(made.shortcut, nn.Identity)


def test_a_block_by_hand() -> None:
    made = block(4, stride=2, c_out=48).eval()
    b, x = made.branch, torch.randn(2, 32, 6, 6, dtype=torch.double)
    y = b.norm2(b.conv2(b.norm1(b.conv1(x)).relu())).relu()
    assert y.shape == (2, 24, 3, 3)
    torch.testing.assert_close(made(x), (b.norm3(b.conv3(y)) + made.shortcut(x)).relu())


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("concatenate", [False, True])
@pytest.mark.parametrize(("stride", "c_out"), [(1, 32), (2, 48)])
def test_paths_and_groups_compute_the_same(norm: str, concatenate: bool, stride: int, c_out: int) -> None:
    """Outputs in both modes, gradients and running statistics."""
    whole = block(8, norm, stride, c_out)
    paths = Paths(whole, concatenate)
    assert len(paths.paths) == 8
    x = torch.randn(3, 32, 6, 6, dtype=torch.double)
    torch.testing.assert_close(paths.eval()(x), whole.eval()(x), rtol=1e-9, atol=1e-9)
    found = []
    paths.train(), whole.train()
    for form in (whole, paths):
        x = torch.randn(3, 32, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(1)).requires_grad_()
        y = form(x)
        (y * torch.arange(y.numel()).view_as(y)).sum().backward()
        found.append((y.detach(), x.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    if norm == "batch":
        own = torch.cat([path[4].running_var for path in paths.paths])
        torch.testing.assert_close(own, whole.branch.norm2.running_var)


def test_paths_hold_copies() -> None:
    whole = block(4)
    paths, x = Paths(whole), torch.randn(1, 32, 4, 4, dtype=torch.double)
    before = paths.eval()(x)
    with torch.no_grad():
        for p in whole.parameters():
            p.zero_()
    assert torch.equal(paths(x), before)


def test_every_path_reads_all_channels_and_has_the_same_shapes() -> None:
    paths = Paths(block(4, "none"))
    shapes = [[tuple(p.shape) for p in path.parameters()] for path in paths.paths]
    assert shapes == [[(6, 32, 1, 1), (6, 6, 3, 3), (32, 6, 1, 1)]] * 4
    x = torch.randn(1, 32, 4, 4, dtype=torch.double, requires_grad=True)
    paths.paths[1](x).sum().backward()
    assert x.grad.abs().sum((0, 2, 3)).all()  # the input is not split; only the 3x3's is


def test_grouped_is_concatenated() -> None:
    """A 3x3 in four groups is four 3x3 on a quarter of the channels each, side by side."""
    grouped = block(4).branch.conv2
    x = torch.randn(2, 24, 5, 5, dtype=torch.double)
    parts = [nn.functional.conv2d(p, w, padding=1) for p, w in zip(x.chunk(4, 1), grouped.weight.chunk(4), strict=True)]
    torch.testing.assert_close(grouped(x), torch.cat(parts, 1))


def test_cardinality_is_all_that_differs() -> None:
    plain, grouped = (build(BottleneckConfig(20, 8, c, d)) for c, d in ((1, 16), (4, 4)))
    shapes = [[(n, m.out_channels) for n, m in net.named_modules() if isinstance(m, nn.Conv2d)] for net in (plain, grouped)]
    assert shapes[0] == shapes[1]
    assert [b.branch.conv2.groups for b in grouped.blocks()] == [4] * 6


@pytest.mark.parametrize("groups", [5, 0, -1])
def test_groups_that_do_not_divide_are_refused(groups: int) -> None:
    with pytest.raises(Refused, match=f"{groups} groups don't divide 24 channels; valid: 1, 2, 3, 4, 6, 8, 12, 24$"):
        block(groups)
