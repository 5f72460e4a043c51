"""ResNeXt's block in its three forms, and what its networks are made of, against counts done by hand."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models.bottleneck import Bottleneck, Paths
from cnnstudy.models.counterfactual import CounterfactualConfig
from cnnstudy.models.zoo import native
from cnnstudy.probes import cardinality


@pytest.mark.parametrize("norm", [False, True])
def test_the_three_forms_of_a_block_agree(norm: bool) -> None:
    found = cardinality.forms(Bottleneck(32, 32, 8, groups=4, norm="batch" if norm else "none"))
    assert found["output_difference"] < 1e-12 and found["gradient_difference"] < 1e-12
    assert (found["sum_difference"] is None) == norm
    assert norm or found["sum_difference"] < 1e-12
    assert found["reads"] == [32] * 4 and found["group_reads"] == [2] * 4
    assert found["shapes"] == 1 and found["kernels"] == "1x1 3x3 1x1" and found["channels"] == "32-2-2-32"
    assert found["different_weights"]


def test_a_difference_between_the_forms_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    made = cardinality.Paths

    def wrong(block: Bottleneck, concatenate: bool = False) -> Paths:
        paths = made(block, concatenate)
        paths.paths[1][0].weight.data[0, 5] += 0.1  # type: ignore[index, union-attr]
        return paths

    monkeypatch.setattr(cardinality, "Paths", wrong)
    found = cardinality.forms(Bottleneck(32, 32, 8, groups=4, norm="none"))
    assert found["output_difference"] > 1e-3 and found["gradient_difference"] > 1e-3 and found["sum_difference"] > 1e-3


def test_forms_need_a_bottleneck_that_can_be_added_to_its_input() -> None:
    with pytest.raises(Refused, match="no such forms"):
        cardinality.forms(nn.Conv2d(32, 32, 3))
    with pytest.raises(Refused, match="no such forms"):
        cardinality.forms(Bottleneck(32, 64, 16, groups=4))


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_connections_are_blocks_on_the_diagonal(groups: int) -> None:
    found = cardinality.connectivity(nn.Conv2d(16, 16, 3, padding=1, groups=groups, bias=False))
    assert found["block_diagonal"] and found["share"] == 1 / groups
    assert found["weights"] == 9 * 16 * 16 // groups and found["weights_times_groups"] == 9 * 16 * 16
    assert np.array_equal(found["reaches"], np.kron(np.eye(groups, dtype=bool), np.ones((16 // groups,) * 2, dtype=bool)))


def test_a_severed_channel_shows() -> None:
    layer = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
    layer.weight.data[3, 2] = 0
    assert not cardinality.connectivity(layer)["block_diagonal"]


def test_structure_of_three_networks() -> None:
    plain, split, inception = (cardinality.structure(native(n)) for n in ("resnet50", "resnext50_32x4d", "inception_v3"))
    assert plain["groups_3x3"] == [1] * 16 and split["groups_3x3"] == [32] * 16
    assert plain["templates"] == split["templates"] == 2 and plain["proportions"] == split["proportions"] == 2
    assert inception["blocks"] == 11 and inception["templates"] == 5 and inception["proportions"] == 8
    with pytest.raises(Refused, match="no blocks that are known"):
        cardinality.structure(native("vgg16"))


def test_where_resnext_differs_from_resnet() -> None:
    found = cardinality.same_graph(native("resnext50_32x4d"), native("resnet50"))
    assert found["same_but_inside"] and found["different"] == 80 and found["where"] == ["bn1", "bn2", "conv1", "conv2", "conv3"]
    assert cardinality.same_graph(native("resnet50"), native("resnet50"))["different"] == 0
    assert not cardinality.same_graph(native("resnet50"), native("resnet50d"))["same_but_inside"]
    assert not cardinality.same_graph(native("resnet50"), native("resnet101"))["same_but_inside"]


def test_how_far_cost_moves() -> None:
    base, wide = CounterfactualConfig("resnet50"), CounterfactualConfig("resnet50", cardinality=1, path_width=128)
    found = cardinality.moved([base, wide], base)
    assert found["params"][0] == 25_557_032 and found["params"][1] > 2.5 * found["params"][0]
    assert found["params_off"] == pytest.approx(found["params"][1] / found["params"][0] - 1)
    assert cardinality.moved([base], base)["macs_off"] == 0
