"""Reachability by the graph and by the Jacobian: two independent answers to one question."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models.shuffle import MIX, Shuffle
from cnnstudy.probes import mixing


def test_connections_of_a_convolution() -> None:
    assert mixing.grouped(4, 2, 2).tolist() == [[True, True, False, False], [False, False, True, True]]
    assert mixing.grouped(3, 3, 3).tolist() == np.eye(3, dtype=bool).tolist()
    assert mixing.grouped(3, 5).all()


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_graph_and_jacobian_agree_on_one_layer(groups: int) -> None:
    layer = nn.Conv2d(8, 16, 3, padding=1, groups=groups)
    found = mixing.channel_jacobian(layer, 8)
    assert (found["reaches"] == mixing.grouped(8, 16, groups)).all()
    assert found["share"] == 1 / groups
    assert (found["height"], found["width"], found["pixels"], found["same_pixel_only"]) == (3, 3, 9, False)
    by_hand = layer.weight.detach().double().square().sum((2, 3)).sqrt().numpy()  # of a linear layer the Jacobian is the kernel
    dense = np.zeros((16, 8))
    for out in range(16):
        first = out // (16 // groups) * (8 // groups)
        dense[out, first : first + 8 // groups] = by_hand[out]
    assert np.allclose(found["norm"], dense)


def test_depthwise_and_pointwise() -> None:
    depthwise = mixing.channel_jacobian(nn.Conv2d(6, 6, 3, padding=1, groups=6), 6)
    assert (depthwise["reaches"] == np.eye(6, dtype=bool)).all() and depthwise["pixels"] == 9
    pointwise = mixing.channel_jacobian(nn.Conv2d(6, 4, 1), 6)
    assert pointwise["reaches"].all() and pointwise["same_pixel_only"] and pointwise["pixels"] == 1
    assert mixing.linearity_error(nn.Conv2d(6, 4, 1, bias=False), 6) < 1e-14
    assert mixing.linearity_error(nn.Conv2d(6, 4, 1, bias=True), 6) > 1e-3  # a bias is not linear
    assert mixing.linearity_error(nn.ReLU(), 6) > 1e-2


@pytest.mark.parametrize(("g", "n"), list(itertools.product(range(1, 13), range(1, 13))))
def test_shuffle_is_torchs(g: int, n: int) -> None:
    order = mixing.shuffle_order(g * n, g)
    index = torch.arange(g * n, dtype=torch.float32).reshape(1, -1, 1, 1)
    assert nn.ChannelShuffle(g)(index).flatten().tolist() == order.tolist() == Shuffle(g * n, g)(index).flatten().tolist()
    assert sorted(order.tolist()) == list(range(g * n))
    assert order[mixing.shuffle_order(g * n, n)].tolist() == list(range(g * n))  # g, then n: back in order


@pytest.mark.parametrize(("groups", "layers", "between"), list(itertools.product((2, 3, 4, 8), (1, 2, 3), MIX)))
def test_graph_and_jacobian_agree_on_stacks(groups: int, layers: int, between: str) -> None:
    torch.manual_seed(0)
    model = mixing.grouped_stack(24, groups, layers, between)
    by_graph = mixing.stack_reach(24, groups, layers, between)
    assert (mixing.reachable(model, 24, size=5) == by_graph).all()
    found = mixing.channel_jacobian(model, 24, size=5)["reaches"]  # with real weights some ReLUs sleep
    assert found.any() and not (found & ~by_graph).any()


def test_groups_never_mix_without_help() -> None:
    for groups, layers in itertools.product((2, 3, 4, 8), range(1, 7)):
        for residual in (False, True):
            alone = mixing.between_groups(mixing.stack_reach(72, groups, layers, residual=residual), groups)
            assert (alone == np.eye(groups)).all()
        helped = mixing.between_groups(mixing.stack_reach(72, groups, layers, "shuffle"), groups)
        assert (helped > 0).all() == (layers > 1)


def test_a_residual_sum_brings_nothing_new() -> None:
    for between in MIX:
        plain, summed = (mixing.stack_reach(24, 4, 3, between, residual) for residual in (False, True))
        assert (summed == plain).all()


@pytest.mark.parametrize(("g", "n"), list(itertools.product(range(2, 13), range(1, 25))))
def test_sources_by_counting(g: int, n: int) -> None:
    """Group i of the next layer holds positions i n to i n + n - 1; position p comes from group p mod g."""
    seen = [{p % g for p in range(i * n, i * n + n)} for i in range(g)]
    found = mixing.sources(g, n)
    assert (found["least"], found["most"]) == (min(map(len, seen)), max(map(len, seen)))
    assert found["all"] == (n >= g) and found["equal"] == (n % g == 0)


def test_between_groups_gives_shares() -> None:
    reached = mixing.permutation([0, 2, 1, 3])
    assert mixing.between_groups(reached, 2).tolist() == [[0.25, 0.25], [0.25, 0.25]]
    assert mixing.chain(reached, reached).tolist() == np.eye(4, dtype=bool).tolist()
    found = mixing.channel_jacobian(Shuffle(12, 3), 12)
    assert (found["reaches"] == mixing.permutation(mixing.shuffle_order(12, 3))).all()


def test_model_is_left_as_found() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    mixing.channel_jacobian(model, 4)
    assert model.training and model[0].weight.dtype == torch.float32 and model[0].weight.requires_grad
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_refusals() -> None:
    with pytest.raises(Refused, match="10 channels do not divide into 3 groups"):
        mixing.shuffle_order(10, 3)
    with pytest.raises(Refused, match="4 inputs can't follow one with 3 outputs"):
        mixing.chain(np.ones((3, 3)), np.ones((2, 4)))
    with pytest.raises(Refused, match="unknown mixer 'shufle'"):
        mixing.stack_reach(8, 2, 2, "shufle")
    with pytest.raises(Refused, match="a module that gives a map"):
        mixing.channel_jacobian(nn.Flatten(), 3)
    with pytest.raises(Refused, match="at least one"):
        mixing.chain()
