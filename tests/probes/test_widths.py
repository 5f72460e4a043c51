"""Widths against what the papers print, against counts by hand, and against rounding as the authors' code does it."""

from __future__ import annotations

import pytest

from cnnstudy.config import Refused
from cnnstudy.models import CounterfactualConfig
from cnnstudy.probes import widths

V1, V2, V3 = "mobilenetv1_100", "mobilenetv2_100", "mobilenetv3_large_100"


def at(name: str, width: float) -> CounterfactualConfig:
    return CounterfactualConfig(name, width=width)


@pytest.mark.parametrize(("channels", "rounded"), [(4, 8), (12, 16), (18, 24), (20, 24), (33.6, 32), (44.8, 48), (320 * 0.35, 112)])
def test_channels_are_rounded_as_by_the_authors(channels: float, rounded: int) -> None:
    """18: the nearest multiple, 16, would lose more than a tenth."""
    assert widths.divisible(channels) == rounded


@pytest.mark.parametrize(("width", "macs", "params"), [(1.0, 569, 4.24), (0.75, 325, 2.59), (0.5, 149, 1.34), (0.25, 41, 0.47)])
def test_mobilenet_v1_as_printed(width: float, macs: int, params: float) -> None:
    """MACs of the paper's table 6 (M), parameters of the authors' release."""
    found = widths.scaling(at(V1, width))
    assert round(found["macs"] / 1e6) in (macs, macs + 1) and found["params"] / 1e6 == pytest.approx(params, abs=0.01)
    assert found["params_ratio"] * 4_231_976 == pytest.approx(found["params"]) and sum(found["params_by_role"].values()) == found["params"]
    assert sum(found["macs_by_role"].values()) == found["macs"]


def test_resolution_alone_keeps_the_parameters_and_scales_the_macs() -> None:
    full, low = widths.scaling(at(V1, 1.0)), widths.scaling(at(V1, 1.0), 128)
    assert low["params"] == full["params"] and low["params_error"] == 0 and full["macs_error"] == 0
    inside = full["macs"] - 1_024_000  # the classifier does not see the resolution
    assert low["macs"] - 1_024_000 == inside * 128**2 / 224**2
    assert low["squares"] == (128 / 224) ** 2 and 0 < low["macs_error"] < 0.01


def test_v1_scales_every_convolution_and_v2_all_but_its_last() -> None:
    first = widths.applied(at(V1, 0.5))
    assert first["convs"] == 27 and first["exact_share"] == 1 and first["unscaled"] == [] and first["only_the_last"]
    second = widths.applied(at(V2, 0.5))
    assert second["convs"] == 52 and second["unscaled"] == ["conv_head"] and second["only_the_last"]
    assert 0.8 < second["exact_share"] < second["rounded_share"] < 1
    third = widths.applied(at(V3, 0.5))
    assert "conv_stem" in third["unscaled"] and not third["only_the_last"]


def test_exponents_of_v1_by_hand() -> None:
    """Pointwise weights grow with the square, depthwise and first ones in proportion, the classifier's in proportion and a bias."""
    found = widths.exponents(at(V1, 1.0), [1.0, 0.75, 0.5, 0.25])
    by_role = found["params_by_role"]
    assert by_role["pointwise"] == pytest.approx(2, abs=1e-9) and by_role["depthwise"] == pytest.approx(1, abs=1e-9) == by_role["stem"]
    assert by_role["head"] == pytest.approx(1, abs=0.01) and found["macs_by_role"]["pointwise"] == pytest.approx(2, abs=1e-9)
    assert 1.5 < found["params"] < found["body_params"] < 2 and found["worst_residual"] > 1
    with pytest.raises(Refused, match="two widths"):
        widths.exponents(at(V1, 1.0), [0.5, 0.5])
