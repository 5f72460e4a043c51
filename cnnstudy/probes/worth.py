"""What accuracy costs: per point, and per point gained from one network of a family to the next."""

from __future__ import annotations

from collections.abc import Sequence

from cnnstudy.config import Refused


def worth(top1: Sequence[float], cost: Sequence[float]) -> dict[str, float | None]:
    """What the last of one or two networks, the cheaper first, is worth; accuracies in points, costs in any one unit.

    ``top1``, ``cost`` of the last; ``cost_per_point`` (cost / top1); and, against the first, ``points_gained``,
    ``extra_cost`` and ``gain_per_cost`` (points per unit; None where there is no first, or the last costs no more).
    Raises Refused for other numbers of networks or a cost or accuracy that is not above 0.
    """
    if len(top1) != len(cost) or len(cost) not in (1, 2) or min(*top1, *cost, 1) <= 0:
        raise Refused(f"worth needs one or two accuracies and costs above 0; got {list(top1)} and {list(cost)}")
    gained, extra = (top1[-1] - top1[0], cost[-1] - cost[0]) if len(cost) == 2 else (None, None)
    return {
        "top1": top1[-1],
        "cost": cost[-1],
        "cost_per_point": cost[-1] / top1[-1],
        "points_gained": gained,
        "extra_cost": extra,
        "gain_per_cost": gained / extra if gained is not None and extra is not None and extra > 0 else None,
    }
