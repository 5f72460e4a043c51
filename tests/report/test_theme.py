"""The book's colours read on their grounds, and stay apart for colour-blind readers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cnnstudy.config import Refused
from cnnstudy.report import theme

# Machado, Oliveira, Fernandes 2009 (IEEE TVCG 15), severity 1, on linear RGB
SEEN_AS = {
    "normal": np.eye(3),
    "deuteranopia": np.array([[0.367, 0.861, -0.228], [0.280, 0.673, 0.047], [-0.012, 0.043, 0.969]]),
    "protanopia": np.array([[0.152, 1.053, -0.205], [0.115, 0.786, 0.099], [-0.004, -0.048, 1.052]]),
    "tritanopia": np.array([[1.256, -0.077, -0.179], [-0.078, 0.931, 0.148], [0.005, 0.691, 0.304]]),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
MEET_OFTEN = ("plain", "vgg", "resnet", "mobilenet", "efficientnet")


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2."""
    low, high = sorted(float(TO_XYZ[1] @ linear(c)) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("name", theme.FAMILY)
def test_family_colours_read_on_the_white_card(name: str) -> None:
    assert contrast(theme.FAMILY[name], "#ffffff") >= 3


@pytest.mark.parametrize("name", theme.OUTCOME)
@pytest.mark.parametrize("ground", ["#ffffff", "#121212"])
def test_outcome_colours_read_in_light_and_dark(name: str, ground: str) -> None:
    assert contrast(theme.OUTCOME[name], ground) >= 3


@pytest.mark.parametrize("eyes", SEEN_AS)
def test_families_that_meet_often_stay_apart(eyes: str) -> None:
    for one, other in itertools.combinations(MEET_OFTEN, 2):
        a, b = (lab(SEEN_AS[eyes] @ linear(theme.FAMILY[name])) for name in (one, other))
        assert np.linalg.norm(a - b) > 15, f"{one} and {other}"


@pytest.mark.parametrize("eyes", SEEN_AS)
def test_outcomes_stay_apart(eyes: str) -> None:
    for one, other in itertools.combinations(theme.OUTCOME, 2):
        a, b = (lab(SEEN_AS[eyes] @ linear(theme.OUTCOME[name])) for name in (one, other))
        assert np.linalg.norm(a - b) > 12, f"{one} and {other}"


def test_a_model_has_its_familys_colour_and_marker() -> None:
    assert theme.family("resnet50") == theme.family("preact_resnet110") == theme.FAMILY["resnet"]
    assert theme.family_name("mobilenetv2_100") == theme.family_name("MobileNet-V2") == "mobilenet"
    assert theme.family_name("resnext50_32x4d") == "resnext"
    assert theme.family_name("wide_resnet50_2") == "wideresnet"
    assert theme.family_name("something_new") == "other"
    assert len({theme.marker(name) for name in theme.FAMILY}) == len(theme.FAMILY)


def test_outcomes_are_complete_and_unknown_ones_are_refused() -> None:
    assert theme.OUTCOME.keys() == theme.OUTCOME_SIGN.keys() == theme.OUTCOME_MEANING.keys()
    assert all(f"--cnn-{name}: {colour};" in theme.css() for name, colour in theme.OUTCOME.items())
    with pytest.raises(Refused, match="unknown outcome 'proven'; valid: confirmed"):
        theme.outcome("proven")
