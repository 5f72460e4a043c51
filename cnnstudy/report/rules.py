"""The rules: each judges one condition of a claim from rows, and finds that it holds, fails, is unclear or missing.

A rule knows no question and no threshold: the margin stands in the ledger.  An interval wholly on one side of the
margin holds or fails; one that straddles it is unclear; fewer seeds or values than asked for are missing.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cnnstudy.config import Refused
from cnnstudy.report import judging, trends
from cnnstudy.report.judging import Finding
from cnnstudy.report.rows import (
    BESIDE,
    Condition,
    Filter,
    Row,
    by_setup,
    filters,
    label,
    meets,
    raw,
    same,
    take,
    unusable,
)
from cnnstudy.report.wording import of, sentence

__all__ = ["COMMON", "RULES", "Finding", "Row", "Rule"]

# fields that every condition may have; the rest is declared with each rule
COMMON = (
    "rule", "experiment", "metric", "at", "where", "each", "any", "min_values", "reduce", "min_seeds", "needs", "machines",
    "min_machines", "failed_as", "unclear_as", "text",
)  # fmt: skip


@dataclass(frozen=True)
class Rule:
    """A rule, its fields, and what it asks in one line.  ``exactly_one``, ``at_least_one``: of each of these sets.

    ``floored``: it widens its interval by the machine's noise floor, where the rows have one.
    """

    name: str
    about: str
    core: Callable[[Condition, Sequence[Row]], Finding] = field(repr=False)
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    exactly_one: tuple[tuple[str, ...], ...] = ()
    at_least_one: tuple[tuple[str, ...], ...] = ()
    floored: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "__doc__", sentence(self.about))  # what the book's page on rules says of it

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field that a condition of this rule may have."""
        choices = itertools.chain(*self.exactly_one, *self.at_least_one)
        return tuple(dict.fromkeys((*COMMON, *self.required, *self.optional, *choices)))

    def __call__(self, condition: Condition, rows: Sequence[Row]) -> Finding:
        """Judge a condition from the rows of its experiment.  Raises Refused where the condition does not fit them."""
        finding = _each(self, condition, _where(condition, take(rows, condition.get("at", {}))))
        if finding.state == "unclear" and "unclear_as" in condition:
            finding = replace(finding, state=condition["unclear_as"], reason=f"not shown: {finding.reason}")
        return replace(finding, reason=sentence(finding.reason))


def _where(condition: Condition, rows: Sequence[Row]) -> list[Row]:
    """Rows whose metrics pass ``where``; failed rows stay, so that they are not lost silently."""
    wanted = condition.get("where", {})
    return [r for r in rows if r.failed is not None or all(meets(raw(r, m, condition), v) for m, v in wanted.items())]


def _paths(condition: Condition, name: str) -> list[str]:
    given = condition.get(name, [])
    return list(given) if isinstance(given, list) else [given]


def _each(rule: Rule, condition: Condition, rows: Sequence[Row]) -> Finding:
    """Split by ``each`` (the worst case decides), then by ``any`` (the best case decides), then judge."""
    every = _paths(condition, "each")
    if condition.get("machines") == "all" and rule.name != "equal" and "machine" not in every:
        every = ["machine", *every]  # what depends on the hardware is never averaged across machines
    cases = [(case, _any(rule, c, r)) for case, c, r in _split(condition, rows, every)]
    if not every:
        return cases[0][1] if cases else judging.missing("no measurement matches")
    return _combine(cases, int(condition.get("min_values", 1)), worst=True)


def _any(rule: Rule, condition: Condition, rows: Sequence[Row]) -> Finding:
    some = _paths(condition, "any")
    cases = [(case, _once(rule, c, r)) for case, c, r in _split(condition, rows, some)]
    return _combine(cases, 1, worst=False) if some else cases[0][1]


