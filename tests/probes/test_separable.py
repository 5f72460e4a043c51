"""Separable layers against counts by hand, against convolutions that really run, and against known matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import CounterfactualConfig, ResNetConfig, build
from cnnstudy.probes import separable


def test_the_sources_example() -> None:
    """3x3, 64 -> 128: 73,728 weights dense, 8,768 separable; the same number of MACs per output position."""
    found = separable.against_dense(3, 64, 128)
    assert (found["dense_weights"], found["separable_weights"]) == (73_728, 8_768) == (found["dense_macs"], found["separable_macs"])
    assert found["dense_error"] == found["separable_error"] == 0
    assert found["reduction"] == pytest.approx(1 / (1 / 128 + 1 / 9), rel=1e-12) and found["ratio_error"] < 1e-12
    assert found["reduction_norm"] == pytest.approx((73_728 + 256) / (8_768 + 128 + 256), rel=1e-12)


def test_a_stride_changes_nothing_per_output_position_unless_it_comes_late() -> None:
    for kernel, c_in, c_out in ((3, 16, 32), (5, 24, 8)):
        one, two = separable.against_dense(kernel, c_in, c_out), separable.against_dense(kernel, c_in, c_out, stride=2)
        assert (two["dense_macs"], two["separable_macs"]) == (one["dense_macs"], one["separable_macs"])
        assert one["late_stride_macs"] == one["separable_macs"]
        assert two["late_stride_macs"] == 4 * kernel**2 * c_in + c_in * c_out


@pytest.mark.parametrize(("kernel", "c_in", "c_out", "stride"), [(2, 8, 8, 1), (3, 0, 8, 1), (3, 8, 8, 3)])
def test_what_is_no_layer_is_refused(kernel: int, c_in: int, c_out: int, stride: int) -> None:
    with pytest.raises(Refused, match="must be at least 1"):
        separable.against_dense(kernel, c_in, c_out, stride)


def test_least_width() -> None:
    assert separable.least_width(8) == 72  # 9 * 72 / 81 = 8 exactly
    assert [c for c in range(1, 200) if 1 / (1 / c + 1 / 9) >= 8.5][0] == separable.least_width(8.5)
    with pytest.raises(Refused, match="out of reach"):
        separable.least_width(9)


def test_mobilenet_v1_and_its_dense_twin_as_printed() -> None:
    """Howard et al. 2017, table 4: 569 M and 4.2 M against 4866 M and 29.3 M; the body by hand from the widths of their table 1."""
    widths = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    pairs = list(zip(widths, widths[1:], strict=False))
    thin, dense = (separable.whole_and_body(CounterfactualConfig("mobilenetv1_100", edits), 224) for edits in ((), ("dense_layers",)))
    assert (round(thin["macs"] / 1e6), round(thin["params"] / 1e5)) == (569, 42)
    assert abs(dense["macs"] / 4866e6 - 1) < 0.001 and round(dense["params"] / 1e5) == 293
    assert thin["body_params"] == sum(9 * i + i * o + 2 * i + 2 * o for i, o in pairs)
    assert dense["body_params"] == sum(9 * i * o + 2 * o for i, o in pairs)
    assert thin["macs"] - thin["body_macs"] == 27 * 32 * 112**2 + 1024 * 1000 == dense["macs"] - dense["body_macs"]
    assert len(thin["layer_role"]) == 28 and sum(thin["layer_macs"]) == thin["macs"]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_separable_layer_is_a_dense_one(stride: int) -> None:
    torch.manual_seed(0)
    assert separable.composition_error(6, 10, 3, stride) < 1e-12
    layer = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 7, 1, bias=False)).double()
    whole = separable.composed(layer[0].weight, layer[1].weight)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    assert torch.allclose(nn.functional.conv2d(x, whole), layer(x), atol=1e-12)
    wrong = separable.composed(layer[0].weight, layer[1].weight.flip(1))
    assert not torch.allclose(nn.functional.conv2d(x, wrong), layer(x), atol=1e-3)


def test_rank_errors_of_known_kernels() -> None:
    torch.manual_seed(0)
    exact = separable.composed(torch.randn(5, 1, 3, 3), torch.randn(8, 5, 1, 1))
    assert separable.rank_errors(exact)[0] < 1e-6
    two = exact + separable.composed(torch.randn(5, 1, 3, 3), torch.randn(8, 5, 1, 1))
    errors = separable.rank_errors(two)
    assert errors[0] > 0.1 and errors[1] < 1e-6 and (np.diff(errors) <= 1e-9).all()
    identity = torch.eye(9).reshape(9, 1, 3, 3)  # nine equal singular values: one of them holds a ninth of the energy
    assert separable.rank_errors(identity)[:3] == pytest.approx(np.sqrt([8 / 9, 7 / 9, 6 / 9]))
    assert len(separable.rank_errors(torch.randn(4, 5, 3, 3))) == 4


def test_the_cut_is_as_far_as_its_error_says_and_no_kernel_of_rank_one_is_nearer() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 5, 3, 3)
    for rank in (1, 4, 9):
        near = separable.cut(weight, rank)
        assert float((near - weight).norm() / weight.norm()) == pytest.approx(separable.rank_errors(weight)[rank - 1], abs=1e-6)
    best = (separable.cut(weight, 1) - weight).norm()
    for _ in range(20):
        other = separable.cut(weight + 0.3 * torch.randn_like(weight), 1)
        assert (other - weight).norm() > best
    with pytest.raises(Refused, match="rank 0"):
        separable.cut(weight, 0)


def test_every_dense_layer_of_a_network_is_looked_at_and_the_network_left_alone() -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=8, width=4)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = separable.approximations(model)
    assert len(found["layers"]) == 7 and found["error"].shape == (7, 9) == found["gauss"].shape
    assert found["median"] == pytest.approx(np.median(found["error"][:, 0])) and 0 < found["median"] < 1
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(separable.separated(model, 9)(x), model(x), atol=1e-5)
    assert not torch.allclose(separable.separated(model, 1)(x), model(x), atol=1e-2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(Refused, match="no dense 3 x 3"):
        separable.approximations(nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)))
