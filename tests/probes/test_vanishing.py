"""Derivatives, decay with depth, the printed chain rule, a diagnosis scored."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.models import ChainConfig, build
from cnnstudy.probes.vanishing import confusion, decay, derivative_summary, printed_chain


def test_derivatives_of_three_activations() -> None:
    sigmoid, tanh, relu = (derivative_summary(name) for name in ("sigmoid", "tanh", "relu"))
    assert sigmoid["max_derivative"] == pytest.approx(0.25, abs=1e-12) and sigmoid["at"] == pytest.approx(0, abs=1e-6)
    assert not sigmoid["reaches_one"] and sigmoid["closed_difference"] < 1e-12
    assert tanh["at_zero"] == 1.0 and tanh["reaches_one"] and tanh["closed_difference"] < 1e-12
    assert tanh["above_09"] == pytest.approx(2 * math.atanh(math.sqrt(0.1)), abs=2e-3)
    assert relu["max_derivative"] == 1.0 and sigmoid["above_09"] == 0.0


def test_decay_finds_a_line_and_only_a_line() -> None:
    depths = [5, 10, 20, 40]
    line = [[-0.2 * d / math.log(10) for d in depths]] * 2
    found = decay(depths, line)
    assert found["slope"] == pytest.approx(-0.2) and found["r2"] == pytest.approx(1) and found["vanishes"] and not found["explodes"]
    noise = np.random.default_rng(0).standard_normal((5, 4))
    assert not decay(depths, noise)["vanishes"]
    assert decay(depths, (0.01 * np.array(depths) + 0.001 * noise).tolist())["explodes"]
    assert not decay(depths, (-0.04 * np.array(depths) + 0.001 * noise).tolist())["vanishes"]  # 0.092 nats a layer: too slow
    with pytest.raises(Refused):
        decay([5, 5], [[1.0, 2.0], [1.0, 2.0]])


def test_interval_of_the_decay_is_that_of_least_squares() -> None:
    linregress = pytest.importorskip("scipy.stats").linregress
    depths, rng = [5, 10, 20, 40], np.random.default_rng(1)
    values = -0.1 * np.array(depths) + rng.standard_normal((3, 4))
    theirs = linregress(np.tile(depths, 3), values.ravel() * math.log(10))
    ours = decay(depths, values.tolist())
    assert ours["slope"] == pytest.approx(theirs.slope) and ours["r2"] == pytest.approx(theirs.rvalue**2)
    assert (ours["slope_high"] - ours["slope"]) / theirs.stderr == pytest.approx(2.2281, abs=1e-3)  # t of 10 degrees of freedom


def test_the_printed_product_is_the_gradient_at_the_first_layer_not_at_its_weights() -> None:
    model = build(ChainConfig(depth=4, width=4, stages=1, act="tanh", norm="none"))
    found = printed_chain(model, torch.rand(1, 3, 8, 8), torch.tensor([3]))
    assert not found["same_shape"] and (found["printed_size"], found["weight_size"]) == (256, 108)
    assert found["printed_difference"] == 1.0
    assert found["layer_difference"] < 1e-12 and found["completed_difference"] < 1e-12
    with pytest.raises(Refused):
        printed_chain(build(ChainConfig(depth=4, width=4, stages=1)), torch.rand(1, 3, 8, 8), torch.tensor([3]))


def test_balanced_accuracy() -> None:
    found = confusion([True, True, False, False], [True, False, False, False])
    assert found["balanced_accuracy"] == pytest.approx((1 + 2 / 3) / 2) and found["false_alarms"] == 1 and found["missed"] == 0
    with pytest.raises(Refused):
        confusion([True], [True])
