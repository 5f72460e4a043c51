"""Counts of wide and thin networks against figures known otherwise."""

from __future__ import annotations

import pytest

from cnnstudy.config import Refused
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.models.wide import WideConfig
from cnnstudy.models.zoo import native
from cnnstudy.probes import thickness


def test_costs_of_a_wide_network_against_the_papers_and_by_hand() -> None:
    found = thickness.costs(WideConfig(28, 10), 32)
    assert found["params"] == 36_479_194 and found["convolutions"] == 28 and found["layers"] == 26
    assert found["params"] - found["body_params"] == 640 * 10 + 10
    assert found["widths"] == [160, 320, 640]
    assert found["macs_per_param"] == found["macs"] / found["params"]


def test_widths_are_those_of_the_3x3_behind_the_stem() -> None:
    assert thickness.stage_widths(thickness.shadow(native("resnet50"))) == [64, 128, 256, 512]
    assert thickness.stage_widths(thickness.shadow(native("wide_resnet50_2"))) == [128, 256, 512, 1024]
    assert thickness.stage_widths(thickness.shadow(ResNetConfig(110))) == [16, 32, 64]


def test_a_standard_network_beside_a_wide_one() -> None:
    found = thickness.against(ResNetConfig(110), WideConfig(28, 10))
    assert found["width_ratio"] == 0.1 and found["layers"] == 110 and found["layer_gap"] == 110 - 26
    assert thickness.against(native("resnet152"), native("wide_resnet50_2"))["width_ratio"] == 0.5
    with pytest.raises(Refused, match="3 and 4 stages"):
        thickness.against(ResNetConfig(110), native("resnet50"))


def test_which_convolutions_were_widened() -> None:
    found = thickness.widened(28, 10)
    assert found["convolutions"] == 28 and found["new"] == 1 and found["all_but_stem"]
    assert found["others"] == ["stem.conv", "stages.0.0.shortcut"]
    assert found["share"] == pytest.approx(26 / 28) and found["share_of_shared"] == pytest.approx(26 / 27)
    thin = thickness.widened(10, 1)
    assert thin["share"] == 1 and thin["others"] == [] and not thin["all_but_stem"]


def test_exponent_of_the_parameters() -> None:
    found = thickness.exponent(16, [1, 2])
    ratio = thickness.costs(WideConfig(16, 2), 32)["params"] / thickness.costs(WideConfig(16, 1), 32)["params"]
    assert 2 ** found["exponent"] == pytest.approx(ratio) == found["largest_over_smallest"]
