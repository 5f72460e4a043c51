"""Distances from the loss, against counting by hand and against which weights still learn when convolutions pass nothing back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import DenseConfig, ResNetConfig, build
from cnnstudy.probes.distances import distances, summary


def test_a_chain_counts_down() -> None:
    assert list(distances(ResNetConfig(14, skip=False)).values()) == list(range(12, -1, -1))
    assert summary(DenseConfig(16, 4, window=1))["longest"] == 14  # fourteen convolutions stand behind the stem


def test_residual_networks_by_hand() -> None:
    """A block's second convolution is at 0, its first behind it; shortcuts A have no convolution, B has one where the width changes."""
    found = distances(ResNetConfig(20))
    assert found["stem.conv"] == 0 and {v for n, v in found.items() if n.endswith("conv2")} == {0}
    assert {v for n, v in found.items() if n.endswith("conv1")} == {1}
    projected = distances(ResNetConfig(20, shortcut="B"))
    assert projected["stem.conv"] == 2 and projected["stages.0.1.branch.conv2"] == 2 and projected["stages.1.1.branch.conv1"] == 2
    assert projected["stages.2.2.branch.conv2"] == 0


def test_dense_networks_by_hand() -> None:
    found = distances(DenseConfig(22))
    for stage, behind in ((0, 2), (1, 1), (2, 0)):  # transitions between there and the loss
        for layer in (1, 2, 3):
            at = f"stages.{stage}.layer{layer}.branch"
            assert (found[f"{at}.conv2"], found[f"{at}.conv1"]) == (behind, behind + 1)
    assert found["stem.conv"] == 2 and found["stages.0.transition.conv"] == 1


@pytest.mark.parametrize("cfg", [DenseConfig(22, 4), ResNetConfig(8, 4, shortcut="B"), DenseConfig(16, 4, window=2)])
def test_against_gradients_that_stop(cfg: object) -> None:
    """Independent: with the gradient stopped in front of every convolution, exactly the weights at distance 0 get one."""
    torch.manual_seed(0)
    net = build(cfg)
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, Stopped(child))
    net(torch.rand(4, 3, 32, 32)).square().sum().backward()
    reached = {n.replace(".inner.weight", ""): p.grad is not None for n, p in net.named_parameters() if n.endswith("inner.weight")}
    assert reached == {name: steps == 0 for name, steps in distances(cfg).items()}


class Stopped(nn.Module):
    """A convolution that passes no gradient on to its input."""

    def __init__(self, inner: nn.Conv2d) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x.detach())


def test_unused_convolutions_are_refused() -> None:
    net = build(ResNetConfig(8, 4))
    net.add_module("idle", nn.Conv2d(1, 1, 1))
    with pytest.raises(Refused, match="no gradient reaches idle"):
        distances(net)


class Detour(nn.Module):
    """One way with a convolution and little else, one without but through many operations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.short = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = x
        for _ in range(9):
            y = torch.tanh(y)
        return self.short(x) + y


def test_fewest_convolutions_not_fewest_operations() -> None:
    assert distances(Detour(), 8) == {"first": 0, "short": 0}
