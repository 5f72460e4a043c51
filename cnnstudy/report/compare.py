"""Two machines side by side, or a run against the book: what agrees, what differs, and whether a difference may be read at all.

Exact experiments come first.  Where they differ, an install or the code is wrong, and nothing else is compared: it would pass for a
difference of hardware.  Else the verdicts, what trained networks reached, and how many times as long things took.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from cnnstudy import stats
from cnnstudy.config import Refused, choose, digest
from cnnstudy.report import claims, evidence, plan, verdicts
from cnnstudy.report.claims import Ledger
from cnnstudy.report.rows import leaves, same
from cnnstudy.report.wording import bare, of
from cnnstudy.runtime import ROOT, machine_id

# Real numbers of exact experiments, on one machine with AVX-512, with SSE alone, and with the 10 bits of TF32: quotients of counts and
# float64 came out alike to 2e-7, and gradients of networks in float32 to 1e-3 (TF32: 0.05).  Deep plain networks with batch norm amplify
# rounding until nothing is left of it (a factor of 2 at 302 layers): such a number is as good as that of another seed, and is held
# against the spread over seeds, at a level at which one in ten thousand is a false alarm.
REL, ABS = 1e-6, 1e-12
LONE = 0.05  # relative; where there are too few seeds to know the spread
SEEDS, LEVEL = 3, 0.9999
FIELDS = ("what", "name", "result", "a", "b", "low", "high", "n", "inside", "outside", "note")
AGREEMENT = {"agree": "agree", "differ": "differ", "open": "undecided on one side", "only b": "new (by b alone)", "only a": "by a alone"}
QUIET = ("agree", "untested", "inside", "no interval")  # results that only a machine wants to read

Record = Mapping[str, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class Side:
    """One side of a comparison: its machines, the best first, and their records."""

    name: str
    machines: tuple[str, ...]
    records: Mapping[str, Sequence[Record]] = field(repr=False)

    def __str__(self) -> str:
        return self.name if self.machines == (self.name,) else f"{self.name} ({', '.join(self.machines)})"

    @cached_property
    def by_key(self) -> dict[str, tuple[str, Record]]:
        """Of each key the best machine that has it, and its record."""
        return {r["key"]: (machine, r) for machine in reversed(self.machines) for r in self.records[machine]}

    @cached_property
    def _groups(self) -> dict[str, list[dict[str, Any]]]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for machine, those in self.records.items():
            for r in those:
                groups.setdefault(_group(machine, r), []).append(leaves(r["metrics"]))
        return groups

    def seeds(self, key: str, metric: str) -> list[float]:
        """What this side found for a metric over all seeds of a record's setup, on the record's machine."""
        return [found[metric] for found in self._groups[_group(*self.by_key[key])] if _is_number(found.get(metric))]


def _group(machine: str, record: Record) -> str:
    return digest([machine, record["experiment"], record["protocol"], record["setup"]])


@dataclass(frozen=True)
class Comparison:
    """What came out.  ``exact``: measurements that must agree; ``moved``: real numbers that rounding moved, by ``most`` of themselves."""

    a: Side
    b: Side
    exact: int
    moved: int
    most: float
    rows: Sequence[Row] = field(repr=False)

    @property
    def exit_code(self) -> int:
        """1 where exact experiments differ."""
        return int(any(r["what"] == "exact" for r in self.rows))

    def noteworthy(self) -> list[Row]:
        """The rows that a person wants to read, with fewer columns."""
        shown = ("what", "name", "result", "a", "b", "n", "note")
        return [{name: r[name] for name in shown} for r in self.rows if r["result"] not in QUIET]

    def text(self) -> str:
        """A few lines with the counts; a wrong install first and alone."""
        rows = {what: [r for r in self.rows if r["what"] == what] for what in ("exact", "verdict", "condition", "value", "hardware")}
        lines = [f"a: {self.a}", f"b: {self.b}"]
        if rows["exact"]:
            return "\n".join([*lines, *self._wrong(rows["exact"])])
        moved = f"; rounding moved {of(self.moved, 'real number')}, by {self.most:.1g} of itself at most" if self.moved else ""
        alone = "no measurement in common, so nothing vouches for the install; measure some with: cnnstudy run --profile quick"
        lines.append("exact: " + (f"{of(self.exact, 'measurement')} in common, all alike{moved}" if self.exact else alone))
        count = Counter(r["result"] for r in rows["verdict"])
        lines.append("verdicts: " + ", ".join(f"{count[name]} {words}" for name, words in AGREEMENT.items()))
        for what, words in (("condition", "estimates in a's 95 % interval"), ("value", "values where a's seeds let expect 95 of 100")):
            inside, outside = (sum(r[place] or 0 for r in rows[what]) for place in ("inside", "outside"))
            rest = sum(r["n"] for r in rows[what]) - inside - outside
            told = [f"{inside} of {inside + outside} {words}"] if inside + outside else []
            told += [f"{of(rest, what)} without an interval"] if rest else []
            lines += [f"trained: {'; '.join(told)}"] if told else []
        if rows["hardware"]:
            lines.append(f"hardware: {of(len(rows['hardware']), 'metric')} as ratios a / b; times are not expected to agree")
        return "\n".join(lines)

    def _wrong(self, rows: Sequence[Row]) -> list[str]:
        keys = len({r["name"].split()[2] for r in rows})
        return [
            f"EXACT RESULTS DIFFER in {keys} of {of(self.exact, 'measurement')} that must come out alike: an install or the code is wrong.",
            "All of these were made by other code: bring both sides to one commit, measure anew (cnnstudy run --stale), compare again."
            if all(r["note"].startswith("other code") for r in rows)
            else "The code is the same: look at the versions of torch and timm, at weights and data, before anything else.",
            "Nothing else was compared: it would pass for a difference of hardware.",
        ]


def pair(names: Sequence[str]) -> tuple[str, str]:
    """What to compare: nothing given is this machine with the book; one name is that machine with the book."""
    if len(names) > 2:
        raise Refused(f"compare takes two machines, not {len(names)}: {', '.join(names)}")
    a, b = ("reference", *(names or ["this"])) if len(names) < 2 else names
    return a, b


def compare(
    a: str = "reference", b: str = "this", questions: Sequence[str] | None = None, root: Path | None = None, book: Path | None = None
) -> Comparison:
    """Compare two machines' records and verdicts: an id, "this", or "reference" (the book without the other side's machine).

    ``root``: the store (default: the usual one); ``book``: where "reference" is read (default: the checkout's data/records).
    Raises Refused, naming the valid ones, for unknown machines and questions, and where both sides are the same records.
    """
    left, right = sides(a, b, root or evidence.store_root(), book or ROOT / "data" / "records")
    ledgers = [claims.load(q) for q in questions or claims.questions()]
    of_kind = by_kind(left, right, ledgers)
    exact, found = of_kind.get("exact", []), Exact(left, right)
    wrong = [row for pair in exact for row in found.differences(*pair)]
    rows = wrong or [
        *_verdicts(ledgers, left, right),
        *_values(ledgers, left, of_kind.get("trained", [])),
        *_ratios(ledgers, of_kind.get("hardware", [])),
    ]
    return Comparison(left, right, len(exact), found.moved, found.most, rows)


def by_kind(a: Side, b: Side, ledgers: Sequence[Ledger]) -> dict[str, list[tuple[Record, Record]]]:
    """The records that both sides have, by the kind of their experiment."""
    kinds = {(le.question, name): e.kind for le in ledgers for name, e in le.experiments.items()}
    found: dict[str, list[tuple[Record, Record]]] = {}
    for one, other in ((a.by_key[k][1], b.by_key[k][1]) for k in a.by_key if k in b.by_key):
        found.setdefault(kinds.get((one["question"], one["experiment"]), "unknown"), []).append((one, other))
    return found


def sides(a: str, b: str, root: Path, book: Path) -> tuple[Side, Side]:
    """Both sides of a comparison, by the names that ``compare`` takes."""
    here, there = evidence.machines(root), evidence.machines(book)
    found: list[tuple[str, list[str], Path]] = []
    for name in (a, b):
        if name == "this" and machine_id() not in here:
            raise Refused(f"this machine ({machine_id()}) has no records; measure some with: cnnstudy run --profile quick --measure-only")
        choose("machine", name, ["reference", "this", *dict.fromkeys([*here, *there])])
        one = machine_id() if name == "this" else name
        found.append((name, evidence.reference(book), book) if name == "reference" else (name, [one], root if one in here else book))
    (_, ma, ra), (_, mb, rb) = found
    if ra.resolve() == rb.resolve():
        if a == "reference" and b != "reference":
            ma[:] = [m for m in ma if m not in mb]
        elif b == "reference" and a != "reference":
            mb[:] = [m for m in mb if m not in ma]
        if ma == mb or not ma or not mb:
            raise Refused(f"{a!r} and {b!r} are the same records ({', '.join(ma or mb)}); there are some of: {', '.join(here)}")
    left, right = (Side(name, tuple(those), {m: evidence.read(m, None, base) for m in those}) for name, those, base in found)
    return left, right


def _row(what: str, name: str, result: str, **more: Any) -> Row:
    return dict.fromkeys(FIELDS) | {"what": what, "name": name, "result": result} | more


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _reach(values: Sequence[float], level: float) -> tuple[float, float]:
    """Where one more value of the same kind lies, with probability ``level``: Student's interval of the mean, widened by sqrt(n + 1)."""
    i = stats.mean(values, level)
    half = (i.high - i.estimate) * math.sqrt(len(values) + 1)
    return i.estimate - half, i.estimate + half


def _inside(value: float, low: float | None, high: float | None) -> bool:
    near = any(end is not None and math.isclose(value, end, rel_tol=REL, abs_tol=ABS) for end in (low, high))
    return near or ((low is None or value >= low) and (high is None or value <= high))


class Exact:
    """Compares what must come out alike, and counts what rounding moved."""

    def __init__(self, a: Side, b: Side) -> None:
        self.a, self.b = a, b
        self.moved, self.most = 0, 0.0

    def differences(self, one: Record, other: Record) -> Iterator[Row]:
        """A row for each metric that differs by more than rounding."""
        x, y = leaves(one["metrics"]), leaves(other["metrics"])
        if one.get("failed") != other.get("failed"):
            x, y = x | {"failed": one.get("failed")}, y | {"failed": other.get("failed")}
        for metric in dict.fromkeys([*x, *y]):
            a, b = (found.get(metric, "(absent)") for found in (x, y))
            if not self._alike(metric, a, b, one, other):
                name = f"{one['question']} {one['experiment']} {one['key']} {metric}"
                yield _row("exact", name, "differs", a=a, b=b, n=1, note=_explained(one, other))

    def _alike(self, metric: str, a: Any, b: Any, one: Record, other: Record) -> bool:
        if same(a, b) or not any(isinstance(v, float) for v in (a, b)) or not all(v is None or _is_number(v) for v in (a, b)):
            return same(a, b)
        if None not in (a, b) and math.isclose(a, b, rel_tol=REL, abs_tol=ABS):
            return True
        spread, value = self.a.seeds(one["key"], metric), b
        if len(spread) < SEEDS:
            spread, value = self.b.seeds(one["key"], metric), a
        random = len(spread) >= SEEDS and max(spread) > min(spread)  # else it is no seed's doing
        if None in (a, b):  # not finite on one side: rounding does that to a number near the largest
            return random
        far = abs(a - b) / max(abs(a), abs(b))
        alike = _inside(value, *_reach(spread, LEVEL)) if random else far <= LONE
        if alike:
            self.moved, self.most = self.moved + 1, max(self.most, far)
        return alike


def _explained(one: Record, other: Record) -> str:
    """What could have made the difference: the code, or what it ran with."""
    a, b = one["provenance"], other["provenance"]
    code = "same code" if a.get("code") == b.get("code") else f"other code ({a.get('code')} / {b.get('code')})"
    apart = [f"{name} {a.get(name)} / {b.get(name)}" for name in ("torch", "python", "device") if a.get(name) != b.get(name)]
    return "; ".join([code, *apart])


def _verdicts(ledgers: Sequence[Ledger], a: Side, b: Side) -> Iterator[Row]:
    """The verdicts on every claim from either side's records alone, and of trained conditions b's estimate in a's interval.

    Of honest repetitions about nine in ten fall inside (n = 3; five in six with many seeds): both estimates scatter.
    """
    inside: list[Row] = []
    for ledger in ledgers:
        planned = plan.load(ledger.question)
        judged = [verdicts.judge_question(ledger, planned, side.records, side.machines, {}) for side in (a, b)]
        for claim, one, other in zip(ledger.claims, *judged, strict=True):
            result = _agreement(one.outcome, other.outcome)
            note = None if result in QUIET else f"a: {one.reason} b: {other.reason}" if result in ("differ", "open") else other.reason
            yield _row("verdict", claim.id, result, a=one.outcome, b=other.outcome, note=one.reason if result == "only a" else note)
            for name, x in one.findings.items():
                y = other.findings[name]
                if ledger.experiments[claim.conditions[name]["experiment"]].kind != "trained" or None in (x.estimate, y.estimate):
                    continue
                near = _inside(float(y.estimate or 0), x.low, x.high)
                known = x.low != x.high or (x.low is not None and (near or x.n >= SEEDS))  # a point of few seeds excludes nothing
                numbers = {"a": x.estimate, "b": y.estimate, "low": x.low, "high": x.high, "n": 1}
                note = f"a from {bare(x.low)} to {bare(x.high)}"
                inside.append(_place("condition", f"{claim.id} {name}", known and near, known and not near, numbers, note))
    yield from inside


def _place(what: str, name: str, inside: int, outside: int, numbers: Mapping[str, Any], note: str) -> Row:
    result = "outside" if outside else "inside" if inside else "no interval"
    return _row(what, name, result, inside=int(inside), outside=int(outside), note=note, **numbers)


def _agreement(a: str, b: str) -> str:
    if a == b:
        return "untested" if a == "untested" else "agree"
    if "untested" in (a, b):
        return "only b" if a == "untested" else "only a"
    return "open" if "undecided" in (a, b) else "differ"


def _shared(ledgers: Sequence[Ledger], common: Sequence[tuple[Record, Record]]) -> dict[str, list[tuple[str, str, float, float]]]:
    """Key, metric and both numbers, by ``q42 training clean_acc``: of metrics that conditions judge, or of all where none does."""
    judged: dict[tuple[str, str], set[str]] = {}
    for ledger in ledgers:
        for c in (c for claim in ledger.claims for c in claim.conditions.values()):
            judged.setdefault((ledger.question, c["experiment"]), set()).update(c[m] for m in ("metric", "metric_b") if m in c)
    found: dict[str, list[tuple[str, str, float, float]]] = {}
    for one, other in common:
        x, y = leaves(one["metrics"]), leaves(other["metrics"])
        wanted = judged.get((one["question"], one["experiment"]), set()) & x.keys() or x.keys()
        for metric in sorted(wanted & y.keys()):
            if _is_number(x[metric]) and _is_number(y[metric]):
                found.setdefault(f"{one['question']} {one['experiment']} {metric}", []).append((one["key"], metric, x[metric], y[metric]))
    return found


def _values(ledgers: Sequence[Ledger], a: Side, common: Sequence[tuple[Record, Record]]) -> Iterator[Row]:
    """Of each trained metric: how many of b's values lie where a's seeds let expect 95 of 100 repetitions."""
    for name, numbers in _shared(ledgers, common).items():
        spreads = [(a.seeds(key, metric), x, y) for key, metric, x, y in numbers]
        known = [_inside(y, *_reach(spread, stats.LEVEL)) for spread, _, y in spreads if len(spread) >= SEEDS or len(set(spread)) > 1]
        note = f"{sum(known)} of {len(known)} inside, farthest apart {max(abs(x - y) for _, _, x, y in numbers):.3g}"
        yield _place("value", name, sum(known), len(known) - sum(known), {"n": len(numbers)}, note)
    for one, other in common:
        if ("failed" in one) != ("failed" in other):
            which, reason = ("a", one["failed"]) if "failed" in one else ("b", other["failed"])
            yield _row("value", f"{one['question']} {one['experiment']} {one['key']}", f"failed on {which}", n=0, note=reason)


def _ratios(ledgers: Sequence[Ledger], common: Sequence[tuple[Record, Record]]) -> Iterator[Row]:
    """Of each hardware metric the ratio a / b: median and range over what both measured; counts, which are equal, are left out."""
    for name, numbers in _shared(ledgers, common).items():
        ratios = [x / y for _, _, x, y in numbers if x > 0 and y > 0]
        if any(r != 1 for r in ratios):
            low, mid, high = min(ratios), median(ratios), max(ratios)
            ends = {"a": mid, "b": 1.0, "low": low, "high": high, "n": len(ratios)}
            yield _row("hardware", name, f"x {mid:.3g}", note=f"a / b, from {low:.3g} to {high:.3g}", **ends)
