from __future__ import annotations

import pytest

from cnnstudy.config import Refused
from cnnstudy.probes.worth import worth


def test_a_step_is_worth_its_points_per_extra_cost() -> None:
    found = worth([70.0, 76.0], [2.0, 5.0])
    assert found["gain_per_cost"] == 2.0
    assert found["cost_per_point"] == 5.0 / 76.0
    assert (found["points_gained"], found["extra_cost"]) == (6.0, 3.0)


def test_a_step_down_in_accuracy_has_a_negative_gain() -> None:
    assert worth([76.0, 75.0], [2.0, 4.0])["gain_per_cost"] == -0.5


def test_without_a_step_or_without_extra_cost_there_is_no_gain_per_cost() -> None:
    assert worth([70.0], [2.0])["gain_per_cost"] is None
    assert worth([70.0, 71.0], [2.0, 2.0])["gain_per_cost"] is None


@pytest.mark.parametrize(("top1", "cost"), [([], []), ([70.0], [0.0]), ([70.0, 71.0], [1.0]), ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])])
def test_what_makes_no_sense_is_refused(top1: list[float], cost: list[float]) -> None:
    with pytest.raises(Refused, match="worth needs"):
        worth(top1, cost)
