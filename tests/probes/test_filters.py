"""Filters: what networks are made of, fields of chains of layers, weights of stacks, effective fields of trained stages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import CounterfactualConfig, ResNetConfig, StackConfig, build
from cnnstudy.models.zoo import ZooConfig
from cnnstudy.probes import filters


def test_kernels_of_alexnet_and_vgg() -> None:
    alexnet = filters.kernel_sizes(CounterfactualConfig("alexnet"))
    assert alexnet["kernels"] == ["11x11", "5x5", "3x3", "3x3", "3x3"] and (alexnet["other"], alexnet["layers"]) == (2, 5)
    assert (alexnet["share"], alexnet["kinds"], alexnet["all_layers"], alexnet["filters"]) == (0.6, 8, 8, 3)
    vgg = filters.kernel_sizes(ZooConfig("vgg11"))
    assert (vgg["other"], vgg["layers"], vgg["macs_share"], vgg["filters"]) == (0, 8, 1.0, 1)


def test_lines_of_code_leave_docstrings_and_weights_out() -> None:
    lines = {name: filters.code_lines(name) for name in ("alexnet", "vgg16", "googlenet", "resnet50")}
    assert 20 < lines["alexnet"] < 60 and 30 < lines["vgg16"] < 70 and lines["googlenet"] > 2 * lines["alexnet"]
    assert filters.code_lines("vgg11") == lines["vgg16"]
    with pytest.raises(Refused, match="specification"):
        filters.code_lines("lenet5")


@pytest.mark.parametrize(
    ("spec", "side", "formula"),
    [("7", 7, 7), ("3-3-3", 7, 7), ("1-1", 1, 1), ("5-5", 9, 9), ("3-p-3", 8, 5), ("3-3s2-3", 9, 7), ("3-3d2-3d4", 15, 7)],
)
def test_the_field_by_gradient_is_the_closed_form(spec: str, side: int, formula: int) -> None:
    found = filters.field(spec)
    assert (found["height"], found["width"], found["closed"], found["formula"]) == (side, side, side, formula)
    assert found["pixels"] == side**2 and (found["apart"] == 0) == (side == formula)


@pytest.mark.parametrize("spec", ["", "4", "3-x", "3s", "pp"])
def test_what_is_no_layer_is_refused(spec: str) -> None:
    with pytest.raises(Refused, match="is no layer"):
        filters.chain(spec)


def test_a_stack_against_the_single_filter() -> None:
    equal = filters.against_single([3, 3, 3], 16, 16)
    assert equal == {"weights": 27 * 256, "single": 49 * 256, "saving": 1 - 27 / 49, "per_c2": 27, "field": 7}
    first = filters.against_single([3, 3], 3, 64)
    assert (first["weights"], first["single"]) == (27 * 64 + 9 * 64 * 64, 25 * 3 * 64) and first["saving"] < 0
    assert filters.against_single([3, 3], 9, 16)["saving"] == 0  # c = 16/9 a


def test_blocks_and_parts_of_vgg16() -> None:
    vgg = ZooConfig("vgg16")
    assert filters.vgg_blocks(vgg) == [(2, 3, 64), (2, 64, 128), (3, 128, 256), (3, 256, 512), (3, 512, 512)]
    parts = filters.with_convolutions(vgg)
    assert (parts["params"], parts["conv_params"]) == (138_357_544, 14_714_688) and parts["conv_macs"] < parts["macs"]
    with pytest.raises(Refused, match="valid: a VGG"):
        filters.vgg_blocks(ResNetConfig(depth=8), 32)


def test_the_fields_of_stages_lie_around_the_centre() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 3, 32, 32)
    for kernels, side in (("7", 7), ("3-3-3", 7), ("3-3", 5)):
        found = filters.stage_fields(build(StackConfig(kernels, 8)).eval(), x)
        maps = found["maps"]
        half, edge = side // 2, filters.SIDE // 2
        inside = maps[:, edge - half : edge + half + 1, edge - half : edge + half + 1]
        assert maps.shape == (3, filters.SIDE, filters.SIDE) and np.allclose(inside.sum((1, 2)), 1)
        assert found["sigma"] == pytest.approx(np.mean(found["sigma_by_stage"])) and len(found["central_share_by_stage"]) == 3
        assert (inside > 0).all()


def test_the_last_relu_is_found_and_a_map_is_cut_around_its_centre() -> None:
    assert filters.last_act(build(StackConfig("3-3-3", 8)).stages[0]) == "act3"
    assert filters.last_act(build(StackConfig("7", 8)).stages[0]) == "act1"
    with pytest.raises(Refused, match="has no ReLU"):
        filters.last_act(nn.Sequential(nn.Conv2d(1, 1, 3)))
    energy = np.zeros((8, 8))
    energy[4, 4] = 1
    cut = filters.around_centre(energy)
    assert cut.shape == (11, 11) and cut[5, 5] == 1 and cut.sum() == 1
