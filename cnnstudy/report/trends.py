"""The rules for several groups: orders, trends, correlations, shares and differences between groups."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median, quantiles
from typing import Any

from cnnstudy import stats
from cnnstudy.config import Refused
from cnnstudy.report import judging
from cnnstudy.report.judging import Finding, State
from cnnstudy.report.rows import Condition, Group, Row, by_setup, group, label, meets, number, raw, same, take
from cnnstudy.report.wording import amount, bare, of, plain, verb
from cnnstudy.stats import Interval

SCALES: dict[str, Callable[[float], float]] = {"linear": float, "log2": math.log2, "log10": math.log10}


def _differing(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """What tells this row's setup from the others."""
    return {p: v for p, v in row.setup.items() if any(not same(r.setup.get(p), v) for r in rows)}


def ordering(condition: Condition, rows: Sequence[Row]) -> Finding:
    """Each member of a group against each member of the next; the worst pair decides."""
    upward = condition["direction"] == "increasing"
    metric, found = condition["metric"], []
    members = [by_setup(take(rows, wanted)) for wanted in condition["groups"]]
    for lower, upper in itertools.pairwise(members if upward else members[::-1]):
        for low, high in itertools.product(lower, upper):
            names = [label(_differing(one[0], rows)) for one in (high, low)]
            if condition.get("iqr"):
                found.append(_quartiles(condition, high, low, names))
                continue
            a, b = (group(one, {}, condition) for one in (high, low))
            i = judging._difference(condition, a, b)
            wide = judging._noisy(condition, i, a, b)
            state = judging._one_sided({}, wide, condition["margin"], strict=True)
            clause = judging._clause(state, "more than", "not more than", judging.amount_of(condition, condition["margin"], True))
            shown = judging._shown(i, lambda v: judging.amount_of(condition, v, True))
            reason = f"{plain(metric)} of {names[0]} less that of {names[1]} is {shown}, {clause}"
            found.append(judging._finding(state, wide, reason, judging._slack(wide, condition["margin"])))
    state = next(s for s in ("fails", "missing", "unclear", "holds") if any(f.state == s for f in found))
    those = [f for f in found if f.state == state]
    shown_one = (max if state == "fails" else min)(those, key=lambda f: f.slack)
    lead = "" if len(found) == 1 else {
        "holds": f"all {len(found)} pairs are in order, closest: ",
        "fails": f"{len(those)} of {len(found)} pairs are out of order: ",
    }.get(state, f"{len(those)} of {len(found)} pairs are {state}: ")  # fmt: skip
    return Finding(state, shown_one.estimate, shown_one.low, shown_one.high, shown_one.n, lead + shown_one.reason, shown_one.slack)


def _quartiles(condition: Condition, high: Sequence[Row], low: Sequence[Row], names: Sequence[str]) -> Finding:
    """Timed runs: ordered if the medians differ by the margin and the interquartile ranges do not overlap."""
    metric = condition["metric"]
    samples = [[v for r in one for v in _samples(raw(r, metric, condition), metric)] for one in (high, low)]
    cuts = [quantiles(one, n=4, method="inclusive") for one in samples]
    (a1, a2, a3), (b1, b2, b3), runs = *cuts, min(len(one) for one in samples)
    overlap = a1 <= b3 and b1 <= a3
    gap, noise = a2 - b2, judging._noise(condition, a2, b2)
    close = abs(gap - condition["margin"]) <= noise if noise else False
    state: State = "unclear" if overlap or close else "fails" if gap <= condition["margin"] else "holds"
    show = functools.partial(judging.amount_of, condition)
    shown = [f"{show(q2)} (quartiles {judging._range(show(q1), show(q3))})" for q1, q2, q3 in cuts]
    ranges = "the ranges overlap" if overlap else "the ranges do not overlap"
    reason = f"median {plain(metric)} is {shown[0]} for {names[0]} and {shown[1]} for {names[1]}, {runs} runs each, {ranges}"
    return Finding(state, gap, a1 - b3 - noise, a3 - b1 + noise, runs, reason, abs(a1 - b3) / (abs(b2) or 1))


def _samples(value: Any, metric: str) -> list[float]:
    if not isinstance(value, list) or len(value) < 2:
        raise Refused(f"iqr: true needs a list of samples, {metric} is {value!r}")
    return value


