"""The rules for one value and for two: what each computes for one case, from rows that are there and succeeded.

Every function takes a condition and rows and returns a Finding whose reason is one sentence with its numbers.
They are named, with their fields, in ``rules.RULES``; the rules for groups and trends are in ``trends``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from cnnstudy import stats
from cnnstudy.config import Refused
from cnnstudy.report.rows import Condition, Group, Row, group, label, raw, same, say
from cnnstudy.report.wording import amount, bare, of, plain, verb
from cnnstudy.stats import Interval

State = Literal["holds", "fails", "unclear", "missing"]


@dataclass(frozen=True)
class Finding:
    """What a rule found.  ``slack``: how far the interval stays from the margin, relative to it (to name the tightest case)."""

    state: State
    estimate: float | None
    low: float | None
    high: float | None
    n: int
    reason: str
    slack: float = field(default=0.0, compare=False, repr=False)


def missing(reason: str, n: int = 0) -> Finding:
    return Finding("missing", None, None, None, n, reason)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _exact(condition: Condition) -> bool:
    """One value of an exact, published or hardware measurement is a point; of a trained one it is no evidence."""
    return condition.get("kind", "exact") != "trained"


def _finding(state: State, i: Interval, reason: str, slack: float = 0.0) -> Finding:
    return Finding(state, _finite(i.estimate), _finite(i.low), _finite(i.high), i.n, reason, slack)


def amount_of(condition: Condition, value: float, difference: bool = False, metric: str | None = None) -> str:
    """A number of the condition's metric with its unit; published accuracies are in percent."""
    return amount(metric or condition["metric"], value, difference, condition.get("kind") == "published")


def natural(condition: Condition, value: float) -> str:
    """A number on the scale of judging (a logarithm with ``log``), shown in its own unit."""
    if condition.get("log"):
        value = 10**value if value < 300 else math.inf
    return amount_of(condition, value)


def _shown(i: Interval, show: Any, what: str = "seed", level: int = 95) -> str:
    """``4.2 points (95 % interval 3.1 to 5.3 points, 3 seeds)``; a point has no interval."""
    if i.low == i.high:
        return f"{show(i.estimate)} ({'one measurement' if i.n == 1 else of(i.n, what) + ', all alike'})"
    if not math.isfinite(i.low):
        return f"{show(i.estimate)} (interval unbounded, {of(i.n, what)})"
    return f"{show(i.estimate)} ({level} % interval {_range(show(i.low), show(i.high))}, {of(i.n, what)})"


def _range(low: str, high: str) -> str:
    """``3.1 to 5.3 points``: a unit that both share is said once."""
    (left, _, unit), (_, _, other) = low.partition(" "), high.partition(" ")
    return f"{left if unit == other else low} to {high}"


def _band(i: Interval, low: float, high: float, strict: bool = False) -> State:
    """Is the interval wholly inside [low, high] (open if ``strict``), wholly outside, or neither?"""
    if (i.low > low and i.high < high) if strict else (i.low >= low and i.high <= high):
        return "holds"
    outside = (i.high <= low or i.low >= high) if strict else (i.high < low or i.low > high)
    return "fails" if outside else "unclear"


def _one_sided(condition: Condition, i: Interval, margin: float, strict: bool = False, least: float | None = None) -> State:
    """Above the margin?  With ``interval_above`` the estimate (or the ``least`` that it may be, for the noise floor) must pass the
    margin, and the interval that bound.
    """
    if "interval_above" not in condition:
        return _band(i, margin, math.inf, strict)
    if (i.estimate if least is None else least) >= margin and i.low > condition["interval_above"]:
        return "holds"
    return "fails" if i.high < margin else "unclear"


def _point(i: Interval) -> Interval:
    return Interval(i.estimate, i.estimate, i.estimate, i.n)


def _scaled(condition: Condition, i: Interval, times: float = 1.0) -> Interval:
    """The interval of a time or a ratio of times, stretched by the factor 1 + noise floor; ``times``: the floor counts so often."""
    by = 1 + times * condition.get("noise", 0.0)
    return Interval(i.estimate, i.low / by if i.low > 0 else i.low * by, i.high * by if i.high > 0 else i.high / by, i.n)


def _shifted(i: Interval, by: float) -> Interval:
    """The interval, longer by ``by`` at both ends: what the noise floor adds to a difference, or on a logarithmic scale."""
    return Interval(i.estimate, i.low - by, i.high + by, i.n)


def _noise(condition: Condition, *values: float) -> float:
    """The noise floor in units of the metric, of the largest of some times; on the scale of judging with ``log``."""
    noise = condition.get("noise", 0.0)
    return math.log10(1 + noise) if condition.get("log") else noise * max(map(abs, values))


def _slack(i: Interval, *margins: float) -> float:
    gaps = [min(abs(i.low - m), abs(i.high - m)) / (abs(m) or 1) for m in margins if math.isfinite(m)]
    return min((g for g in gaps if math.isfinite(g)), default=0.0)


