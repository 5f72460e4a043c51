"""Heads and differences against hand counts: VGG's three layers, ResNet's one, and shares that must add up."""

from __future__ import annotations

import pytest

from cnnstudy.config import Refused
from cnnstudy.models.stacks import StackConfig
from cnnstudy.models.zoo import ZooConfig
from cnnstudy.probes.heads import by_map, excess, head

VGG, RESNET = ZooConfig("vgg16"), ZooConfig("resnet50")


def test_the_heads_by_hand() -> None:
    vgg, resnet = head(VGG), head(RESNET)
    layers = [25088 * 4096 + 4096, 4096 * 4096 + 4096, 4096 * 1000 + 1000]
    assert (vgg["first_params"], vgg["last_params"], vgg["head_params"]) == (layers[0], layers[2], sum(layers))
    assert (vgg["linears"], vgg["pooled"], vgg["features"]) == (3, 7, 25088)
    assert (resnet["linears"], resnet["pooled"], resnet["features"], resnet["head_params"]) == (1, 1, 2048, 2048 * 1000 + 1000)
    assert resnet["pool_params"] == 0 and vgg["body_params"] + vgg["head_params"] == 138_357_544


def test_swapped_heads() -> None:
    small, large = head(ZooConfig("vgg16", edits=("gap_head",))), head(ZooConfig("resnet50", edits=("vgg_head",)))
    assert (small["linears"], small["pooled"], large["linears"], large["pooled"]) == (1, 1, 3, 7)
    assert small["body_params"] == head(VGG)["body_params"] and large["body_params"] == head(RESNET)["body_params"]


def test_macs_by_map_add_up_and_the_first_is_known() -> None:
    maps = by_map(VGG)
    assert sum(maps["macs"].values()) == 15_470_264_320 and sum(maps["params"].values()) == 138_357_544
    assert maps["macs"]["224"] == 224 * 224 * 9 * (3 * 64 + 64 * 64)


def test_the_difference_by_hand_on_small_networks() -> None:
    found = excess(StackConfig("7"), StackConfig("3-3-3"), 32)
    assert sum(found["by_size"].values()) == found["macs"]
    assert found["small_maps"] + found["large_maps"] == pytest.approx(1)
    assert found["wide"] == 0  # no layer has 512 channels, and the heads are alike
    with pytest.raises(Refused, match="swap"):
        excess(StackConfig("3-3-3"), StackConfig("7"), 32)


def test_wide_layers_of_vgg_are_those_on_small_maps() -> None:
    found = excess(VGG, RESNET)
    assert found["small_maps"] < found["wide"]  # ResNet-50 has narrow layers on small maps, VGG has none
    assert found["params_wide"] > 1  # in its other layers VGG has fewer parameters than ResNet-50
