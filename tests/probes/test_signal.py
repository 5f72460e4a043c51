"""The loss gradient at each block against gradients taken by hand, and what the probe leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cnnstudy.config import Refused
from cnnstudy.models import build
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.probes.signal import block_gradients, stage_ratios


@pytest.mark.parametrize("skip", [True, False])
def test_norms_are_those_of_gradients_taken_by_finite_differences(skip: bool) -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=14, width=4, skip=skip)).double()
    x, y = torch.rand(4, 3, 8, 8, dtype=torch.float64), torch.arange(4)
    profile = block_gradients(model, x, y)
    assert [len(stage) for stage in profile] == [2, 2, 2]
    model.train()
    with torch.no_grad():  # from the output of the second stage's first block on, by hand
        z = model.stages[1][0](model.stages[0](model.stem(model.normalize(x))))

        def loss(z: torch.Tensor) -> float:
            rest = model.stages[2](model.stages[1][1](z))
            return float(F.cross_entropy(model.head(model.final(rest).mean((2, 3))), y))

        gradient, eps = torch.zeros_like(z), 1e-6
        for i in np.ndindex(*z.shape):
            step = torch.zeros_like(z)
            step[i] = eps
            gradient[i] = (loss(z + step) - loss(z - step)) / (2 * eps)
    assert profile[1][0] == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_ratio_is_first_over_last_and_no_number_is_lost() -> None:
    assert stage_ratios([np.array([2.0, 3.0, 4.0]), np.array([5.0])]) == [0.5, 1.0]
    assert stage_ratios([np.array([np.inf, 1.0])]) == [1e38]


def test_the_model_is_left_as_it_was() -> None:
    model = build(ResNetConfig(depth=8, width=4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    block_gradients(model, torch.rand(4, 3, 8, 8), torch.arange(4))
    assert not model.training and all(p.grad is None for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_network_without_stages_is_refused() -> None:
    with pytest.raises(Refused, match="no stages"):
        block_gradients(torch.nn.Conv2d(3, 4, 1), torch.rand(1, 3, 4, 4), torch.zeros(1).long())
