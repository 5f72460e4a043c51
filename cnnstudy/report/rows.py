"""Rows: measurements as rules see them, and how a condition picks numbers from them.

A *filter* maps dotted paths of a setup to what is wanted: a value, a list of values, ``{low: , high: }`` or
``{not: }``.  A path that a setup leaves out (a neutral default) has the value null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from cnnstudy.config import Refused, choose

Filter = Mapping[str, Any]
Condition = Mapping[str, Any]
REDUCE: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": fmean, "median": median, "min": min, "max": max, "last": lambda values: values[-1],
}  # fmt: skip
BESIDE = ("machine", "profile", "seed")  # what `each` and `over` may name besides the paths of a setup
FLOOR = 1e-45  # on the log scale, 0 is read as less than float32 can hold


@dataclass(frozen=True)
class Row:
    """One measurement: its flattened setup, seed and metrics; ``failed`` says why there are no metrics.

    ``floor``: the noise floor of the machine for this time (0.02: 2 %), 0 for what is not timed.
    """

    setup: Mapping[str, Any]
    seed: int
    metrics: Mapping[str, Any]
    machine: str = ""
    profile: str = ""
    failed: str | None = None
    floor: float = 0.0

    def get(self, path: str) -> Any:
        """The value of a dotted path of the setup, or machine, profile, seed; None where it is left out."""
        return getattr(self, path) if path in BESIDE else self.setup.get(path)


@dataclass(frozen=True)
class Group:
    """The numbers of one side of a comparison: per seed one number."""

    label: str
    values: Mapping[int, float]


def same(a: Any, b: Any) -> bool:
    """Equal as JSON values: 2 is 2.0, but 1 is not true; lists item by item."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return isinstance(a, bool) == isinstance(b, bool) and bool(a == b)


