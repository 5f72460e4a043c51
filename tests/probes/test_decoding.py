"""Linear decoding against scikit-free algebra: what is there is found, what is not is not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.models import DenseConfig, ResNetConfig, build
from cnnstudy.probes import decoding
from cnnstudy.probes.lesions import Gone


def test_r2_is_that_of_least_squares() -> None:
    torch.manual_seed(0)
    x, w = torch.randn(400, 5, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    y = x @ w + 0.7 * torch.randn(400, 3, dtype=torch.float64) + 2
    fit, held = slice(0, 300), slice(300, 400)
    design = np.column_stack([x[fit].numpy(), np.ones(300)])
    solved = np.linalg.lstsq(design, y[fit].numpy(), rcond=None)[0]
    error = ((np.column_stack([x[held].numpy(), np.ones(100)]) @ solved - y[held].numpy()) ** 2).sum()
    wanted = 1 - error / ((y[held] - y[held].mean(0)) ** 2).sum()
    assert decoding.ridge_r2(x[fit], y[fit], x[held], y[held]) == pytest.approx(float(wanted), abs=1e-6)
    assert decoding.ridge_r2(x[fit], x[fit] @ w, x[held], x[held] @ w) == pytest.approx(1)
    noise = torch.randn(400, 5, dtype=torch.float64)
    assert decoding.ridge_r2(noise[fit], y[fit], noise[held], y[held]) < 0.05


def test_a_dense_block_keeps_its_input() -> None:
    torch.manual_seed(0)
    table = decoding.stages(build(DenseConfig(22, 4)), torch.rand(30, 3, 16, 16), torch.rand(20, 3, 16, 16))
    assert table[["stage", "distance"]].values.tolist() == [[s, d] for s in (1, 2, 3) for d in (1, 2, 3)]
    assert table["r2"].min() > 1 - 1e-6


def test_silent_branches_keep_it_and_plain_blocks_lose_it() -> None:
    """With silent branches a residual stage hands its input on (through ReLUs that change nothing: it is not negative)."""
    torch.manual_seed(0)
    x, held = torch.rand(40, 3, 16, 16), torch.rand(30, 3, 16, 16)
    silent = build(ResNetConfig(20, 4))
    for block in silent.blocks():
        block.branch = Gone()
    kept = decoding.summary(silent, x, held)
    assert kept["end_r2_min"] > 1 - 1e-6 and kept["distance"] == [1, 2, 3] * 3
    lost = decoding.summary(build(ResNetConfig(20, 4, skip=False)), x, held)
    assert lost["end_r2_max"] < 0.9 and lost["end_r2_1"] == lost["r2"][2]
    table = decoding.stages(build(ResNetConfig(20, 4, skip=False)), x, held)
    falls = [b < a for stage in (1, 2, 3) for a, b in itertools.pairwise(table[table["stage"] == stage]["r2"])]
    assert len(falls) == 6 and 0 < decoding.fall_share(table) == sum(falls) / 6


def test_left_as_it_was_and_refused() -> None:
    model = build(ResNetConfig(8, 4)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    decoding.stages(model, torch.rand(4, 3, 16, 16), torch.rand(4, 3, 16, 16))
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(Refused, match="no stages"):
        decoding.stages(torch.nn.Conv2d(3, 3, 1), torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4))
