"""Signal propagation against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy.config import Refused, canonical
from cnnstudy.models.chain import ACTIVATION, activation
from cnnstudy.probes.propagation import PropagationConfig, derivative, factors, gaussian_mean, length_map, per_layer, propagate, steps


def mean_log(values: list[float]) -> float:
    """Geometric mean over draws."""
    return float(np.exp(np.mean(np.log(values))))


def growth(name: str, draws: int = 4, **fields: object) -> float:
    """Factor per layer of a quantity, geometric mean over draws."""
    return mean_log([per_layer(propagate(PropagationConfig(**fields), seed)[name]) for seed in range(draws)])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("act", "init", "factor"),
    [("relu", "he", 1.0), ("relu", "lecun", 0.5), ("relu", "xavier", 0.5), ("identity", "xavier", 1.0), ("identity", "he", 2.0)],
)
@pytest.mark.parametrize("kind", ["fc", "conv"])
def test_factor_per_layer_forwards_and_backwards(kind: str, act: str, init: str, factor: float) -> None:
    fields = {"layers": kind, "act": act, "init": init, "depth": 8, "width": 256 if kind == "fc" else 48, "inputs": 8}
    # the first layer sees the whole normal distribution, all later ones half of it: E relu(z)^2 = E z^2 / 2
    expected = factor * (2 if act == "relu" else 1)
    found = [propagate(PropagationConfig(**fields), seed) for seed in range(6)]  # type: ignore[arg-type]
    close = 0.05 if kind == "fc" else 0.1  # neighbouring pixels agree more and more, so few channels average less
    assert mean_log([f["pre_second"][1] for f in found]) == pytest.approx(expected, rel=0.05)
    assert mean_log([per_layer(f["pre_second"][1:]) for f in found]) == pytest.approx(factor, rel=close)
    assert mean_log([per_layer(f["second"]) for f in found]) == pytest.approx(factor, rel=close)
    assert mean_log([1 / per_layer(f["gradient"]) for f in found]) == pytest.approx(factor, rel=close)


def test_gain_and_framework() -> None:
    assert growth("second", width=256, depth=6, gain=1.5) == pytest.approx(2.25, rel=0.05)
    found = [propagate(PropagationConfig(width=256, depth=12, init="framework"), seed) for seed in range(6)]
    # variance: q' = q / 6 + 1 / (3 fan_in), so that in the end there are only biases left
    assert mean_log([f["pre_second"][2] / f["pre_second"][1] for f in found]) == pytest.approx(1 / 6, rel=0.1)
    assert mean_log([f["pre_second"][-1] for f in found]) == pytest.approx(length_map("relu", 1 / 3, 60, 1 / 768)[-1], rel=0.15)
    assert mean_log([f["pre_second"][-1] for f in found]) == pytest.approx(1 / 768 / (1 - 1 / 6), rel=0.15)
    assert all(f["input_variance"][-1] < 1e-4 * f["pre_second"][-1] for f in found)


def test_rectangular_layers_under_xavier() -> None:
    fields = {"act": "identity", "init": "xavier", "depth": 1, "width": 256, "inputs": 64}
    forwards = {s: growth("variance", 6, shape=s, **fields) for s in ("square", "wider", "narrower")}
    backwards = {s: 1 / growth("gradient", 6, shape=s, **fields) for s in ("square", "wider", "narrower")}
    # fan_in 2 / (fan_in + fan_out) forwards, fan_out 2 / (...) backwards
    assert forwards == pytest.approx({"square": 1.0, "wider": 2 / 3, "narrower": 4 / 3}, rel=0.03)
    assert backwards == pytest.approx({"square": 1.0, "wider": 4 / 3, "narrower": 2 / 3}, rel=0.03)
    both = propagate(PropagationConfig(act="identity", init="xavier", depth=4, width=256, shape="wider"))
    assert steps(both["second"]) == pytest.approx([2 / 3, 4 / 3, 2 / 3, 4 / 3], rel=0.15)


def arc_cosine(c: float) -> float:
    """Correlation after one ReLU layer (Cho & Saul 2009, kernel of degree 1)."""
    angle = math.acos(min(c, 1.0))
    return (math.sin(angle) + (math.pi - angle) * c) / math.pi


@pytest.mark.parametrize("correlation", [0.0, 0.5, -0.5, 0.9])
def test_cosine_of_two_inputs_follows_the_arc_cosine_kernel(correlation: float) -> None:
    cfg = PropagationConfig(depth=6, width=1024, inputs=32, correlation=correlation)
    found = np.mean([propagate(cfg, seed)["cosine"] for seed in range(2)], axis=0)
    expected = [correlation]
    for _ in range(6):
        expected.append(arc_cosine(expected[-1]))
    assert found == pytest.approx(expected, abs=0.03)
    one = propagate(cfg)
    assert one["pre_cosine"][2] == pytest.approx(one["cosine"][1], abs=0.05)  # a linear map keeps the angle


def test_orthogonal_identity_layers_keep_everything() -> None:
    found = propagate(PropagationConfig(act="identity", init="orthogonal", gain=2**-0.5, depth=10, width=64))
    for name in ("second", "pre_second", "gradient", "cosine"):
        assert found[name] == pytest.approx(found[name][0] * np.ones(11), rel=1e-9)
    assert found["gradient"][0] == pytest.approx(found["gradient"][-1], rel=1e-9)


def test_moments_are_told_apart() -> None:
    found = propagate(PropagationConfig(act="sigmoid", init="xavier", depth=1, width=512, inputs=64))
    exact = factors("sigmoid")
    assert found["second"][1] == pytest.approx(exact["second"], rel=0.02)
    assert found["mean"][1] == pytest.approx(0.5, rel=0.02)
    assert found["variance"][1] == pytest.approx(exact["variance"], rel=0.1)
    assert found["pre_gradient"][1] == pytest.approx(exact["derivative_second"], rel=0.1)
    assert found["gradient"][1] == pytest.approx(1, rel=0.05)
    # the top gradient g sees f', then the weights: E f'^2
    assert found["gradient"][0] == pytest.approx(exact["derivative_second"], rel=0.1)


@pytest.mark.parametrize(("skip", "factor"), [("preact", 2.0), ("layer", None), ("block", None)])
def test_residual_growth_without_norm(skip: str, factor: float | None) -> None:
    found = [propagate(PropagationConfig(skip=skip, depth=8, width=256, inputs=8), seed) for seed in range(4)]
    growth_per_block = mean_log([per_layer(f["second"][2:]) for f in found])
    if factor:  # h' = h + V f(W f(h)): E h'^2 = E h^2 + 2 E f(W f(h))^2 = E h^2 (1 + 2/2 2/2)
        assert growth_per_block == pytest.approx(factor * 1.0, rel=0.15)
    else:
        assert growth_per_block > 1.5
    assert mean_log([1 / per_layer(f["gradient"]) for f in found]) > 1.3


def test_zeros_around_the_map_lose_signal() -> None:
    ring, zeros = (growth("second", 6, layers="conv", width=32, depth=6, inputs=4, padding=p) for p in ("circular", "zeros"))
    taps = (np.eye(8) + np.eye(8, k=1) + np.eye(8, k=-1)) / 3  # a pixel of the next map sees so much of its neighbours along a side
    expected = np.linalg.matrix_power(taps, 6).sum(1).mean() ** 2  # the same for rows and columns
    assert ring == pytest.approx(1, rel=0.06)
    assert zeros == pytest.approx(expected ** (1 / 6), rel=0.04)
    one = growth("second", 6, layers="conv", width=32, depth=1, inputs=8, padding="zeros")
    assert one == pytest.approx((22 / 24) ** 2, rel=0.03)  # 22 of 24 taps of a row fall on the map


def test_a_draw_repeats_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    one, two, other = (propagate(PropagationConfig(width=16, depth=3), seed)["second"] for seed in (0, 0, 1))
    assert np.array_equal(one, two) and not np.array_equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", ["fc", "conv"])
@pytest.mark.parametrize("skip", ["none", "layer", "block", "preact"])
def test_every_array_has_an_entry_per_layer(kind: str, skip: str) -> None:
    found = propagate(PropagationConfig(layers=kind, skip=skip, act="identity", init="lecun", width=8, depth=2, side=4, inputs=2))
    assert all(v.shape == (3,) and np.isfinite(v).all() for v in found.values())
    assert found["gradient"][0] == found["pre_gradient"][0] > 0
    if skip == "none":
        assert found["gradient"] == pytest.approx(found["pre_gradient"], rel=1e-12)


@pytest.mark.parametrize("slope", [0.0, 0.01, 0.1, 0.2, 0.3])
def test_factors_of_leaky_relu(slope: float) -> None:
    found = factors("leaky", slope)
    half = (1 + slope**2) / 2
    mean = (1 - slope) / math.sqrt(2 * math.pi)
    expected = {
        "mean": mean, "second": half, "variance": half - mean**2, "derivative_second": half,
        "gain": half**-0.5, "gradient_gain": half**-0.5, "he": 2 * half,
    }  # fmt: skip
    assert found == pytest.approx(expected, rel=1e-10)


def test_factors_of_the_others() -> None:
    relu = factors("relu")
    assert relu["variance"] == pytest.approx(0.5 - 1 / (2 * math.pi), rel=1e-10)
    assert factors("identity") == pytest.approx(
        {"mean": 0, "second": 1, "variance": 1, "derivative_second": 1, "gain": 1, "gradient_gain": 1, "he": 2}, abs=1e-10
    )
    assert factors("sigmoid")["mean"] == pytest.approx(0.5, rel=1e-12)
    # E gelu(x) = E x Phi(x) = 1 / (2 sqrt(pi)), by parts
    assert factors("gelu")["mean"] == pytest.approx(1 / (2 * math.sqrt(math.pi)), rel=1e-10)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000_000, generator=generator, dtype=torch.float64)
    for act in ACTIVATION:
        assert factors(act)["second"] == pytest.approx(float(activation(act)(x).square().mean()), rel=0.01)
        assert factors(act, variance=9.0)["second"] == pytest.approx(float(activation(act)(3 * x).square().mean()), rel=0.01)
        assert factors(act)["derivative_second"] == pytest.approx(float(derivative(activation(act), x).square().mean()), rel=0.01)


def test_gaussian_mean() -> None:
    assert gaussian_mean(lambda x: x**4, 4.0) == pytest.approx(3 * 16, rel=1e-10)
    assert gaussian_mean(torch.ones_like, 1e-6) == pytest.approx(1, rel=1e-10)
    assert gaussian_mean(lambda x: (x > 3).double()) == pytest.approx(0.5 * math.erfc(3 / math.sqrt(2)), rel=1e-10)


def test_derivative_at_points() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    assert derivative(nn.ReLU(), x).tolist() == [0, 0, 1]
    assert derivative(nn.Identity(), x).tolist() == [1, 1, 1]
    assert derivative(nn.Sigmoid(), x)[1] == pytest.approx(0.25)


def test_length_map_of_relu_is_geometric() -> None:
    assert length_map("relu", 2.0, 5) == pytest.approx(np.ones(6), rel=1e-9)
    assert length_map("relu", 1.0, 4, start=3.0) == pytest.approx(3 * 0.5 ** np.arange(5), rel=1e-9)
    assert length_map("relu", 1.0, 1, biases=0.25) == pytest.approx([1, 0.75], rel=1e-9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": "rnn"}, "unknown layers 'rnn'; valid: fc, conv"),
        ({"inputs": 3}, "inputs 3 is not valid; an even number"),
        ({"depth": 0}, "depth 0"),
        ({"gain": -1.0}, "gain -1.0 must be above 0"),
        ({"correlation": 2.0}, "correlation 2.0 between -1 and 1"),
        ({"skip": "layer", "shape": "wider"}, "skip 'layer' needs shape 'square'"),
        ({"init": "delta_orthogonal"}, "is for convolutions"),
        ({"init": "hee"}, "unknown init 'hee' .did you mean he"),
        ({"padding": "same"}, "unknown padding"),
        ({"shape": "round"}, "unknown shape"),
        ({"skip": "all"}, "unknown skip"),
    ],
)
def test_refusals(fields: dict, message: str) -> None:
    with pytest.raises(Refused, match=message):
        PropagationConfig(**fields)


def test_the_config_survives_its_canonical_form() -> None:
    cfg = PropagationConfig(act="leaky", slope=0.2, gain=2.0)
    form = canonical(cfg)
    assert form.pop("kind") == "Propagation"
    assert PropagationConfig(**form) == cfg
