"""The roofline's arithmetic, and that its ceilings are measured; no test on speed."""

from __future__ import annotations

import pytest
import torch

from cnnstudy import roofline
from cnnstudy.config import Refused

ROOF = {"peak_gmacs": 40.0, "bandwidth_gbs": 10.0}


def test_below_the_ridge_memory_bounds() -> None:
    assert roofline.attainable(1.0, ROOF) == 10 and roofline.bound_by(1.0, ROOF) == "memory"
    assert roofline.attainable(4.0, ROOF) == 40 and roofline.bound_by(4.0, ROOF) == "compute"
    assert roofline.attainable(100.0, ROOF) == 40
    assert roofline.attainable(0.0, ROOF) == 0  # a shuffle


def test_fastest_time_is_the_longer_of_the_two() -> None:
    assert roofline.fastest_ms(40e9, 1.0, ROOF) == pytest.approx(1000)
    assert roofline.fastest_ms(0, 10e9, ROOF) == pytest.approx(1000)
    macs, moved = 3e9, 5e9
    assert macs / roofline.fastest_ms(macs, moved, ROOF) / 1e6 == pytest.approx(roofline.attainable(macs / moved, ROOF))


def test_ceilings_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that says one millisecond for everything, the rates are the amounts of work."""
    monkeypatch.setattr(roofline, "benchmark", lambda cases, **k: {n: [2.0, 1.0] for n in cases if cases[n]() is not None})
    before = torch.get_num_threads()
    found = roofline.ceilings(threads=1, megabytes=2, side=64, runs=2)
    assert found["copy_gbs"] == pytest.approx(2 * 2e6 / 1e6) and found["triad_gbs"] == pytest.approx(3 * 2e6 / 1e6)
    assert found["gemm_gmacs"] == pytest.approx(64**3 / 1e6) and found["conv_gmacs"] == pytest.approx(9 * 256 * 256 * 56**2 / 1e6)
    assert found["bandwidth_gbs"] == found["triad_gbs"] and found["peak_gmacs"] == found["conv_gmacs"]
    assert found["ridge"] == found["peak_gmacs"] / found["bandwidth_gbs"]
    assert found["threads"] == 1 and torch.get_num_threads() == before


def test_refusals() -> None:
    with pytest.raises(Refused, match="megabytes"):
        roofline.ceilings(megabytes=0)
    with pytest.raises(Refused, match="at least 0"):
        roofline.attainable(-1, ROOF)
