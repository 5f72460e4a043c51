"""Blocks by themselves: the formula, blocks with a known spectrum, and random ones."""

from __future__ import annotations

import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.probes import plusone
from cnnstudy.probes.jacobians import jacobian


def test_the_derivative_of_the_sum_is_the_branchs_plus_the_identity() -> None:
    found = plusone.formula_error(3)
    assert found["difference"] < 1e-12 < found["largest_entry"]


@pytest.mark.parametrize(("slope", "gain"), [(-1.0, 0.0), (-0.5, 0.5), (0.5, 1.5)])
def test_a_linear_branch_has_the_gain_one_plus_its_slope(slope: float, gain: float) -> None:
    found = plusone.linear_block(slope)
    assert found == pytest.approx({"scalar": gain, "smallest": gain, "largest": gain, "signal": gain}, abs=1e-12)


def test_a_branch_that_more_than_undoes_its_input_turns_the_gradient_round() -> None:
    found = plusone.linear_block(-1.5)
    assert found["scalar"] == -0.5
    assert found["signal"] == pytest.approx(0.5)


def test_the_worst_signal_is_the_smallest_singular_value() -> None:
    found = plusone.random_blocks(2, channels=2, side=4)
    assert found["worst_signal"] == pytest.approx(found["smallest"], abs=1e-9)
    spectra = torch.cat([torch.linalg.svdvals(jacobian(*plusone.block(seed, 2, 4))) for seed in range(2)])
    assert found["below_1"] == pytest.approx(float((spectra < 1 - 1e-9).double().mean()))
    assert 0 < found["below_1"] < 1
    assert found["median_signal"] > 1  # a random signal comes out longer: both parts add up
    assert found["values"].shape == (500,)


def test_no_draws_are_refused() -> None:
    with pytest.raises(Refused, match="draws 0"):
        plusone.random_blocks(0)
