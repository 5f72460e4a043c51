"""The switchable parts: shortcuts, initialisations, blocks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from cnnstudy.layers import (
    CIFAR_MEAN,
    CIFAR_STD,
    Normalize,
    SubsamplePad,
    conv3x3,
    init_weights,
    scale_branch,
    scaled_width,
    shortcut,
)
from cnnstudy.models import ResNetConfig, build


def test_normalize_by_hand() -> None:
    x = torch.tensor([0.25, 0.5, 1.0]).view(1, 3, 1, 1)
    expected = [(v - m) / s for v, m, s in zip([0.25, 0.5, 1.0], CIFAR_MEAN, CIFAR_STD, strict=True)]
    torch.testing.assert_close(Normalize()(x).flatten(), torch.tensor(expected))
    assert list(Normalize().state_dict()) == []  # constants of the data set, not weights


def test_option_a_subsamples_and_pads_with_zeros() -> None:
    x = torch.rand(2, 4, 6, 6)
    y = SubsamplePad(4, 8, 2)(x)
    assert y.shape == (2, 8, 3, 3)
    assert torch.equal(y[:, 2:6], x[:, :, ::2, ::2])
    assert not y[:, :2].any() and not y[:, 6:].any()


def test_shortcut_is_the_identity_where_shapes_agree() -> None:
    assert isinstance(shortcut("B", 8, 8, 1, "batch"), nn.Identity)
    assert [p.shape for p in shortcut("B", 8, 16, 2, "none").parameters()] == [(16, 8, 1, 1), (16,)]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("preact", [True, False])
def test_block_is_what_it_says(skip: bool, preact: bool) -> None:
    block = build(ResNetConfig(skip=skip, preact=preact)).eval().blocks()[3]  # the first of the second stage
    x = torch.randn(2, 16, 8, 8)
    b = block.branch
    pre = [b.norm1, torch.relu, b.conv1, b.norm2, torch.relu, b.conv2]
    post = [b.conv1, b.norm1, torch.relu, b.conv2, b.norm2]
    y = x
    for part in pre if preact else post:
        y = part(y)
    if skip:
        y[:, 8:24] += x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), y if preact else y.relu())


def test_he_has_the_variance_it_names() -> None:
    conv = init_weights(nn.Conv2d(64, 256, 3), "he")
    assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.02)
    assert not conv.bias.any()


def test_normal_has_the_deviation_it_names_and_takes_linear_layers() -> None:
    model = init_weights(nn.Sequential(nn.Conv2d(64, 64, 3), nn.Linear(100, 100)), "normal")
    assert model[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model[1].weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_framework_draws_as_torch_does() -> None:
    torch.manual_seed(0)
    drawn = nn.Conv2d(8, 8, 3).weight.clone()
    torch.manual_seed(0)
    again = nn.Conv2d(8, 8, 3)
    torch.manual_seed(0)
    assert torch.equal(init_weights(again, "framework").weight, drawn)


def test_delta_orthogonal_keeps_the_norm() -> None:
    conv = init_weights(nn.Conv2d(16, 32, 3, padding=1), "delta_orthogonal")
    x = torch.randn(2, 16, 5, 5)
    ratio = conv(x).norm() / x.norm()
    assert ratio.item() == pytest.approx(math.sqrt(2), rel=1e-5)  # the gain that a ReLU halves again
    depthwise = init_weights(nn.Conv2d(8, 8, 3, padding=1, groups=8), "delta_orthogonal")
    x = torch.randn(2, 8, 5, 5)
    torch.testing.assert_close(depthwise(x).abs(), math.sqrt(2) * x.abs())


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("preact", [True, False])
def test_zero_branch_starts_as_the_shortcut(norm: str, preact: bool) -> None:
    block = build(ResNetConfig(norm=norm, preact=preact, init="zero_branch")).blocks()[0]
    x = torch.rand(4, 16, 8, 8)
    assert torch.equal(block(x), x)  # x is not negative, so that the ReLU after the sum changes nothing


@pytest.mark.parametrize(("norm", "preact", "part"), [("batch", False, "norm2"), ("none", False, "conv2"), ("batch", True, "conv2")])
def test_scaled_branch_scales_the_last_parameters(norm: str, preact: bool, part: str) -> None:
    torch.manual_seed(0)
    full = build(ResNetConfig(norm=norm, preact=preact)).blocks()[2].branch.get_submodule(part).weight
    torch.manual_seed(0)
    scaled = build(ResNetConfig(norm=norm, preact=preact, init="scaled_branch")).blocks()[2].branch.get_submodule(part)
    torch.testing.assert_close(scaled.weight, full / 3)  # 9 blocks in ResNet-20


def test_scale_branch_takes_the_last_module_with_weights() -> None:
    branch = nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU())
    first, last = branch[0].weight.clone(), branch[2].weight.clone()
    scale_branch(branch, "scaled_branch", 4)
    assert torch.equal(branch[0].weight, first) and torch.equal(branch[2].weight, last / 2)


def test_separable_has_a_depthwise_and_a_pointwise_layer() -> None:
    convs = [m for m in conv3x3(8, 16, 2, "batch", separable=True).modules() if isinstance(m, nn.Conv2d)]
    assert [(c.groups, c.kernel_size, c.stride) for c in convs] == [(8, (3, 3), (2, 2)), (1, (1, 1), (1, 1))]


def test_scaled_width_in_steps_of_four() -> None:
    cases = {(16, 1.0): 16, (24, 0.5): 12, (30, 1.0): 32, (16, 0.01): 4, (96, 1.75): 168}
    assert {case: scaled_width(*case) for case in cases} == cases
