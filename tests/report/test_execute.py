"""What the diary keeps of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cnnstudy.report import execute, runs
from cnnstudy.report.children import PageFailed
from cnnstudy.runtime import machine_id


def test_a_drawing_that_goes_well_takes_back_the_failure_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNNSTUDY_RECORDS", str(tmp_path))
    monkeypatch.setattr(execute, "BUILD", tmp_path / "build")
    (tmp_path / machine_id()).mkdir()

    def fails(**more: Any) -> None:
        raise PageFailed("no figure")

    def draw(work: Any) -> list[str]:
        execute._child("q99", "draw", "recorded", None, work)
        return [run.state for run in runs.read(machine_id())]

    assert draw(lambda log: 1) == []  # nothing to take back: not worth a line
    with pytest.raises(PageFailed):
        draw(fails)
    assert draw(lambda log: 1) == ["failed", "done"]
    assert draw(lambda log: 1) == ["failed", "done"]