def meets(value: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one, one of a list, within {low, high}, or not {not: ...}."""
    if isinstance(wanted, Mapping):
        if "not" in wanted:
            return not meets(value, wanted["not"])
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return False
        return bool(wanted.get("low", -math.inf) <= value <= wanted.get("high", math.inf))
    if isinstance(wanted, list):
        return any(same(value, w) for w in wanted) or same(value, wanted)
    return same(value, wanted)


def matches(setup: Mapping[str, Any], wanted: Filter) -> bool:
    """Whether a flattened setup passes a filter; ``pick`` is not a path and decides later."""
    return all(meets(setup.get(path), value) for path, value in wanted.items() if path != "pick")


def filters(condition: Condition) -> list[Filter]:
    """The filters of a condition's groups (a, b, base, groups); one that takes everything if it has none."""
    sides = [condition[s] for s in ("a", "b", "base") if s in condition] + list(condition.get("groups", ()))
    return sides or [{}]


def take(rows: Iterable[Row], wanted: Filter) -> list[Row]:
    """The rows that pass a filter (paths ``machine``, ``profile`` and ``seed`` included)."""
    keep = {p: v for p, v in wanted.items() if p != "pick"}
    return [r for r in rows if all(meets(r.get(p), v) for p, v in keep.items())]


def raw(row: Row, metric: str, condition: Condition) -> Any:
    """A metric of a row: a top-level name, a dotted one into a nested metric, or a path of the setup."""
    if row.failed is not None:
        return condition.get("failed_as")
    value: Any = row.metrics
    if metric in row.metrics:
        return row.metrics[metric]
    for part in metric.split("."):
        if not isinstance(value, Mapping) or part not in value:
            if metric in row.setup:
                return row.setup[metric]
            choose(f"metric of {condition.get('experiment', 'the rows')}", metric, [*row.metrics, *row.setup])
        value = value[part]
    return value


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Single values by dotted name: ``{"kept": {"0_5": 1}}`` -> ``{"kept.0_5": 1}``, ``{"few": [1]}`` -> ``{"few[0]": 1}``."""
    if isinstance(value, Mapping):
        return {p: v for n, part in value.items() for p, v in leaves(part, f"{path}.{n}" if path else n).items()}
    if isinstance(value, list):
        return {p: v for i, part in enumerate(value) for p, v in leaves(part, f"{path}[{i}]").items()}
    return {path: value}


def unusable(rows: Sequence[Row], condition: Condition) -> str | None:
    """Why some rows give no number: failed measurements, or a metric that is null (not finite, not published); None if all do."""
    bad = [r.failed for r in rows if r.failed is not None and "failed_as" not in condition]
    names = [condition[m] for m in ("metric", "metric_b") if m in condition]
    bad += [f"{m} has no value" for r in rows if r.failed is None for m in names if raw(r, m, condition) is None]
    if not bad:
        return None
    return f"{len(bad)} of {len(rows)} measurements gave no number ({bad[0]})"


def number(row: Row, metric: str, condition: Condition) -> float:
    """The number of a row: a list is reduced by ``reduce``; with ``log`` the logarithm to base 10."""
    value = raw(row, metric, condition)
    if isinstance(value, (list, tuple)):
        if "reduce" not in condition:
            raise Refused(f"{metric} is a list; say how it becomes one number, reduce: {', '.join(REDUCE)}")
        value = REDUCE[condition["reduce"]]([v for v in value if v is not None])
    if not isinstance(value, (int, float)):
        raise Refused(f"{metric} is {value!r}, not a number; the rules for text and lists are equal and share_of")
    return math.log10(max(value, FLOOR)) if condition.get("log") else float(value)


def setup_id(row: Row) -> tuple[Any, ...]:
    return (row.machine, *((p, repr(v)) for p, v in sorted(row.setup.items())))


def by_setup(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows that differ in nothing but the seed, together; in the order of first appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(setup_id(row), []).append(row)
    return list(groups.values())


def group(rows: Sequence[Row], wanted: Filter, condition: Condition, metric: str | None = None) -> Group:
    """One number per seed for the rows that pass ``wanted``.

    Several setups are an oversight unless ``reduce`` says how they combine; the error names what differs.
    """
    metric = metric or condition["metric"]
    setups = by_setup(take(rows, wanted))
    if "pick" in wanted and setups:
        (end, by), *_ = wanted["pick"].items()
        plain = {k: v for k, v in condition.items() if k != "log"}
        setups = [{"max": max, "min": min}[end](setups, key=lambda s: fmean(number(r, by, plain) for r in s))]
    if len(setups) > 1 and "reduce" not in condition:
        raise Refused(f"{label(wanted)} selects {len(setups)} setups that differ in {_differing(setups)}; narrow it or give reduce")
    per_seed: dict[int, list[float]] = {}
    for rows_of_one in setups:
        for row in rows_of_one:
            per_seed.setdefault(row.seed, []).append(number(row, metric, condition))
    whole = {s: v for s, v in sorted(per_seed.items()) if len(v) == len(setups)}
    values = {s: v[0] if len(v) == 1 else REDUCE[condition["reduce"]](v) for s, v in whole.items()}
    return Group(label(wanted), values)


def _differing(setups: Sequence[Sequence[Row]]) -> str:
    paths = dict.fromkeys(p for s in setups for p in s[0].setup)
    varied = [p for p in paths if any(not same(s[0].setup.get(p), setups[0][0].setup.get(p)) for s in setups)]
    return ", ".join(varied) or "machine"


def label(wanted: Filter) -> str:
    """A filter in words: ``depth 20, skip false``."""
    words = []
    for path, value in wanted.items():
        name = path.split(".")[-1].replace("_", " ")
        if path == "pick":
            (end, by), *_ = value.items()
            words.append(f"the setup with the {'highest' if end == 'max' else 'lowest'} {by.replace('_', ' ')}")
        elif isinstance(value, Mapping):
            words.append(f"{name} " + " ".join(_SIGN[k].format(say(v)) for k, v in value.items()))
        elif name in ("kind", "name"):
            words.append(say(value))
        else:
            words.append(f"{name} {say(value)}")
    return ", ".join(words) or "all setups"


_SIGN = {"not": "other than {}", "low": "from {}", "high": "up to {}"}


def say(value: Any) -> str:
    """A value as it is said: true, none, a or b."""
    if isinstance(value, list):
        return " or ".join(say(v) for v in value) or "none"
    if value is None:
        return "left out"
    return str(value).lower() if isinstance(value, bool) else str(value)