def monotone_in(condition: Condition, rows: Sequence[Row]) -> Finding:
    """Slope over the values of ``over`` beyond the margin, and no step significantly the other way."""
    order, over = condition.get("order"), condition["over"]
    there = order if order is not None else sorted({r.get(over) for r in rows}, key=_sortable)
    values = [v for v in there if take(rows, {over: [v]})]
    if len(values) < max(3, len(order or ())):
        return judging.missing(f"a trend in {over} needs {max(3, len(order or ()))} values, {len(values)} are measured", len(values))
    if order is None and "scale" in condition and condition["scale"] != "linear" and min(values) <= 0:
        raise Refused(f"scale {condition['scale']} needs values of {over} above 0, found {min(values)}")
    scale = SCALES[condition.get("scale", "linear")]
    x = [float(i) for i in range(len(values))] if order is not None else [scale(v) for v in values]
    sign = 1.0 if condition["direction"] == "increasing" else -1.0
    groups = [group(rows, {over: [v]}, condition) for v in values]
    seeds = sorted(set.intersection(*({*g.values} for g in groups)))
    if len(seeds) < int(condition.get("min_seeds", 1)) or not seeds:
        return judging.missing(f"{of(len(seeds), 'seed')} common to all values of {over}", len(seeds))
    exact = judging._exact(condition)
    means = [fmean(g.values.values()) for g in groups]
    i = stats.slope(x, {s: [g.values[s] for g in groups] for s in seeds}, exact=exact)
    towards = _turned(judging._shifted(i, _noise_of_slope(condition, x, means)), sign)
    differences = [(stats.paired_difference(b.values, a.values, exact=exact), a, b) for a, b in itertools.pairwise(groups)]
    steps = [_turned(judging._noisy(condition, one, a, b), sign) for one, a, b in differences]
    back = [j for j, s in enumerate(steps) if s.high < 0 or (condition.get("strict") and s.high <= 0)]
    state, why = judging._one_sided({}, towards, condition["margin"], strict=True), ""
    if back:
        state, why = "fails", f"it goes the other way from {_say(over, values[back[0]])} to {_say(over, values[back[0] + 1])}"
    elif condition.get("strict") and any(s.low <= 0 for s in steps) and state == "holds":
        state, why = "unclear", f"{sum(s.low <= 0 for s in steps)} of {of(len(steps), 'step')} is not shown"
    elif "saturation" in condition and state == "holds":
        state, why = _saturation(condition, x, groups, seeds, sign, exact)
    ends = [judging.natural(condition, m) for m in (means[0], means[-1])]
    per = {"log2": " per doubling", "log10": " per tenfold"}.get(
        condition.get("scale", ""), " per step" if order is not None else " per unit"
    )
    clause = judging._clause(state, "more than", "not more than", f"{bare(condition['margin'])} {condition['direction']}")
    reason = (
        f"{plain(condition['metric'])} goes from {ends[0]} at {_say(over, values[0])} to {ends[1]} at {_say(over, values[-1])}, "
        f"slope{' of its logarithm' if condition.get('log') else ''} {judging._shown(i, bare)}{per}, {why or clause}"
    )
    return judging._finding(state, _turned(towards, sign), reason, judging._slack(towards, condition["margin"]))


def _noise_of_slope(condition: Condition, x: Sequence[float], means: Sequence[float]) -> float:
    """The noise floor of a least-squares slope; of two times it is the floor of their difference over their distance in x."""
    centre = fmean(x)
    parts = [(v - centre) * judging._noise(condition, mean) for v, mean in zip(x, means, strict=True)]
    return math.sqrt(math.fsum(p**2 for p in parts) / 2) / math.fsum((v - centre) ** 2 for v in x)


def _turned(i: Interval, sign: float) -> Interval:
    return i if sign > 0 else Interval(-i.estimate, -i.high, -i.low, i.n)


