"""The wiring of networks built for the test, whose operations are known."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models import ResNetConfig, build
from cnnstudy.probes import wiring


class Odd(nn.Module):
    """A block whose modules are not what runs: one is never called, a ReLU is a function, the sum is made in place."""

    def __init__(self, channels: int = 4, project: bool = False) -> None:
        super().__init__()
        self.unused = nn.ReLU()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.project = nn.Conv2d(channels, channels, 1) if project else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.second(F.relu_(self.first(x))))
        y += x if self.project is None else torch.tanh(self.project(x))
        return F.silu(y)


def two() -> nn.Sequential:
    torch.manual_seed(0)
    front = [nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)]
    return nn.Sequential(*front, Odd(), nn.Sigmoid(), Odd(project=True), nn.Flatten(), nn.Linear(256, 5))


def test_what_runs_is_what_counts() -> None:
    blocks, stem = wiring.blocks(wiring.trace(two().eval(), torch.rand(2, 3, 16, 16))[0])
    assert [[n.op for n in part] for part in (stem, blocks[0].between, blocks[1].between)] == [["conv", "pool"], ["sigmoid"], []]
    for block, shortcut, identity in zip(blocks, ([], ["conv", "tanh"]), (True, False), strict=True):
        assert [n.op for n in block.branch] == ["conv", "relu", "conv", "norm"]
        assert [n.op for n in block.shortcut] == shortcut and block.identity is identity
        assert [n.op for n in block.after] == ["silu"]
    assert [b.name for b in blocks] == ["2", "4"] and [b.stage for b in blocks] == [1, 1]
    assert [n.module for n in blocks[1].branch] == ["4.first", "4", "4.second", "4.norm"]


def test_the_tensors_are_those_of_the_computation() -> None:
    net = two()
    before = copy.deepcopy(net.state_dict())
    x = torch.rand(3, 3, 16, 16)
    found = wiring.sums(net, x)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net.eval()
    with torch.no_grad():
        for i, one in ((2, found[0]), (4, found[1])):
            odd: Odd = net[i]  # type: ignore[assignment]
            h = net[:i](x)
            branch = odd.norm(odd.second(odd.first(h).relu()))
            shortcut = h if odd.project is None else odd.project(h).tanh()
            expected = (h, branch, shortcut, branch + shortcut, F.silu(branch + shortcut))
            for got, wanted in zip((one.x, one.branch, one.shortcut, one.total, one.y), expected, strict=True):
                torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_a_config_and_its_network_have_one_wiring() -> None:
    one, other = (wiring.wired(m)[0] for m in (ResNetConfig(14), build(ResNetConfig(14)).double()))
    assert one == other
    assert [b.stage for b in one] == [1, 1, 2, 2, 3, 3]


def test_stages_change_with_the_shape() -> None:
    class Wider(Odd):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.avg_pool2d(x, 2))

    net = nn.Sequential(Odd(), Odd(), Wider(), Odd()).eval()
    blocks, _ = wiring.blocks(wiring.trace(net, torch.rand(1, 4, 8, 8))[0])
    assert [b.stage for b in blocks] == [1, 1, 2, 2]
    assert [n.op for n in blocks[2].shortcut] == ["pool"]


def test_the_longest_and_the_shortest_way() -> None:
    """0 -> conv -> gate with a sigmoid of itself; the view in between is no operation."""
    ops = [("input", ()), ("conv", (0,)), ("", (1,)), ("mean", (2,)), ("sigmoid", (3,)), ("gate", (1, 4)), ("relu", (0,))]
    nodes = [wiring.Node(i, op, "", inputs, (1,)) for i, (op, inputs) in enumerate(ops)]
    found = {longest: wiring.way(nodes, 0, 5, longest) for longest in (True, False)}
    assert [n.op for n in found[True] or []] == ["conv", "mean", "sigmoid", "gate"]
    assert [n.op for n in found[False] or []] == ["conv", "gate"]
    assert wiring.way(nodes, 1, 6, True) is None and wiring.way(nodes, 0, 5, True, {5}) is None


def test_refusals() -> None:
    with pytest.raises(Refused, match="nothing is added"):
        wiring.wired(ResNetConfig(8, skip=False))

    class Loose(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.conv(x)

    with pytest.raises(Refused, match="no block"):
        wiring.wired(Loose())
