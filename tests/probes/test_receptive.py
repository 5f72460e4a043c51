"""Receptive fields: closed form against brute force, effective fields against binomial convolution."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import ImageNetConfig, MobileNetV2Config, ResNetConfig, build
from cnnstudy.probes import receptive


def convs(kernels: list[int], strides: list[int], paddings: list[int], dilations: list[int], channels: int = 2) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (k, s, p, d) in enumerate(zip(kernels, strides, paddings, dilations, strict=True)):
        layers += [nn.Conv2d(channels if i else 3, channels, k, s, p, d), nn.ReLU()]
    return nn.Sequential(*layers)


@pytest.mark.parametrize(("k", "n"), list(itertools.product(range(1, 9), (1, 3, 5, 7))))
def test_formula_of_plain_stacks(k: int, n: int) -> None:
    """k stacked n x n filters see k (n - 1) + 1 pixels, by formula and by gradient."""
    field = receptive.stack([n] * k)[-1]
    assert field == {"size": k * (n - 1) + 1, "jump": 1, "start": 0}
    model = convs([n] * k, [1] * k, [n // 2] * k, [1] * k)
    found = receptive.support(model, 61)
    assert found["height"] == found["width"] == field["size"] and found["pixels"] == field["size"] ** 2


@pytest.mark.parametrize(
    ("kernels", "strides", "paddings", "dilations"),
    [
        ([3, 3, 3], [2, 1, 1], [1, 1, 1], [1, 1, 1]),
        ([7, 3, 3], [2, 2, 1], [3, 1, 1], [1, 1, 1]),
        ([3, 3], [1, 1], [0, 2], [1, 2]),
        ([5, 3, 2], [3, 1, 2], [0, 1, 0], [1, 3, 1]),
    ],
)
def test_strides_paddings_and_dilations(kernels: list[int], strides: list[int], paddings: list[int], dilations: list[int]) -> None:
    size = 65
    model = convs(kernels, strides, paddings, dilations)
    field = receptive.stack(kernels, strides, paddings, dilations)[-1]
    found = receptive.support(model, size)
    assert found["height"] == field["size"]
    with torch.no_grad():
        unit = model(torch.zeros(1, 3, size, size)).shape[2] // 2
    assert found["top"] + (found["height"] - 1) / 2 == field["start"] + unit * field["jump"]
    walked = receptive.of_network(model, size).iloc[-1]
    assert (walked["size"], walked["jump"], walked["start"]) == (field["size"], field["jump"], field["start"])


def test_a_dilated_filter_has_holes() -> None:
    assert receptive.support(convs([3], [1], [2], [2]), 15)["pixels"] == 9


def test_vgg16_as_published() -> None:
    """5x5, 14x14 with pooling, ... 212 after the last pooling: as the usual calculators print for VGG-16."""
    rows = receptive.of_network(ImageNetConfig("vgg16"), 224).set_index("module")
    pools = rows.loc[[f"features.{i}" for i in (4, 9, 16, 23, 30)]]
    assert pools["size"].tolist() == [6, 16, 44, 100, 212]
    assert pools["jump"].tolist() == [2, 4, 8, 16, 32]
    assert rows.loc["features.2", "size"] == 5
    assert rows.loc["", "whole"] and rows.loc["pre_logits.fc1", "size"] == 212 + 6 * 32


def test_resnets_as_published() -> None:
    """ResNet-50: 483 pixels before the pooling; ResNet-101: 1027 (Araujo et al. 2019, Distill, table 1: v1 models)."""
    for name, size in (("resnet50", 483), ("resnet101", 1027)):
        rows = receptive.of_network(ImageNetConfig(name, ("stride_in_1x1",)), 224).set_index("module")
        assert rows.loc["layer4", "size"] == size
        assert rows.loc["layer4", "jump"] == 32


@pytest.mark.parametrize("cfg", [ResNetConfig(depth=8), MobileNetV2Config()])
def test_whole_networks_by_brute_force(cfg: object) -> None:
    model = build(cfg)
    rows = receptive.of_network(model, 32).set_index("module")
    checked = 0
    for name, row in rows.iterrows():
        if not row["whole"] and row["size"] < 32 and row["jump"] < 4 and name:
            out = receptive.support(model, 96, str(name))
            assert (out["height"], out["width"]) == (row["size"], row["size"]), name
            checked += 1
    assert checked > 5


def test_gates_see_everything_if_asked() -> None:
    cfg = ImageNetConfig("mobilenetv3_small_100")
    maps, gated = (receptive.of_network(cfg, 224, gates).set_index("module") for gates in (False, True))
    assert not maps.loc["blocks.5.0", "whole"] and gated.loc["blocks.0.0", "whole"]
    assert maps.loc["classifier", "whole"]


def binomial(depth: int, width: int) -> np.ndarray:
    taps = np.ones(1)
    for _ in range(depth):
        taps = np.convolve(taps, np.ones(width))
    return taps


@pytest.mark.parametrize(("depth", "width"), [(1, 2), (4, 2), (9, 2), (5, 3)])
def test_a_linear_stack_is_a_binomial_convolution(depth: int, width: int) -> None:
    """One dimension, all weights 1: the gradient is (1, ..., 1) convolved with itself; for width 2 Pascal's triangle."""
    layers = [nn.Conv2d(1, 1, (1, width), padding=(0, width // 2), bias=False) for _ in range(depth)]
    for layer in layers:
        nn.init.ones_(layer.weight)
    energy = receptive.effective(nn.Sequential(*layers).double(), torch.randn(1, 1, 1, 41).double())
    root = np.sqrt(energy[0])
    expected = binomial(depth, width)
    found = root[root > 1e-12]
    assert np.allclose(found / found.sum(), expected / expected.sum())
    if width == 2:
        assert np.allclose(expected, [math.comb(depth, i) for i in range(depth + 1)])


def test_width_grows_with_the_root_of_depth() -> None:
    """Luo et al. 2016, section 2: sigma of the gradient of n layers of k x k with equal weights is sqrt(n (k^2 - 1) / 12)."""

    def gradient(depth: int) -> np.ndarray:
        model = nn.Sequential(*(nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(depth))).double()
        for layer in model:
            nn.init.ones_(layer.weight)
        root: np.ndarray = np.sqrt(receptive.effective(model, torch.randn(1, 1, 81, 81).double()))
        return root

    for depth in (4, 16):
        found = receptive.measures(gradient(depth), 2 * depth + 1)
        assert found["sigma"] == pytest.approx(math.sqrt(depth * 8 / 12), rel=1e-6)
        assert found["sigma_fit"] == pytest.approx(found["sigma"], rel=0.05)
        assert (found["fit_r2"] or 0) > 0.99


def test_random_stacks_match_luo_et_al() -> None:
    """Random normal weights, linear: E[g^2] of one layer is uniform over its 3 x 3, so the energy is the convolution of uniform ones."""

    def make(seed: int) -> nn.Module:
        layers = [nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1, bias=False) for i in range(3)]
        for layer in layers:
            nn.init.normal_(layer.weight)
        return nn.Sequential(*layers)

    energy = receptive.effective_over_seeds(make, (3, 11, 11), range(150))
    expected = np.zeros((11, 11))
    expected[2:9, 2:9] = np.outer(binomial(3, 3), binomial(3, 3))
    expected /= expected.sum()
    assert np.abs(energy - expected).max() < 0.12 * expected.max()
    assert receptive.measures(energy, 7)["sigma"] == pytest.approx(math.sqrt(3 * 8 / 12), rel=0.06)


def test_measures_by_hand() -> None:
    spot = np.zeros((9, 9))
    spot[4, 4] = 2.0
    assert receptive.measures(spot, 3) == {
        "radius95": 0, "sigma": 0, "sigma_fit": None, "fit_r2": None, "central_share": 1, "side": 1, "area_share": 1 / 9,
    }  # fmt: skip
    flat = np.zeros((11, 11))
    flat[3:8, 3:8] = 1.0
    found = receptive.measures(flat, 5)
    assert found["sigma"] == pytest.approx(math.sqrt(2))  # variance of 5 equal steps: (25 - 1) / 12
    assert found["central_share"] == pytest.approx(9 / 25)
    assert (found["side"], found["area_share"]) == (5, 1)
    assert found["radius95"] == pytest.approx(math.sqrt(8))  # 24 of 25 pixels are 96 %: the corners, all at one distance, are needed
    with pytest.raises(Refused, match="map"):
        receptive.measures(np.zeros((3, 3)))


def test_gaussian_is_recovered() -> None:
    at = np.arange(61) - 30
    bell = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 4.0**2))
    found = receptive.measures(bell, 61)
    assert found["sigma_fit"] == pytest.approx(4, rel=1e-3) and found["sigma"] == pytest.approx(4, rel=1e-3)
    assert found["radius95"] == pytest.approx(4 * math.sqrt(-2 * math.log(0.05)), abs=0.5)


def test_effective_field_of_a_layer_inside() -> None:
    model = build(ResNetConfig(depth=8))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.rand(4, 3, 32, 32)
    energy = receptive.effective(model, x, "stages.0")
    assert energy.shape == (32, 32) and energy.sum() == pytest.approx(1)
    rows = receptive.of_network(model, 32).set_index("module")
    side = int(rows.loc["stages.0", "size"])
    touched = np.argwhere(energy > 0)
    assert (touched.max(0) - touched.min(0) + 1 <= side).all()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    assert x.grad is None and not x.requires_grad


def test_refusals() -> None:
    model = build(ResNetConfig(depth=8))
    with pytest.raises(Refused, match="no module 'layer9'"):
        receptive.effective(model, torch.rand(1, 3, 32, 32), "layer9")
    with pytest.raises(Refused, match="a layer with a map"):
        receptive.effective(model, torch.rand(1, 3, 32, 32))
    with pytest.raises(Refused, match="2 strides for 3 kernels"):
        receptive.stack([3, 3, 3], [1, 2])
    with pytest.raises(Refused, match="at least one seed"):
        receptive.effective_over_seeds(lambda s: model, (3, 32, 32), [])
