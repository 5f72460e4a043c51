"""Which network is best if training may take only so long: cells of a grid of networks with a cost and accuracies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cnnstudy.config import Refused


@dataclass(frozen=True)
class Cell:
    """A network of the grid: its depth, its width factor ``k``, what its training takes (seconds), and its accuracy by seed.

    Without accuracies it was timed, but not trained.
    """

    depth: int
    k: int
    seconds: float
    accuracy: dict[int, float]

    @property
    def mean(self) -> float:
        """Mean accuracy over seeds."""
        return sum(self.accuracy.values()) / len(self.accuracy)


def within(cells: Sequence[Cell], seconds: float) -> list[Cell]:
    """The trained cells whose training takes at most so long."""
    return [cell for cell in cells if cell.accuracy and cell.seconds <= seconds]


def best(cells: Sequence[Cell]) -> Cell:
    """The cell with the highest mean accuracy; of equals the cheaper."""
    if not cells:
        raise Refused("no trained network fits this budget; a larger one is needed")
    return max(cells, key=lambda cell: (cell.mean, -cell.seconds))


def lead(cells: Sequence[Cell], wanted: Callable[[Cell], bool], seed: int) -> float | None:
    """Accuracy of the best cell that is ``wanted`` less that of the best of the others, in the runs of one seed.

    Both are chosen by their mean over seeds.  None if there are only cells of one sort.
    """
    yes, no = [c for c in cells if wanted(c)], [c for c in cells if not wanted(c)]
    return best(yes).accuracy[seed] - best(no).accuracy[seed] if yes and no else None


def front(cells: Sequence[Cell]) -> list[Cell]:
    """The Pareto front: trained cells that no other one beats in both time and mean accuracy, by rising time."""
    done = sorted((c for c in cells if c.accuracy), key=lambda c: (c.seconds, -c.mean))
    found: list[Cell] = []
    for cell in done:
        if not found or cell.mean > found[-1].mean:
            found.append(cell)
    return found


def untrained(cells: Sequence[Cell], seconds: float) -> int:
    """How many cells would fit the budget but were not trained."""
    return sum(not cell.accuracy and cell.seconds <= seconds for cell in cells)


def cells_of(steps: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], images: int, epochs: int) -> list[Cell]:
    """The cells from rows of timed steps (``model.depth``, ``model.k``, ``latency_ms``, ``batch``) and of trainings (``model.depth``,
    ``model.k``, ``seed``, ``val_acc``): the time of ``epochs`` on ``images``, by the median step.  Others are left out."""
    found = []
    for step in steps:
        cell = (step["model.depth"], step["model.k"])
        own = {int(run["seed"]): run["val_acc"] for run in runs if (run["model.depth"], run["model.k"]) == cell}
        seconds = step["latency_ms"] / 1000 * (images // int(step["batch"])) * epochs
        found.append(Cell(int(cell[0]), int(cell[1]), seconds, own))
    return found


def verdict(cells: Sequence[Cell], factor: float, seed: int) -> dict[str, Any]:
    """The grid within ``factor`` times the training time of its deepest thin network.

    ``best_depth``, ``best_k``: the best cell; ``wide_lead``: by how much the best cell with k >= 2 and fewer layers than the deepest
    leads all others, ``thin_lead``: the same for the deepest thin one, both in the runs of ``seed``; ``untrained``: see above; ``seconds``.
    Raises Refused if no thin network was timed.
    """
    thin = [c for c in cells if c.k == 1]
    if not thin:
        raise Refused("a budget is a multiple of the deepest thin network's time, and no network with k = 1 was timed")
    anchor = max(thin, key=lambda c: c.depth)
    deepest, seconds = max(c.depth for c in cells), factor * anchor.seconds
    fit = within(cells, seconds)
    top = best(fit)
    return {
        "best_depth": top.depth, "best_k": top.k, "best_accuracy": top.mean, "seconds": seconds, "untrained": untrained(cells, seconds),
        "wide_lead": lead(fit, lambda c: c.k >= 2 and c.depth < deepest, seed), "thin_lead": lead(fit, lambda c: c == anchor, seed),
    }  # fmt: skip
