"""The interval for one more training."""

from __future__ import annotations

import math

import pytest

from cnnstudy.report.reruns import rerun_interval, rerun_text


def test_three_trainings() -> None:
    found = rerun_interval([0.70, 0.71, 0.72])  # s = 0.01, t = 4.3027, sqrt(4/3)
    assert found.estimate == pytest.approx(0.71)
    assert found.high - found.estimate == pytest.approx(0.01 * 4.302653 * math.sqrt(4 / 3), rel=1e-5)
    assert rerun_text([0.70, 0.71, 0.72]) == "71.0 (66.0 to 76.0)"


def test_one_training_says_nothing_about_the_next() -> None:
    assert math.isinf(rerun_interval([0.7]).high) and rerun_text([0.7]) == "70.0"
    with pytest.raises(ValueError, match="no trainings"):
        rerun_interval([])
