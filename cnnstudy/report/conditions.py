"""One condition of a ledger, checked against the table of rules and filled with its defaults."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from cnnstudy.config import Refused, choose
from cnnstudy.report.plan import PROFILES
from cnnstudy.report.rows import REDUCE
from cnnstudy.report.rules import RULES
from cnnstudy.report.trends import SCALES
from cnnstudy.report.wording import timed

NUMBERS = (
    "margin", "low", "high", "rel_tol", "abs_tol", "interval_above", "interval_below", "rel_margin", "saturation", "alike",
)  # fmt: skip
WHOLE = ("min_seeds", "min_values", "min_setups", "min_machines")
FLAGS = ("same", "log", "iqr", "strict", "unpaired")
WORDS: dict[str, Iterable[str]] = {
    "reduce": REDUCE, "needs": PROFILES, "machines": ("all",), "direction": ("increasing", "decreasing"), "scale": SCALES,
    "of": ("rows", "setups", "values"), "unclear_as": ("holds", "fails"),
}  # fmt: skip
FILTERS = ("at", "where", "a", "b", "base")
FLOORLESS = ("correlation",)  # an order over many networks: its own interval is far wider than what the noise of a clock adds
TEXTS = ("metric", "metric_b", "over", "text")


def check(body: Any, experiments: Mapping[str, Any]) -> dict[str, Any]:
    """The condition with its defaults (``needs``, ``min_seeds``), its experiment's ``kind`` and, for a time, its noise ``floor``.

    Raises Refused, naming the field and what is valid; also for an ``exclusive`` experiment of the machine without a noise floor: nothing
    tells its differences from what the machine does by itself.
    """
    if not isinstance(body, Mapping):
        raise Refused(f"{body!r} is not a mapping with rule, experiment, metric, ...")
    for name in ("rule", "experiment", "metric"):
        if name not in body:
            raise Refused(f"lacks its {name!r}" + (f"; valid: {', '.join(RULES)}" if name == "rule" else ""))
    rule = RULES[choose("rule", body["rule"], RULES)]
    experiment = experiments[choose("experiment", body["experiment"], experiments)]
    for name in body:
        choose(f"field of {rule.name}", name, rule.fields)
    for name in rule.required:
        if name not in body:
            raise Refused(f"{rule.name} lacks its {name!r}; it requires {', '.join(rule.required)}")
    for names in rule.exactly_one:
        if sum(n in body for n in names) != 1:
            raise Refused(f"{rule.name} needs exactly one of {', '.join(names)}")
    for names in rule.at_least_one:
        if not any(n in body for n in names):
            raise Refused(f"{rule.name} needs at least one of {', '.join(names)}")
    for name, value in body.items():
        _check_field(rule.name, name, value)
    _check_sense(body)
    default = 3 if experiment.kind == "trained" else 1
    done = {"needs": experiment.needs, "min_seeds": default} | dict(body) | {"kind": experiment.kind}
    if experiment.kind == "trained" and done["min_seeds"] < 2:
        raise Refused("min_seeds is 1 for a trained experiment; one seed has no interval, expected 2 or more")
    if experiment.exclusive and experiment.kind == "hardware" and not experiment.floor and not _is_floor(experiment, experiments):
        raise Refused(f"{experiment.name} is timed alone and names no noise floor; give it floor: <the experiment that measures it>")
    if experiment.floor and timed(body["metric"]):
        if not rule.floored and rule.name not in FLOORLESS:
            able = ", ".join(name for name, one in RULES.items() if one.floored)
            raise Refused(f"{rule.name} cannot take the noise floor of {experiment.name} into account; rules that can: {able}")
        if "saturation" in body:
            raise Refused(f"saturation cannot take the noise floor of {experiment.name} into account")
        done |= {"floor": experiment.floor} if rule.floored else {}
    return done


def _is_floor(experiment: Any, experiments: Mapping[str, Any]) -> bool:
    return any(other.floor == experiment.name for other in experiments.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check_field(rule: str, name: str, value: Any) -> None:
    if (name in NUMBERS or (name == "value" and rule == "within")) and not _is_number(value):
        raise Refused(f"{name} is {value!r}; expected a number")
    if name in WHOLE and (type(value) is not int or value < 1):
        raise Refused(f"{name} is {value!r}; expected 1, 2, ...")
    if name in FLAGS and value is not True:
        raise Refused(f"{name} is {value!r}; expected true (or leave it out)")
    if name in WORDS:
        choose(name, value, WORDS[name])
    if name in TEXTS and not (isinstance(value, str) and value.strip()):
        raise Refused(f"{name} is {value!r}; expected text")
    if name in FILTERS:
        _check_filter(name, value)
    if name == "groups":
        if not isinstance(value, list) or len(value) < 2:
            raise Refused(f"groups is {value!r}; expected a list of two or more filters")
        for wanted in value:
            _check_filter("groups", wanted)
    if name == "order" and (not isinstance(value, list) or len(value) < 3):
        raise Refused(f"order is {value!r}; expected a list of three or more values of `over`")
    if name in ("each", "any"):
        paths = value if isinstance(value, list) else [value]
        if not paths or not all(isinstance(p, str) and p for p in paths):
            raise Refused(f"{name} is {value!r}; expected a path or a list of paths")
    if name == "meets" and isinstance(value, Mapping):
        _check_filter("meets", {"meets": value})


def _check_filter(name: str, wanted: Any) -> None:
    if not isinstance(wanted, Mapping):
        raise Refused(f"{name} is {wanted!r}; expected {{path: value}}")
    for path, value in wanted.items():
        if path == "pick":
            if name not in ("a", "b", "base") or not isinstance(value, Mapping) or len(value) != 1 or not {*value} <= {"max", "min"}:
                raise Refused(f"pick is {value!r} in {name}; expected {{max: metric}} or {{min: metric}} in a, b or base")
        elif isinstance(value, Mapping):
            for end in value:
                choose(f"comparison of {path}", end, ("low", "high", "not"))
            if not value or any(end != "not" and not _is_number(v) for end, v in value.items()) or ("not" in value and len(value) > 1):
                raise Refused(f"{path} is {dict(value)!r} in {name}; expected {{low: number, high: number}} or {{not: value}}")


def _check_sense(body: Mapping[str, Any]) -> None:
    """What is well-formed but could only be an oversight."""
    if body.get("low", -math.inf) > body.get("high", math.inf):
        raise Refused(f"low {body['low']} is above high {body['high']}")
    if body["rule"] == "within":
        if ("value" in body) != (("rel_tol" in body) != ("abs_tol" in body)) or ("rel_tol" in body and "abs_tol" in body):
            raise Refused("within needs value with one of rel_tol and abs_tol, or low and high")
        if "value" in body and ("low" in body or "high" in body):
            raise Refused("within needs value with a tolerance, or low and high, not both")
    for name in ("rel_tol", "abs_tol", "rel_margin", "alike"):
        if body.get(name, 0) < 0:
            raise Refused(f"{name} is {body[name]}; expected 0 or more")
    target = body.get("margin", body.get("low"))
    if "interval_above" in body and (target is None or body["interval_above"] > target):
        raise Refused(f"interval_above {body['interval_above']} must not exceed the {'margin' if 'margin' in body else 'low'} {target}")
    target = body.get("margin", body.get("high"))
    if "interval_below" in body and (target is None or body["interval_below"] < target):
        raise Refused(f"interval_below {body['interval_below']} must not be under the {'margin' if 'margin' in body else 'high'} {target}")
    if body.get("log") and "base" in body:
        raise Refused("log and base exclude each other")
    if "iqr" in body and "reduce" in body:
        raise Refused("iqr and reduce exclude each other")
    if "min_machines" in body and body.get("machines") != "all":
        raise Refused("min_machines needs machines: all")
