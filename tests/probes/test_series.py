"""Series of networks compared at equal accuracy, against lines whose answer is known."""

from __future__ import annotations

import pytest

from cnnstudy.config import Refused
from cnnstudy.probes import series


def test_the_slope_is_that_of_least_squares() -> None:
    assert series.slope([0, 1, 2], [1.0, 3.0, 5.0]) == pytest.approx(2)
    assert series.slope([0, 2, 4], [0.0, 1.0, 0.5]) == pytest.approx(0.125)
    with pytest.raises(Refused, match="two different"):
        series.slope([1, 1], [0.2, 0.3])


def test_a_series_that_reaches_the_same_at_half_the_size_saves_one_doubling() -> None:
    accuracies = [0.5, 0.52, 0.54]
    found = series.saved([100, 200, 400], accuracies, [50, 100, 200], accuracies)
    assert found["log2_saved"] == pytest.approx(1) and found["ratio"] == pytest.approx(0.5)
    assert found["per_doubling"] == pytest.approx(0.02) and found["gap"] == pytest.approx(0.02)
    back = series.saved([50, 100, 200], accuracies, [100, 200, 400], accuracies)
    assert back["log2_saved"] == pytest.approx(-1) and back["ratio"] == pytest.approx(2)


def test_sizes_that_differ_are_brought_to_one_size_before_the_gap_is_taken() -> None:
    found = series.saved([100, 400], [0.5, 0.54], [200, 800], [0.53, 0.57])
    assert found["gap"] == pytest.approx(0.01) and found["log2_saved"] == pytest.approx(0.5)


def test_where_size_brings_nothing_there_is_nothing_to_interpolate() -> None:
    found = series.saved([100, 200], [0.5, 0.5], [100, 200], [0.6, 0.55])
    assert found["log2_saved"] is None and found["ratio"] is None and found["gap"] == pytest.approx(0.075)


def test_what_cannot_be_a_series_is_refused() -> None:
    with pytest.raises(Refused, match="as many values"):
        series.saved([100, 200], [0.5], [100, 200], [0.5, 0.6])
    with pytest.raises(Refused, match="two different sizes"):
        series.saved([100, 100], [0.5, 0.5], [100, 100], [0.5, 0.6])


def test_spread() -> None:
    assert series.spread([100, 105, 103]) == pytest.approx(0.05)
