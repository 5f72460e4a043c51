"""Pace and the gain from threads, with a clock of our own."""

from __future__ import annotations

from typing import Any

import pytest

from cnnstudy import networks, pace
from cnnstudy.config import Refused
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.models.wide import WideConfig
from cnnstudy.probes.thickness import costs

NETS = [WideConfig(16, 2), ResNetConfig(20, 24), ResNetConfig(44, 16)]


def test_gain_and_pace_from_two_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {1: [100.0, 150.0, 200.0], 2: [50.0, 90.0, 160.0]}
    asked: list[int] = []

    def clock(setups: Any, seed: int) -> list[dict[str, float]]:
        asked.append(setups[0].threads)
        return [{"latency_ms": t} for t in times[setups[0].threads]]

    monkeypatch.setattr(pace, "zoo_latency", clock)
    rows = pace.thread_gain([networks.timed(cfg, "train", 8, 2, 3, 32) for cfg in NETS], 0)
    assert sorted(asked) == [1, 2]
    assert [row["thread_gain"] for row in rows] == pytest.approx([2, 5 / 3, 1.25])
    assert [row["gain_over_thinnest"] for row in rows] == pytest.approx([1.6, 4 / 3, 1])
    assert [row["width"] for row in rows] == [32, 24, 16] and [row["layers"] for row in rows] == [14, 20, 44]
    macs = costs(NETS[0], 32)["macs"]
    assert rows[0]["pace"] == pytest.approx(3 * 8 * macs / 50e6) == 2 * rows[0]["single_pace"]
    found = pace.trends(rows)
    assert found["width_pace"] == found["width_gain"] == found["layers_time"] == 1


def test_trends_of_known_ranks() -> None:
    rows = [{"width": w, "pace": q, "thread_gain": 1 + w, "layers": 10 - w, "latency_ms": t, "macs": m}
            for w, q, t, m in ((1, 1, 9, 5), (2, 3, 7, 6), (3, 2, 5, 5.5), (4, 4, 1, 5.2))]  # fmt: skip
    found = pace.trends(rows)
    assert found["width_pace"] == pytest.approx(0.8) and found["width_gain"] == 1
    assert found["layers_time"] == 1 and found["macs_time"] == pytest.approx(0.2) and found["layers_lead"] == pytest.approx(0.8)
    with pytest.raises(Refused, match="at least three networks, got 2"):
        pace.trends(rows[:2])
