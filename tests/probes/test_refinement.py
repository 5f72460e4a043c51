"""Refinement of networks whose blocks are made to do nothing, to overwhelm their input, or to replace it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.models import ResNetConfig, build
from cnnstudy.probes.refinement import refinement
from cnnstudy.train import evaluate


def net(scale: float, skip: bool = True) -> nn.Module:
    """Each branch ends in a norm whose scale is ``scale`` and whose shift is 0."""
    torch.manual_seed(0)
    made = build(ResNetConfig(20, 4, skip=skip)).eval()
    for block in made.blocks():
        nn.init.constant_(block.branch.norm2.weight, scale)
    return made


X, Y = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(1)), torch.arange(40) % 10


def test_small_branches_refine_and_cost_nothing() -> None:
    found = refinement(net(1e-4), X[:10], X, Y)
    assert found["refined_share"] == 1 and found["ratio"] < 1e-2 and found["cosine"] > 0.99
    assert abs(found["cost"]) < 0.05 and abs(found["swap"]) < 0.05
    assert len(found["costs"]) == 9 and found["identity"] == [True, True, True, False, True, True, False, True, True]


def test_huge_branches_replace() -> None:
    found = refinement(net(1e3), X[:10], X, Y)
    assert found["refined_share"] == 0 and found["ratio"] > 1
    assert len(found["cosines"]) == 7


def test_costs_are_those_of_the_network_without_the_block() -> None:
    model = net(1.0)
    found = refinement(model, X[:10], X, Y)
    whole = evaluate(model, X, Y)["acc"]
    nn.init.zeros_(model.blocks()[4].branch.norm2.weight)  # silent: what deleting it does
    assert found["costs"][4] == pytest.approx(whole - evaluate(model, X, Y)["acc"])


def test_plain_networks_have_an_angle_only() -> None:
    found = refinement(net(1.0, skip=False), X[:10], X, Y)
    assert set(found) == {"cosine", "cosines"} and len(found["cosines"]) == 7 and -1 <= found["cosine"] <= 1
