"""What a user sees of a run: lines, table, estimates."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cnnstudy.report import live


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "?"), (0.4, "0 s"), (99, "99 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (5999.7, "1 h 40 min")]
)
def test_clock(seconds: float | None, words: str) -> None:
    assert live.clock(seconds) == words


def record(seconds: float, failed: str | None = None) -> dict[str, object]:
    return {"event": "record", "name": "q33 sweep", "seconds": seconds, "failed": failed}


def test_lines_count_and_estimate(capsys: pytest.CaptureFixture[str]) -> None:
    board = live.Board(jobs=1, terminal=False)
    board.add("q33", 3, 60.0)
    board.enter("q33", "measuring")
    board.event("q33", {"event": "begin", "name": "q33 sweep", "label": "depth=20"})
    board.event("q33", record(15.0))
    board.event("q33", record(20.0, "loss became nan"))
    board.event("q33", record(10.0))
    board.enter("q33", "done")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "q33: 3 to measure, about 60 s"
    assert lines[1] == "  q33 1/3 sweep depth=20 15.0 s; about 45 s left of q33"
    assert lines[2].endswith("left of q33  FAILED: loss became nan") and "left" not in lines[3]
    assert lines[4].startswith("q33: done in")


def test_without_an_estimate_it_learns_from_what_was_made() -> None:
    board = live.Board(terminal=False)
    board.add("q33", 4, None)
    assert board.left() is None
    board.event("q33", record(10.0))
    assert board.left() == 30.0


def test_pages_side_by_side_share_the_time_but_the_longest_counts() -> None:
    board = live.Board(jobs=2, terminal=False)
    for page, estimate in (("q01", 10.0), ("q02", 20.0), ("q03", 30.0)):
        board.add(page, 1, estimate)
    assert board.left() == 30.0
    board.add("q04", 1, 40.0)
    assert board.left() == 50.0
    board.enter("q04", "failed", "it broke")
    assert board.left() == 30.0


def test_the_table_names_page_state_measured_and_what_is_under_way() -> None:
    board = live.Board(jobs=2, terminal=False)
    board.add("q33", 2, 60.0)
    board.add("q42", 0, 0.0)
    board.enter("q33", "measuring")
    board.event("q33", {"event": "begin", "name": "q33 sweep", "label": "depth=20"})
    board.event("q33", record(15.0))
    board.event("q33", {"event": "tick", "done": 3, "total": 4, "seconds": 1.0})
    board.enter("q42", "failed", "NameError: x")
    out = io.StringIO()
    Console(file=out, width=110).print(board.table())
    lines = out.getvalue().splitlines()
    assert "0 of 2 pages done, 0 to come; about 45 s left" in lines[0]
    assert lines[2].split() == ["q33", "measuring", "1/2", "0", "s", "45", "s", "sweep", "depth=20", "75%"]
    assert "failed" in lines[3] and "NameError: x" in lines[3]
