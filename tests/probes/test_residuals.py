"""The blocks of ResNets against sums by hand and against the network's own parameters."""

from __future__ import annotations

import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.models.imagenet import ImageNetConfig, imagenet
from cnnstudy.probes import residuals


@pytest.fixture(scope="module")
def fifty():
    return residuals.blocks(ImageNetConfig("resnet50"))


def test_a_block_is_what_the_paper_draws(fifty):
    row = fifty[fifty["name"] == "layer1.1"].iloc[0]
    assert (row["kernels"], row["channels_in"], row["inner"], row["channels_out"]) == ("1x1 3x3 1x1", 256, 64, 256)
    assert not row["projected"]
    assert row["weights"] == row["main_weights"] == 256 * 64 + 9 * 64 * 64 + 64 * 256
    assert row["macs"] == 56 * 56 * row["weights"]
    assert row["activations"] == 56 * 56 * (64 + 64 + 256)
    assert row["params"] == row["weights"] + 2 * (64 + 64 + 256)


def test_the_first_block_of_a_stage_is_projected_and_halves_the_map_in_its_3x3(fifty):
    row = fifty[fifty["name"] == "layer2.0"].iloc[0]
    assert row["projected"] and row["stage"] == 2 and row["size"] == 28
    assert row["main_macs"] == 56 * 56 * 256 * 128 + 28 * 28 * (9 * 128 * 128 + 128 * 512)
    assert row["weights"] - row["main_weights"] == 256 * 512


@pytest.mark.parametrize(("name", "kind", "blocks"), [("resnet34", "BasicBlock", 16), ("resnet101", "Bottleneck", 33)])
def test_all_parameters_but_stem_and_head_are_in_the_blocks(name, kind, blocks):
    table = residuals.blocks(ImageNetConfig(name))
    with torch.device("meta"):
        model = imagenet(ImageNetConfig(name))
    outside = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("layer"))
    assert len(table) == blocks and set(table["kind"]) == {kind}
    assert table["params"].sum() + outside == sum(p.numel() for p in model.parameters())


def test_the_summary_counts_shares_and_means(fifty):
    found = residuals.summary(ImageNetConfig("resnet50"))
    assert found["reduces_share"] == 15 / 16 and found["restores_share"] == 12 / 16
    assert found["first"][:2] == ["64-64", "256-64"]
    assert found["mean_macs"] == pytest.approx(fifty["macs"].sum() / 16)
    assert found["weights"] == fifty["weights"].tolist()


def test_a_network_without_blocks_is_refused():
    with pytest.raises(Refused, match="no residual blocks"):
        residuals.blocks(ImageNetConfig("vgg16"))
