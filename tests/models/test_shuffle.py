"""Shuffling channels: the permutation, the unit, who can reach whom, the published costs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.layers import conv
from cnnstudy.models import ShuffleConfig, ShuffleNetConfig, build
from cnnstudy.models.shuffle import MIX, Permute, Shuffle, ShuffleUnit, inner_width
from cnnstudy.probes.cost import cost


def numbered(channels: int, form: torch.memory_format = torch.contiguous_format) -> Tensor:
    """(2, channels, 2, 3): each channel holds its number."""
    return torch.arange(channels).view(1, -1, 1, 1).expand(2, channels, 2, 3).double().contiguous(memory_format=form)


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("groups", range(1, 13))
def test_shuffle_is_its_definition(groups: int, form: torch.memory_format) -> None:
    for each in range(1, 13):
        channels = groups * each
        x = numbered(channels, form)
        y = Shuffle(channels, groups)(x)
        assert y.shape == x.shape
        source = y[1, :, 1, 2].int().tolist()
        assert source == [(j % groups) * each + j // groups for j in range(channels)]
        assert torch.equal(Shuffle(channels, each)(y), x)  # groups and channels per group swapped: back again
        assert torch.equal(y, nn.ChannelShuffle(groups)(x))


@pytest.mark.parametrize("mix", [Shuffle(12, 3), Permute(12)])
def test_mixing_keeps_channels_last(mix: nn.Module) -> None:
    assert mix(numbered(12, torch.channels_last)).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("mix", MIX)
def test_exports_to_onnx(mix: str) -> None:
    """As ``engines.onnxruntime`` exports: the graph must give what the network gives."""
    ort = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net, x, graph = build(ShuffleConfig(2, mix, 32, (1, 1, 1))).eval(), torch.rand(1, 3, 32, 32), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(net, (x,), graph, dynamo=False, opset_version=17)
    session = ort.InferenceSession(graph.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), net(x).detach(), rtol=1e-4, atol=1e-4)


def test_random_permutation_is_fixed_and_kept() -> None:
    torch.manual_seed(0)
    net, other = build(ShuffleConfig(4, "random", 64)), build(ShuffleConfig(4, "random", 64))
    orders = {n: b for n, b in net.state_dict().items() if n.endswith("order")}
    assert len(orders) == 8 and all(sorted(o.tolist()) == list(range(len(o))) for o in orders.values())
    x = torch.rand(2, 3, 32, 32)
    assert not torch.equal(net.eval()(x), other.eval()(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(net(x), other(x))
    permute = Permute(16)
    assert torch.equal(permute(numbered(16)), numbered(16)[:, permute.order])


def test_mixes_differ_in_nothing_else() -> None:
    nets = []
    for mix in ("shuffle", "none"):
        torch.manual_seed(0)
        nets.append(build(ShuffleConfig(4, mix, 64)))
    a, b = (net.state_dict() for net in nets)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    x = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(nets[0](x), nets[1](x))


@pytest.mark.parametrize("stride", [1, 2])
def test_unit_by_hand(stride: int) -> None:
    torch.manual_seed(0)
    unit = ShuffleUnit(24, 24 if stride == 1 else 48, 12, stride, 3).eval()
    b, x = unit.branch, torch.rand(2, 24, 8, 8)
    y = torch.cat([nn.functional.conv2d(p, w) for p, w in zip(x.chunk(3, 1), b[0].weight.chunk(3), strict=True)], 1)
    y = b[1](y).relu().view(2, 3, 4, 8, 8).transpose(1, 2).flatten(1, 2)
    y = b[7](b[6](b[5](nn.functional.conv2d(y, b[4].weight, stride=stride, padding=1, groups=12))))
    expected = x + y if stride == 1 else torch.cat([nn.functional.avg_pool2d(x, 3, 2, 1), y], 1)
    torch.testing.assert_close(unit(x), expected.relu())


def reach(mix: str, groups: int, layers: int = 3, each: int = 4) -> Tensor:
    """(groups, groups): which groups of outputs depend on which groups of inputs, by gradients."""
    c = groups * each

    def parts() -> Iterator[nn.Module]:
        for i in range(layers):
            if i:
                yield from (MIX[mix](c, groups), conv(c, c, 3, groups=c))
            yield conv(c, c, 1, groups=groups)

    torch.manual_seed(0)
    net, x = nn.Sequential(*parts()), torch.randn(1, c, 5, 5, requires_grad=True)
    rows = [torch.autograd.grad(own.sum(), x, retain_graph=True)[0] for own in net(x).chunk(groups, 1)]
    return torch.stack([g.abs().view(groups, -1).sum(1) > 0 for g in rows])


@pytest.mark.parametrize("groups", [2, 4, 8])
def test_groups_never_meet_without_mixing(groups: int) -> None:
    assert torch.equal(reach("none", groups, 6), torch.eye(groups).bool())


def test_groups_meet_after_one_shuffle_if_they_are_wide_enough() -> None:
    assert reach("shuffle", 4, 2, each=4).all()
    assert not reach("shuffle", 4, 2, each=2).all()  # two channels come from two groups at the most
    assert reach("shuffle", 4, 3, each=2).all()


# Zhang et al. 2018, table 1, complexity in millions by number of groups; parameters: the authors' code, README of ShuffleNetV1
@pytest.mark.parametrize(
    ("groups", "width", "macs", "params"),
    [(1, 1.0, 143, None), (2, 1.0, 140, None), (3, 1.0, 137, 1.9), (4, 1.0, 133, None), (8, 1.0, 137, 2.4)]
    + [(3, 0.5, 38, 0.7), (8, 0.5, 40, 1.0), (3, 2.0, 524, 5.4), (8, 2.0, 522, 6.5)],
)  # fmt: skip
def test_published_shufflenets(groups: int, width: float, macs: float, params: float | None) -> None:
    found = cost(ShuffleNetConfig(groups, width), 224)
    assert found["macs"] / 1e6 == pytest.approx(macs, rel=0.013)
    if params:
        assert found["params"] / 1e6 == pytest.approx(params, abs=0.06)


def test_every_setting_of_the_paper_builds() -> None:
    x = torch.empty(1, 3, 224, 224, device="meta")
    for groups in (1, 2, 3, 4, 8):
        for width in (0.25, 0.5, 1.0):
            with torch.device("meta"):
                net = build(ShuffleNetConfig(groups, width))
            assert net(x).shape == (1, 1000)
            units = [m for m in net.modules() if isinstance(m, ShuffleUnit)]
            assert len(units) == 16 and sum(u.pool is not None for u in units) == 3
            assert {m.groups for u in units[1:] for m in (u.branch[0], u.branch[6])} == {groups}
            assert units[0].branch[0].groups == 1


def test_inner_width_is_a_quarter_in_whole_groups() -> None:
    assert [inner_width(c, g) for c, g in ((240, 3), (384, 8), (136, 4), (68, 4), (50, 2), (8, 8))] == [60, 96, 36, 16, 12, 8]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((24, 24, 10, 1, 3), "3 groups don't divide 10 channels; valid: 1, 2, 5, 10"),
        ((24, 32, 12, 1, 4), "stride 1 from 24 to 32"),
        ((24, 24, 12, 2, 4), "stride 2 from 24 to 24"),
        ((24, 48, 12, 3, 4), "stride 3"),
        ((24, 24, 12, 1, 4, "x"), "unknown mix 'x'"),
    ],
)
def test_unit_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(Refused, match=message):
        ShuffleUnit(*arguments)
    with pytest.raises(Refused, match="5 groups don't divide 12"):
        Shuffle(12, 5)
