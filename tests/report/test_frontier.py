import math

import pytest

from cnnstudy.config import Refused
from cnnstudy.report.frontier import digest_of, excess, one_recipe, pareto, power_law, power_law_of_two, standing

POINTS = {"small": (1.0, 60.0), "good": (2.0, 75.0), "old": (8.0, 75.0), "twin": (2.0, 75.0), "large": (20.0, 80.0), "bad": (20.0, 50.0)}


def test_the_front_holds_what_nothing_beats() -> None:
    assert pareto(POINTS) == ["small", "good", "twin", "large"]
    assert pareto({}) == []


def test_excess_is_over_the_cheapest_as_accurate() -> None:
    assert [excess(POINTS, name) for name in ("good", "old", "bad", "large")] == [1, 4, 20, 1]


def test_one_recipe_takes_what_is_named() -> None:
    rows = one_recipe("tv-v1", ["vgg16", "resnet50", "no_such"])
    assert {r["model"] for r in rows} == {"vgg16", "resnet50"}
    assert {r["model"] for r in one_recipe("tv-v1", ["vgg16", "resnet50"], ["vgg"])} == {"vgg16"}
    assert digest_of(rows) == digest_of(rows[::-1]) != digest_of(rows[:1])
    with pytest.raises(Refused, match="several rows of mobilenetv2_100"):
        one_recipe("tf-slim", ["mobilenetv2_100"])


def test_a_standing_is_among_the_families_named() -> None:
    rows = [{"model": m, "family": f, "top1": t} for m, f, t in [("a", "x", 70.0), ("b", "y", 70.0), ("c", "z", 60.0)]]
    costs = {"a": 8.0, "b": 2.0, "c": 4.0}
    assert standing(costs, rows, "a", ["x", "y"]) == {"on_front": False, "excess": 4}
    assert standing(costs, rows, "a", ["x"]) == {"on_front": False, "excess": 1}
    assert standing(costs, rows, "c", ["y"]) == {"on_front": False, "excess": 2}
    assert standing(costs, rows, "b", ["y"]) == {"on_front": True, "excess": 1}


def test_a_power_law_is_found_exactly() -> None:
    x = [1.0, 10.0, 100.0, 1000.0]
    law = power_law(x, [3 * v**0.5 for v in x])
    assert (law["slope"], law["scale"], law["median_factor"]) == pytest.approx((0.5, 3, 1))
    z = [5.0, 1.0, 2.0, 9.0]
    both = power_law_of_two(x, z, [2 * a**0.7 * b**0.2 for a, b in zip(x, z, strict=True)])
    assert both["slope"] == pytest.approx([0.7, 0.2])
    off = power_law([1, 2, 4, 8], [1, 2 * math.e, 4 / math.e, 8])
    assert all(f >= 1 for f in off["factors"])
    with pytest.raises(Refused, match="at least 3 points"):
        power_law([1, 2], [1, 2])
