"""VGG's layers against table 1 of the paper (arXiv:1409.1556) and against torchvision's own VGG."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models.counterfactual import CounterfactualConfig
from cnnstudy.models.torchvision_mend import import_torchvision
from cnnstudy.models.zoo import ZooConfig
from cnnstudy.probes.uniform import same_layers, stack


@pytest.mark.parametrize(("name", "blocks"), [("vgg16", [2, 2, 3, 3, 3]), ("vgg19", [2, 2, 4, 4, 4])])
def test_blocks_layers_and_weights_are_those_of_torchvision(name: str, blocks: list[int]) -> None:
    found = stack(ZooConfig(name))
    assert (found["blocks"], found["convs"], found["linears"], found["exceptions"]) == (blocks, sum(blocks), 3, 0)
    with torch.device("meta"):
        other = import_torchvision().models.get_model(name, weights=None)
    weights = [m.weight.numel() + m.bias.numel() for m in other.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert found["layer_params"] == weights
    assert sum(found["params_by_block"].values()) == sum(weights)
    assert found["params_by_block"]["head"] == sum(weights[-3:])


def test_macs_and_the_field_of_view_by_hand() -> None:
    found = stack(ZooConfig("vgg16"))
    assert found["layer_macs"][:2] == [224 * 224 * 64 * 3 * 9, 224 * 224 * 64 * 64 * 9]
    assert found["layer_macs"][-3] == 7 * 7 * 512 * 4096
    assert found["field_by_block"] == {"1": 5, "2": 14, "3": 40, "4": 92, "5": 196}  # 2 (k - 1) pixels a layer, doubled by each pooling
    assert stack(ZooConfig("vgg19"))["field_by_block"]["5"] == 252


def test_an_exception_is_found_and_named() -> None:
    found = stack(CounterfactualConfig("vgg16", ("single_filters",)))
    assert found["exceptions"] == 10  # five large kernels, each with its padding
    assert found["broken"][0] == "features.0: kernel_size (5, 5)"


def test_only_without_three_layers_is_vgg19_vgg16() -> None:
    cut, whole, small = (CounterfactualConfig(*a) for a in (("vgg19", ("one_conv_less",)), ("vgg19",), ("vgg16",)))
    assert same_layers(cut, small)["identical"] and same_layers(cut, small)["differing"] == 0
    assert not same_layers(whole, small)["identical"] and same_layers(whole, small)["differing"] > 0
    assert not same_layers(ZooConfig("vgg16_bn"), ZooConfig("vgg16"))["identical"]


def test_a_network_of_another_kind_is_refused() -> None:
    with pytest.raises(Refused, match="max pooling"):
        stack(ZooConfig("resnet18"))