def _split(condition: Condition, rows: Sequence[Row], paths: Sequence[str]) -> list[tuple[str, Condition, Sequence[Row]]]:
    """The cases of a condition, one per value of each path.

    A group whose filter fixes the path to one value keeps it in every case; groups that do not name the path take
    each value together; a group that names several values takes each on its own, against all of the others'.
    """
    cases: list[tuple[list[str], Condition, Sequence[Row]]] = [([], condition, rows)]
    for path in paths:
        cases = [
            ([*words, word], c2, r2) for words, c, r in cases for word, c2, r2 in _split_by(c, r, path)
        ]  # fmt: skip
    return [(", ".join(w for w in words if w), c, r) for words, c, r in cases]


def _split_by(condition: Condition, rows: Sequence[Row], path: str) -> list[tuple[str, Condition, Sequence[Row]]]:
    sides = [s for s in ("a", "b", "base") if s in condition]
    if path == "setup":
        if sides or "groups" in condition:
            raise Refused("each: setup is for rules without groups; name the paths to split by")
        return [(_told_apart(one[0], rows), condition, one) for one in by_setup(rows)]
    named: dict[object, Filter] = {s: condition[s] for s in sides}
    named |= dict(enumerate(condition.get("groups", ())))
    if not named:
        return [(label({path: v}), condition, take(rows, {path: [v]})) for v in values_of(rows, path)]
    together = [n for n, f in named.items() if path not in f and "pick" not in f]
    alone = [n for n, f in named.items() if path in f and isinstance(f[path], (list, Mapping))]
    choices: list[list[tuple[list[object], object]]] = []
    if together:
        there = [take(rows, named[n]) for n in together]
        values = values_of([r for side in there for r in side], path)
        if condition.get("kind") == "published":  # nobody plans what is published: only sources that have both sides compare
            values = [v for v in values if all(any(same(r.get(path), v) for r in side) for side in there)]
        choices.append([(together, v) for v in values])
    choices += [[([n], v) for v in values_of(take(rows, named[n]), path)] for n in alone]
    cases: list[tuple[str, Condition, Sequence[Row]]] = []
    for choice in itertools.product(*choices):
        new = dict(named)
        for names, value in choice:
            new |= {n: {**named[n], path: [value]} for n in names}
        changed = dict(condition) | {s: new[s] for s in sides}
        if "groups" in condition:
            changed["groups"] = [new[i] for i in range(len(condition["groups"]))]
        words = " against ".join(dict.fromkeys(label({path: v}) for _, v in choice))
        cases.append((words, changed, rows))
    return cases


def values_of(rows: Sequence[Row], path: str) -> list[object]:
    """The values of a path in the rows, in order of appearance; numbers in ascending order."""
    found: list[object] = []
    for row in rows:
        if not any(same(row.get(path), f) for f in found):
            found.append(row.get(path))
    if rows and path not in BESIDE and found == [None]:
        known = sorted({p for r in rows for p in r.setup})
        raise Refused(f"no setup has the path {path!r}; valid: {', '.join(known)}, {', '.join(BESIDE)}")
    numeric = all(isinstance(f, (int, float)) and not isinstance(f, bool) for f in found)
    return sorted(found) if numeric else found  # type: ignore[type-var]


def _told_apart(row: Row, rows: Sequence[Row]) -> str:
    return label({p: v for p, v in row.setup.items() if any(not same(r.setup.get(p), v) for r in rows)})


def _once(rule: Rule, condition: Condition, rows: Sequence[Row]) -> Finding:
    """Judge one case: are there rows and seeds enough, did they succeed, and what does the rule say."""
    sides = [(side, take(rows, side)) for side in filters(condition)]
    for side, there in sides:
        if not there:
            return judging.missing(f"no measurement of {label(side)}")
    used = list({id(r): r for _, there in sides for r in there}.values())
    if why := unusable(used, condition):
        return Finding("unclear", None, None, None, len(used), why)
    least = int(condition.get("min_seeds", 1))
    seeds = min(len({r.seed for r in one}) for one in by_setup(used))
    if seeds < least:
        return judging.missing(f"{seeds} of at least {of(least, 'seed')} measured", len(used))
    return _beyond_noise(rule, condition, used)


