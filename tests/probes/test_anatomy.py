"""Anatomy of ResNets against what the paper's table 1 says, and of the first published variant."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.models import ImageNetConfig, build
from cnnstudy.probes.anatomy import anatomy, without_blocks


def meta(name: str, *edits: str) -> nn.Module:
    with torch.device("meta"):
        return build(ImageNetConfig(name, edits))


@pytest.mark.parametrize(
    ("name", "blocks", "kernels"),
    [("resnet18", [2, 2, 2, 2], "3x3 3x3"), ("resnet50", [3, 4, 6, 3], "1x1 3x3 1x1"), ("resnet101", [3, 4, 23, 3], "1x1 3x3 1x1")],
)
def test_blocks_and_kernels_are_those_of_the_paper(name: str, blocks: list[int], kernels: str) -> None:
    found = anatomy(meta(name))
    assert list(found["blocks"].values()) == blocks
    assert found["kernels"] == [kernels] * sum(blocks)


def test_the_first_bottleneck_of_stage_one_neither_reduces_nor_restores() -> None:
    found = anatomy(meta("resnet50"))
    assert found["channels"][:3] == ["64-64-64-256", "256-64-64-256", "256-64-64-256"]
    assert found["narrow_share"] == found["reduces_share"] == 15 / 16
    assert found["restores_share"] == 12 / 16  # the four blocks that open a stage widen


def test_the_stride_decides_on_what_map_the_3x3_works() -> None:
    assert anatomy(meta("resnet50"))["smaller_map_share"] == 0
    assert anatomy(meta("resnet50", "stride_in_1x1"))["smaller_map_share"] == 3 / 16


def test_the_model_is_left_in_its_mode() -> None:
    model = meta("resnet18").train()
    anatomy(model, 64)
    assert model.training


def test_resnet101_is_resnet50_with_17_more_blocks_in_stage_three() -> None:
    deep, shallow = meta("resnet101"), meta("resnet50")
    assert without_blocks(deep, shallow, 3, 17) == {"same_shapes": True, "same_elsewhere": True, "differing": 0, "left": 6}
    fewer = without_blocks(deep, shallow, 3, 16)
    assert (fewer["same_shapes"], fewer["differing"]) == (False, 9)  # one bottleneck has 3 convolutions and 3 norms of 2
    assert without_blocks(meta("resnet152"), shallow, 3, 30)["same_elsewhere"] is False


@pytest.mark.parametrize(("stage", "removed"), [(5, 1), (3, 24), (3, -1)])
def test_blocks_that_are_not_there_are_refused(stage: int, removed: int) -> None:
    with pytest.raises(Refused, match=f"{removed} blocks from stage {stage}"):
        without_blocks(meta("resnet101"), meta("resnet50"), stage, removed)


def test_networks_without_stages_are_refused() -> None:
    with pytest.raises(Refused, match="no stages"):
        anatomy(meta("vgg16"))
