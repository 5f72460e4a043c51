"""Best network within a budget of time: by hand, on a grid of five."""

from __future__ import annotations

import pytest

from cnnstudy import budgets
from cnnstudy.budgets import Cell
from cnnstudy.config import Refused

THIN = Cell(40, 1, 100.0, {0: 0.70, 1: 0.72})
SMALL = Cell(10, 1, 20.0, {0: 0.60, 1: 0.60})
WIDE = Cell(16, 2, 90.0, {0: 0.74, 1: 0.74})
WIDER = Cell(16, 4, 300.0, {0: 0.80, 1: 0.78})
WORSE = Cell(28, 1, 95.0, {0: 0.65, 1: 0.65})
UNTRAINED = Cell(28, 2, 150.0, {})
ALL = [THIN, SMALL, WIDE, WIDER, WORSE, UNTRAINED]


def shallow(cell: Cell) -> bool:
    return cell.k >= 2 and cell.depth < 40


def test_only_what_fits_and_was_trained_counts() -> None:
    assert budgets.within(ALL, 100.0) == [THIN, SMALL, WIDE, WORSE]
    assert budgets.within(ALL, 200.0) == [THIN, SMALL, WIDE, WORSE]
    assert budgets.untrained(ALL, 149.0) == 0 and budgets.untrained(ALL, 150.0) == 1


def test_the_best_by_mean_and_of_equals_the_cheaper() -> None:
    assert budgets.best(ALL[:5]) is WIDER
    assert budgets.best(budgets.within(ALL, 100.0)) is WIDE
    assert budgets.best([Cell(1, 1, 2.0, {0: 0.5}), Cell(2, 1, 1.0, {0: 0.5})]).depth == 2
    with pytest.raises(Refused, match="no trained network fits"):
        budgets.best([])


def test_the_lead_is_taken_within_one_seed_between_the_best_of_both_sorts() -> None:
    cells = budgets.within(ALL, 100.0)
    assert budgets.lead(cells, shallow, 0) == pytest.approx(0.04) and budgets.lead(cells, shallow, 1) == pytest.approx(0.02)
    assert budgets.lead([SMALL, THIN], shallow, 0) is None


def test_the_front_rises_with_time() -> None:
    assert budgets.front(ALL) == [SMALL, WIDE, WIDER]
    assert budgets.front([THIN, Cell(1, 1, 100.0, {0: 0.9})]) == [Cell(1, 1, 100.0, {0: 0.9})]


def test_cells_from_rows_of_records() -> None:
    steps = [
        {"model.depth": 16.0, "model.k": 2.0, "latency_ms": 500.0, "batch": 128},
        {"model.depth": 40, "model.k": 1, "latency_ms": 250.0, "batch": 128},
    ]
    runs = [{"model.depth": 16, "model.k": 2, "seed": s, "val_acc": 0.5 + s / 10} for s in (0, 1)]
    wide, thin = budgets.cells_of(steps, runs, images=10_000, epochs=10)
    assert wide == Cell(16, 2, 0.5 * 78 * 10, {0: 0.5, 1: 0.6})
    assert thin.accuracy == {} and thin.seconds == 195.0


def test_verdict_of_a_budget() -> None:
    found = budgets.verdict(ALL, 1, 0)
    assert (found["best_depth"], found["best_k"], found["seconds"], found["untrained"]) == (16, 2, 100.0, 0)
    assert found["wide_lead"] == pytest.approx(0.04) and found["thin_lead"] == pytest.approx(-0.04)
    assert budgets.verdict(ALL, 1.5, 0)["untrained"] == 1
    assert budgets.verdict(ALL, 3, 1)["wide_lead"] == pytest.approx(0.78 - 0.72)
    with pytest.raises(Refused, match="no network with k = 1"):
        budgets.verdict([WIDE], 1, 0)