_CLAUSE = {"holds": "{yes} {m}", "fails": "{no} {m}", "unclear": "which does not decide whether it is {yes} {m}", "missing": ""}


def _clause(state: State, yes: str, no: str, margin: str) -> str:
    return _CLAUSE[state].format(yes=yes, no=no, m=margin)


def _of(condition: Condition) -> str:
    """``parameters of resnet18 are``."""
    at, noun = condition.get("at", {}), plain(condition["metric"])
    return f"{noun}{' of ' + label(at) if at else ''} {verb(noun)}"


# one sample


def equal(condition: Condition, rows: Sequence[Row]) -> Finding:
    metric = condition["metric"]
    values = [raw(r, metric, condition) for r in rows]
    if "same" in condition and len(values) < 2:
        return missing("two measurements are needed to agree", len(values))
    wanted = values[0] if "same" in condition else condition["value"]
    wrong = [(r, v) for r, v in zip(rows, values, strict=True) if not same(v, wanted)]
    first = wrong[0][1] if wrong else values[0]
    estimate = float(first) if isinstance(first, (int, float)) and not isinstance(first, bool) else None
    where = "in all " + of(len(values), "measurement") if len(values) > 1 else "as measured"
    if not wrong:
        return Finding("holds", estimate, estimate, estimate, len(values), f"{_of(condition)} {_value(metric, wanted)} {where}")
    row, value = wrong[0]
    who = f"{row.machine + ', ' if row.machine else ''}seed {row.seed}"
    reason = f"{_of(condition)} {_value(metric, value)}, not {_value(metric, wanted)}, in {len(wrong)} of {len(values)} ({who})"
    return Finding("fails", estimate, estimate, estimate, len(values), reason)


def _value(metric: str, value: Any) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:,}" if isinstance(value, int) else amount(metric, value)
    return "[" + ", ".join(say(v) for v in value) + "]" if isinstance(value, list) else say(value)


def _mean(condition: Condition, rows: Sequence[Row]) -> tuple[Interval, Interval, str]:
    """The mean over seeds and its interval, each widened by the noise floor, and the mean in words (back from the logarithm)."""
    i = stats.mean(list(group(rows, {}, condition).values.values()), exact=_exact(condition))
    point, wide = (_shifted(one, _noise(condition)) if condition.get("log") else _scaled(condition, one) for one in (_point(i), i))
    return point, wide, f"{_of(condition)} {_shown(i, lambda v: natural(condition, v))}"


def _scale(condition: Condition, value: float) -> float:
    """A margin on the scale of the numbers: its logarithm with ``log: true``."""
    if not condition.get("log") or not math.isfinite(value):
        return value
    if value <= 0:
        raise Refused(f"log: true needs margins above 0, got {value}")
    return math.log10(value)


def _back(condition: Condition, finding: Finding) -> Finding:
    if not condition.get("log"):
        return finding
    low, mid, high = (None if v is None else 10**v for v in (finding.low, finding.estimate, finding.high))
    return Finding(finding.state, mid, low, high, finding.n, finding.reason, finding.slack)


def within(condition: Condition, rows: Sequence[Row]) -> Finding:
    if "value" in condition:
        tolerance = condition.get("abs_tol", abs(condition["value"]) * condition.get("rel_tol", 0))
        low, high = condition["value"] - tolerance, condition["value"] + tolerance
    else:
        low, high = condition.get("low", -math.inf), condition.get("high", math.inf)
    _, i, said = _mean(condition, rows)
    ends = _scale(condition, low), _scale(condition, high)
    state = _band(i, *ends)
    asked, yes, no = _asked(low, high, lambda v: amount_of(condition, v))
    if "rel_tol" in condition and condition["value"]:
        off = abs(i.estimate / condition["value"] - 1)
        asked = f"{condition['rel_tol'] * 100:g} % of {amount_of(condition, condition['value'])} (off by {off * 100:.2g} %)"
    return _back(condition, _finding(state, i, f"{said}, {_clause(state, yes, no, asked)}", _slack(i, *ends)))


def above(condition: Condition, rows: Sequence[Row]) -> Finding:
    point, i, said = _mean(condition, rows)
    margin = _scale(condition, condition["margin"])
    scaled = dict(condition)
    if "interval_above" in condition:
        scaled["interval_above"] = _scale(condition, condition["interval_above"])
    state = _one_sided(scaled, i, margin, least=point.low)
    clause = _clause(state, "at least", "below", amount_of(condition, condition["margin"]))
    return _back(condition, _finding(state, i, f"{said}, {clause}", _slack(i, margin)))