def _sortable(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise Refused(f"monotone_in needs numbers along `over`, or their `order`; found {value!r}")
    return value


def _say(over: str, value: Any) -> str:
    return label({over: value})


def _saturation(
    condition: Condition, x: Sequence[float], groups: Sequence[Group], seeds: Sequence[int], sign: float, exact: bool
) -> tuple[State, str]:
    """The last step must still bring at least a share of the mean step (both per unit of x)."""
    share = condition["saturation"]
    left = []
    for s in seeds:
        y = [sign * g.values[s] for g in groups]
        left.append((y[-1] - y[-2]) / (x[-1] - x[-2]) - share * (y[-1] - y[0]) / (x[-1] - x[0]))
    i = stats.mean(left, exact=exact)
    if i.low >= 0:
        return "holds", ""
    word = "saturates" if i.high < 0 else "may saturate"
    return ("fails" if i.high < 0 else "unclear"), f"it {word}: the last step brings less than {share:g} of the mean step"


def correlation(condition: Condition, rows: Sequence[Row]) -> Finding:
    """Spearman over setups (means over their seeds), bootstrap over setups."""
    other = condition.get("metric_b", condition.get("over"))
    setups, least = by_setup(rows), int(condition.get("min_setups", 5))
    if len(setups) < least:
        return judging.missing(f"{len(setups)} of at least {least} setups measured", len(setups))
    a, b = ([fmean(number(r, m, condition) for r in one) for one in setups] for m in (condition["metric"], other))
    i = stats.spearman(a, b)
    low, high = condition.get("low", -math.inf), condition.get("high", math.inf)
    state = judging._band(i, low, high) if not math.isnan(i.estimate) else "unclear"
    asked, yes, no = judging._asked(low, high, bare)
    words = f"rank correlation of {plain(condition['metric'])} with {plain(other)}"
    clause = judging._clause(state, yes, no, asked)
    if math.isnan(i.estimate):
        return Finding("unclear", None, None, None, i.n, f"{words} does not exist, one of them is constant")
    return judging._finding(state, i, f"{words} is {judging._shown(i, bare, 'setup')}, {clause}", judging._slack(i, low, high))


def share_of(condition: Condition, rows: Sequence[Row]) -> Finding:
    """How many rows (or setups, or values of a list) meet a comparison; Wilson's interval for trained ones."""
    metric, what = condition["metric"], condition.get("of", "rows")
    if what == "setups":
        values = [_one_value([raw(r, metric, condition) for r in one]) for one in by_setup(rows)]
    else:
        values = [raw(r, metric, condition) for r in rows]
    if what == "values":
        values = [v for value in values for v in (value if isinstance(value, list) else [value])]
    if not values:
        return judging.missing(f"no values of {metric}")
    k = sum(meets(v, condition["meets"]) for v in values)
    i = stats.proportion(k, len(values), exact=judging._exact(condition))
    low, high = condition.get("low", 0.0), condition.get("high", 1.0)
    state = judging._band(i, low, high)
    band = condition["meets"]
    said = (
        label({metric: band}).removeprefix(metric.split(".")[-1].replace("_", " ")).strip()
        if isinstance(band, Mapping)
        else label({"": band}).strip()
    )
    noun = {"rows": "measurement", "setups": "setup", "values": "value"}[what]
    asked, yes, no = judging._asked(
        low if "low" in condition else -math.inf, high if "high" in condition else math.inf, lambda v: amount("share", v)
    )
    reason = f"{plain(metric)} {verb(plain(metric))} {said} in {k} of {of(len(values), noun)}, {amount('share', i.estimate)}"
    if i.low != i.high:
        reason += f" (95 % interval {judging._range(amount('share', i.low), amount('share', i.high))})"
    return judging._finding(state, i, f"{reason}, {judging._clause(state, yes, no, asked)}", judging._slack(i, low, high))


def _one_value(values: Sequence[Any]) -> Any:
    numeric = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if not numeric and any(not same(v, values[0]) for v in values):
        return None  # seeds disagree on text or truth: the setup does not meet the comparison
    return fmean(values) if numeric else values[0]


def groups_differ(condition: Condition, rows: Sequence[Row]) -> Finding:
    """Permutation test of the variance between groups; fails when all pairs are shown to be alike."""
    over, margin, alike = condition["over"], condition["margin"], condition["alike"]
    found: list[Any] = []
    for row in rows:
        if not any(same(row.get(over), f) for f in found):
            found.append(row.get(over))
    if len(found) < 2:
        return judging.missing(f"one group along {over}; two are needed", len(found))
    groups = {label({over: v}): group(rows, {over: [v]}, condition) for v in found}
    p = stats.permutation([list(g.values.values()) for g in groups.values()])
    means = {name: fmean(g.values.values()) for name, g in groups.items()}
    least, most = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    band = math.log10(1 + alike) if condition.get("log") else alike * abs(median(means.values()))
    exact = judging._exact(condition)
    pairs = [stats.equivalence(a.values, b.values, exact=exact) for a, b in itertools.combinations(groups.values(), 2)]
    close = all(judging._band(i, -band, band) == "holds" for i in pairs)
    state: State = "fails" if close else "holds" if p < margin else "unclear"
    show = [judging.natural(condition, m) for m in (means[least], means[most])]
    n = sum(len(g.values) for g in groups.values())
    said = {"holds": f"below {margin:g}", "unclear": f"not below {margin:g}", "fails": f"but all pairs are within ±{alike * 100:g} %"}[
        state
    ]
    reason = (
        f"{plain(condition['metric'])} goes from {show[0]} ({least}) to {show[1]} ({most}) over {len(groups)} groups; "
        f"permutation test p = {bare(p)} (n = {n}), {said}"
    )
    return Finding(state, p, None, None, n, reason, abs(p - margin) / margin)