def _beyond_noise(rule: Rule, condition: Condition, rows: Sequence[Row]) -> Finding:
    """The rule's finding; timed rows must clear the margin by more than the noise floor of their machine, the largest of them."""
    noise = max(r.floor for r in rows)
    if not rule.floored or not noise:
        return rule.core(condition, rows)
    found, words = rule.core({**condition, "noise": noise}, rows), f"noise floor of {noise * 100:.2g} %"
    if found.state == "unclear" and rule.core(condition, rows).state != "unclear":
        return replace(found, reason=f"{found.reason}: it is within this machine's {words}")
    return replace(found, reason=f"{found.reason} (with this machine's {words})")


def _combine(cases: Sequence[tuple[str, Finding]], least: int, worst: bool) -> Finding:
    """One finding for all cases.  ``worst``: it must hold in each; otherwise in any."""
    if len(cases) < least or not cases:
        return judging.missing(f"{len(cases)} of at least {of(least, 'case')} measured")
    decides, otherwise = ("fails", "holds") if worst else ("holds", "fails")
    state = next(s for s in (decides, "missing", "unclear", otherwise) if any(f.state == s for _, f in cases))
    those = [(c, f) for c, f in cases if f.state == state]
    # what decides alone is shown at its clearest, what must be so everywhere at its tightest
    case, shown = (max if state == decides else min)(those, key=lambda cf: cf[1].slack)
    count = f"in all {len(cases)} cases" if len(those) == len(cases) else f"in {len(those)} of {len(cases)} cases"
    if len(cases) == 1:
        return replace(shown, reason=f"{case}: {shown.reason}" if case else shown.reason)
    kind = "clearest" if state == decides else "tightest" if state in ("holds", "fails") else "first"
    return replace(shown, reason=f"{state} {count} ({kind}: {case}): {shown.reason}")


RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("equal", "every measurement equals `value`, or (`same: true`) all equal each other", judging.equal,
             exactly_one=(("value", "same"),)),
        Rule("within", "the mean lies within `value` +- rel_tol or abs_tol, or from `low` to `high`", judging.within,
             optional=("rel_tol", "abs_tol", "log"), at_least_one=(("value", "low", "high"),), floored=True),
        Rule("above", "the mean is at least `margin`", judging.above, ("margin",), ("interval_above", "log"), floored=True),
        Rule("below", "the mean is at most `margin`", judging.below, ("margin",), ("interval_below", "log"), floored=True),
        Rule("difference_above", "the difference a - b is more than `margin`", judging.difference_above, ("a", "b", "margin"),
             ("interval_above", "unpaired"), floored=True),
        Rule("ratio_between", "the ratio a / b, or (a - base) / (b - base), lies from `low` to `high`", judging.ratio_between, ("a", "b"),
             ("base", "interval_above", "interval_below", "log"), at_least_one=(("low", "high"),), floored=True),
        Rule("equivalent_within", "groups a and b differ by less than a margin (two one-sided tests)", judging.equivalent_within,
             ("a", "b"), (), exactly_one=(("margin", "rel_margin"),), floored=True),
        Rule("ordering", "every member of each group lies beyond every member of the group before", trends.ordering,
             ("groups", "direction", "margin"), ("iqr",), floored=True),
        Rule("monotone_in", "the metric goes `direction` with `over`: slope beyond `margin`, no step back", trends.monotone_in,
             ("over", "direction", "margin"), ("scale", "order", "strict", "saturation", "log"), floored=True),
        Rule("correlation", "Spearman's rank correlation over setups lies from `low` to `high`", trends.correlation, (),
             ("min_setups",), exactly_one=(("metric_b", "over"),), at_least_one=(("low", "high"),)),
        Rule("share_of", "the share of rows, setups or values that meet a comparison lies from `low` to `high`", trends.share_of,
             ("meets",), ("of",), at_least_one=(("low", "high"),)),
        Rule("groups_differ", "the groups along `over` differ more than chance (permutation test, p below `margin`)",
             trends.groups_differ, ("over", "margin", "alike"), ("log",)),
    )
}  # fmt: skip