def below(condition: Condition, rows: Sequence[Row]) -> Finding:
    point, i, said = _mean(condition, rows)
    margin = _scale(condition, condition["margin"])
    flipped = {"interval_above": -_scale(condition, condition["interval_below"])} if "interval_below" in condition else {}
    state = _one_sided(flipped, Interval(-i.estimate, -i.high, -i.low, i.n), -margin, least=-point.high)
    clause = _clause(state, "at most", "above", amount_of(condition, condition["margin"]))
    return _back(condition, _finding(state, i, f"{said}, {clause}", _slack(i, margin)))


# two samples


def _noisy(condition: Condition, i: Interval, a: Group, b: Group) -> Interval:
    """The interval of a difference, widened by the noise floor of the larger of the two times."""
    return _shifted(i, _noise(condition, fmean(a.values.values()), fmean(b.values.values())))


def _difference(condition: Condition, a: Group, b: Group) -> Interval:
    if condition.get("unpaired") or a.values.keys() != b.values.keys():
        return stats.welch_difference(list(a.values.values()), list(b.values.values()), exact=_exact(condition))
    return stats.paired_difference(a.values, b.values, exact=_exact(condition))


def difference_above(condition: Condition, rows: Sequence[Row]) -> Finding:
    metric = condition["metric"]
    a, b = group(rows, condition["a"], condition), group(rows, condition["b"], condition)
    i = _difference(condition, a, b)
    wide = _noisy(condition, i, a, b)
    state = _one_sided(condition, wide, condition["margin"], strict=True, least=_noisy(condition, _point(i), a, b).low)
    clause = _clause(state, "more than", "not more than", amount_of(condition, condition["margin"], True))
    reason = f"{plain(metric)} of {a.label} less that of {b.label} is {_shown(i, lambda v: amount_of(condition, v, True))}, {clause}"
    return _finding(state, wide, reason, _slack(wide, condition["margin"]))


def equivalent_within(condition: Condition, rows: Sequence[Row]) -> Finding:
    metric = condition["metric"]
    a, b = group(rows, condition["a"], condition), group(rows, condition["b"], condition)
    margin = condition["margin"] if "margin" in condition else condition["rel_margin"] * abs(fmean(b.values.values()))
    i = stats.equivalence(a.values, b.values, exact=_exact(condition))
    wide = _noisy(condition, i, a, b)
    state = _band(wide, -margin, margin)
    clause = _clause(state, "within", "beyond", f"±{amount_of(condition, margin, True)}")
    reason = (
        f"{plain(metric)} of {a.label} less that of {b.label} is {_shown(i, lambda v: amount_of(condition, v, True), level=90)}, {clause}"
    )
    return _finding(state, wide, reason, _slack(wide, -margin, margin))


def ratio_between(condition: Condition, rows: Sequence[Row]) -> Finding:
    a, b = group(rows, condition["a"], condition), group(rows, condition["b"], condition)
    top, bottom, words = dict(a.values), dict(b.values), f"{plain(condition['metric'])} of {a.label} over that of {b.label}"
    often = 1.0
    if "base" in condition:
        base = group(rows, condition["base"], condition)
        often = sum(_leverage(one, base) for one in (a, b))
        top, bottom = ({s: v[s] - base.values[s] for s in v.keys() & base.values.keys()} for v in (top, bottom))
        words = f"share of the gap in {plain(condition['metric'])} from {base.label} to {b.label} that {a.label} makes up"
    if not top.keys() & bottom.keys():
        return missing(f"no seed that {a.label} and {b.label} share")
    if condition.get("log"):
        d = stats.paired_difference(top, bottom, exact=_exact(condition))
        i = Interval(10**d.estimate, 10**d.low, 10**d.high if d.high < 300 else math.inf, d.n)
    else:
        i = stats.ratio_of_means(top, bottom, exact=_exact(condition))
    point, wide = _scaled(condition, _point(i), often), _scaled(condition, i, often)
    low, high = condition.get("low", -math.inf), condition.get("high", math.inf)
    state = _band(wide, low, high)
    if "interval_above" in condition:
        state = _one_sided(condition, wide, low, least=point.low)
    elif "interval_below" in condition:
        bound = {"interval_above": -condition["interval_below"]}
        state = _one_sided(bound, Interval(-wide.estimate, -wide.high, -wide.low, wide.n), -high, least=-point.high)
    asked, yes, no = _asked(low, high, bare)
    return _finding(state, wide, f"{words} is {_shown(i, bare)}, {_clause(state, yes, no, asked)}", _slack(wide, low, high))


def _leverage(a: Group, base: Group) -> float:
    """How often the relative error of a time counts in the relative error of its difference from another: (a + base) / |a - base|."""
    one, other = fmean(a.values.values()), fmean(base.values.values())
    return (abs(one) + abs(other)) / abs(one - other) if one != other else math.inf


def _asked(low: float, high: float, show: Any) -> tuple[str, str, str]:
    """The band in words, and the words for inside and outside."""
    if math.isinf(high):
        return show(low), "at least", "below"
    if math.isinf(low):
        return show(high), "at most", "above"
    return _range(show(low), show(high)), "within", "outside"
