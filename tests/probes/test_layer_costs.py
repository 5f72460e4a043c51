"""Layer tables against the papers' own and against counts by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import EfficientNetConfig, ImageNetConfig, MobileNetV2Config, ResNetConfig, build
from cnnstudy.models.zoo import ZooConfig
from cnnstudy.probes import layer_costs
from cnnstudy.probes.cost import cost


@pytest.mark.parametrize(("name", "blocks"), [("vgg16", [2, 2, 3, 3, 3]), ("vgg19", [2, 2, 4, 4, 4])])
def test_blocks_of_vgg(name: str, blocks: list[int]) -> None:
    """timm writes the fully connected layers as convolutions after the last pooling; they are no block."""
    assert layer_costs.blocks_between_poolings(ImageNetConfig(name)) == blocks


def test_vgg16_layer_by_layer() -> None:
    table = layer_costs.layers(ImageNetConfig("vgg16"), 224)
    convs = table[table["type"] == "3x3"]
    assert len(table) == 16 and len(convs) == 13
    assert convs["channels_in"].tolist() == [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512]
    assert convs["activations"].sum() == 13_547_520
    assert (convs["kernel"] == 3).all() and (convs["stride"] == 1).all() and (convs["size_in"] == convs["size"]).all()
    first = table.iloc[0]
    assert (first["weights"], first["biases"], first["macs"]) == (1728, 64, 1728 * 224**2)
    assert first["bytes"] == 4 * (1728 + 64 + 3 * 224**2 + 64 * 224**2) and first["intensity"] == first["macs"] / first["bytes"]
    assert table["role"].tolist() == ["stem"] + 12 * ["dense"] + 3 * ["head"]
    assert table[table["role"] == "head"]["weights"].sum() + 9192 == 123_642_856  # with 4096 + 4096 + 1000 biases


@pytest.mark.parametrize("cfg", [ResNetConfig(shortcut="B"), MobileNetV2Config(), EfficientNetConfig(), ZooConfig("mobilenetv3_small_100")])
def test_sums_agree_with_the_whole(cfg: Any) -> None:
    resolution = getattr(cfg, "resolution", 32)
    network = cfg if not isinstance(cfg, ZooConfig) else ImageNetConfig(cfg.name)
    whole, table, parts = cost(network, resolution), layer_costs.layers(cfg, resolution), layer_costs.params_by_kind(cfg)
    assert table["macs"].sum() == whole["macs"] and table["activations"].sum() == whole["activations"]
    assert parts["params"] == whole["params"]
    assert table["weights"].sum() == parts["conv_weights"] + parts["linear_weights"] and table["biases"].sum() == parts["biases"]
    for what in ("macs", "weights", "activations", "bytes"):
        assert sum(layer_costs.shares(cfg, resolution, what).values()) == pytest.approx(1)


def test_macs_of_a_layer_by_its_own_columns() -> None:
    for row in layer_costs.layers(ImageNetConfig("mobilenetv3_large_100"), 224).to_dict("records"):
        area = row["size"] ** 2
        assert row["macs"] == area * row["kernel"] ** 2 * row["channels_in"] // row["groups"] * row["channels"], row["name"]


def test_mobilenet_v1_as_its_table_2_says() -> None:
    """Howard et al. 2017, table 2: 94.86 % of the MACs in 1x1, 3.06 % depthwise, 1.19 % in the first layer, 0.18 % fc."""
    found = layer_costs.shares(ZooConfig("mobilenetv1_100"), 224)
    assert found["pointwise"] == pytest.approx(0.9486, abs=0.001)
    assert found["depthwise"] == pytest.approx(0.0306, abs=0.0005)
    assert found["head"] == pytest.approx(0.0018, abs=0.0001)
    weights = layer_costs.shares(ZooConfig("mobilenetv1_100"), 224, "weights")
    assert weights["pointwise"] == pytest.approx(0.7459, abs=0.002) and weights["head"] == pytest.approx(0.2433, abs=0.002)


def test_separable_pairs() -> None:
    v1, v2 = (layer_costs.separable_pairs(ZooConfig(n), 224) for n in ("mobilenetv1_100", "mobilenetv2_100"))
    assert (len(v1), len(v2)) == (13, 17)
    first = v1.iloc[0]  # 32 -> 64 at 112: 9 * 32 + 32 * 64 against 9 * 32 * 64
    assert (first["weights"], first["dense_weights"]) == (288 + 2048, 18_432)
    assert first["macs"] == (288 + 2048) * 112**2
    for table in (v1, v2):
        assert table["macs_reduction"].tolist() == pytest.approx(table["formula"].tolist())
        assert table["weights_reduction"].tolist() == pytest.approx(table["formula"].tolist())
    assert layer_costs.separable_pairs(ImageNetConfig("resnet18"), 64).empty


def test_expansions() -> None:
    v2 = layer_costs.expansions(ZooConfig("mobilenetv2_100"))
    assert v2["ratio"].tolist() == [1] + 16 * [6]
    assert v2["channels"].tolist()[:4] == [16, 24, 24, 32]
    b0 = layer_costs.expansions(ZooConfig("efficientnet_b0"))
    assert (len(b0), b0["ratio"].max()) == (16, 6)
    dense = layer_costs.expansions(ZooConfig("mobilenetv2_100", 224, ("dense_depthwise",)))
    assert dense["ratio"].tolist() == v2["ratio"].tolist()
    assert layer_costs.expansions(MobileNetV2Config())["ratio"].tolist() == [1] + 10 * [4]
    assert layer_costs.expansions(ImageNetConfig("resnet18")).empty
    assert layer_costs.expansions(ZooConfig("shufflenet_v2_x1_0")).empty  # its units have the same class name, and two branches


def test_elements_by_operation_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    found = layer_costs.elements_by_op(model, 8)
    assert found == {"convolution": 256, "native_batch_norm": 256, "relu": 256, "max_pool2d_with_indices": 64}


def test_roles() -> None:
    table = layer_costs.layers(ZooConfig("mobilenetv3_large_100"), 224).set_index("name")
    assert table.loc["conv_stem", "role"] == "stem" and table.loc["classifier", "role"] == "head"
    assert table.loc["conv_head", "role"] == "head"  # V3 pools before it
    assert set(table["role"]) == {"stem", "depthwise", "pointwise", "gate", "head"}
    assert set(layer_costs.layers(ImageNetConfig("resnet50"), 64)["role"]) == {"stem", "dense", "pointwise", "projection", "head"}
    assert "grouped" in set(layer_costs.layers(ImageNetConfig("resnext50_32x4d"), 64)["role"])


def test_model_is_left_as_found_and_bad_input_refused() -> None:
    model = build(ResNetConfig(depth=8))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    layer_costs.layers(model, 32)
    assert model.training and all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with pytest.raises(Refused, match="unknown count 'flops'"):
        layer_costs.shares(model, 32, "flops")
    with pytest.raises(Refused, match="no convolution or linear layer"):
        layer_costs.layers(nn.Sequential(nn.ReLU()), 8)
