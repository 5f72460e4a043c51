"""The rows of a condition: from the best profile, on the first machine, that has all that is planned for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cnnstudy.config import Refused, flatten
from cnnstudy.report import published
from cnnstudy.report.judging import Finding, missing
from cnnstudy.report.plan import PROFILES
from cnnstudy.report.rows import BESIDE, Condition, Row, filters, label, matches, meets, same
from cnnstudy.report.wording import of

if TYPE_CHECKING:
    from cnnstudy.report.claims import Experiment
    from cnnstudy.report.verdicts import Planned

Index = Mapping[str, Mapping[str, Mapping[str, Any]]]
Floors = Sequence[tuple[Mapping[str, Any], str]]
FREE = ("model", "resolution", "comparisons", "runs", "warmup")  # parts in which a noise floor may differ from what it is the floor of


@dataclass(frozen=True)
class Selection:
    """The rows for a condition with where they come from, or a finding that says what is missing."""

    rows: tuple[Row, ...] = ()
    machines: tuple[str, ...] = ()
    profiles: tuple[str, ...] = ()
    missing: Finding | None = None


def index(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> Index:
    """Records by machine and key; of two with one key the later counts."""
    return {machine: {r["key"]: r for r in those} for machine, those in records.items()}


class Flats:
    """Flat forms of planned setups, each made once: seeds, profiles and the conditions of a question share them."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Mapping[str, Any], dict[str, Any]]] = {}

    def of(self, setup: Mapping[str, Any]) -> dict[str, Any]:
        """The flat form of a setup, which must not be altered."""
        if id(setup) not in self._made:
            self._made[id(setup)] = setup, flatten(setup)  # the setup is kept, or another could get its id
        return self._made[id(setup)][1]


def select(
    condition: Condition, experiment: Experiment, plan: Mapping[str, Planned], records: Index, machines: Sequence[str],
    flats: Flats | None = None,
) -> Selection:  # fmt: skip
    """The rows for a condition.

    Profiles are tried from full down to the condition's ``needs``, machines in the order given; the first of which
    every planned measurement of the selection is recorded is taken.  ``machines: all`` takes every machine's best.
    Where the condition asks for a noise floor, a machine counts only with its floor recorded, in the same profile.
    Raises Refused for a path that no planned setup has.
    """
    if experiment.kind == "published":
        return _published(condition, experiment)
    flats = flats or Flats()
    name, needs = experiment.name, condition["needs"]
    if name not in plan:
        return Selection(missing=missing(f"no measurement of {name} is planned yet"))
    wanted: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for profile in PROFILES[: PROFILES.index(needs) - 1 if PROFILES.index(needs) else None : -1]:
        entries = [(flats.of(e["setup"]), e) for e in plan[name].entries(profile)]
        _check_paths(condition, [flat for flat, _ in entries])
        if chosen := matching(condition, entries):
            wanted[profile] = chosen
    if not wanted:
        return Selection(missing=missing(f"no profile from {needs} up measures this selection of {name}"))
    best: tuple[float, str] = (-1.0, "")
    taken: list[tuple[str, str]] = []
    rows: list[Row] = []
    for profile, entries in wanted.items():
        beside = floor_entries(condition, plan, profile)
        floors = None if beside is None else [(flats.of(e["setup"]), e["key"]) for e in beside]
        for machine in machines:
            if machine in (m for m, _ in taken):
                continue
            there = records.get(machine, {})
            have = sum(e["key"] in there for _, e in entries)
            best = max(best, (have / len(entries), _progress(profile, have, len(entries))))
            if have < len(entries):
                continue
            found = [_row(flat, there[e["key"]], machine, profile) for flat, e in entries]
            if floors is not None:
                with_floor = [_above_floor(row, experiment, condition, floors, there) for row in found]
                if lacking := next((r for r, f in zip(found, with_floor, strict=True) if f is None), None):
                    best = max(best, (1.0, f"no noise floor is recorded on {machine} for {_setting(lacking, floors)}, profile {profile}"))
                    continue
                found = [row for row in with_floor if row is not None]
            taken.append((machine, _least(wanted, profile)))
            rows += found
            if condition.get("machines") != "all":
                return Selection(tuple(rows), (machine,), (taken[0][1],))
    least = int(condition.get("min_machines", 1))
    if len(taken) < least:
        needed = list(wanted)[-1]
        why = best[1] if best[0] > 0 else _progress(needed, 0, len(wanted[needed]))
        return Selection(missing=missing(f"{len(taken)} of at least {least} machines measured" if taken else why))
    return Selection(tuple(rows), tuple(m for m, _ in taken), tuple(dict.fromkeys(p for _, p in taken)))


def _least(wanted: Mapping[str, Any], profile: str) -> str:
    """The least profile that measures the same: exact experiments are often complete in ``quick`` already."""
    keys = {e["key"] for _, e in wanted[profile]}
    return next(p for p in reversed(list(wanted)) if {e["key"] for _, e in wanted[p]} == keys)


def _progress(profile: str, have: int, expected: int) -> str:
    return f"needs {profile}: {have} of {of(expected, 'measurement')} recorded"


def _row(flat: Mapping[str, Any], record: Mapping[str, Any], machine: str, profile: str) -> Row:
    return Row(flat, record["seed"], record["metrics"], machine, profile, record.get("failed"))


def floor_entries(condition: Condition, plan: Mapping[str, Planned], profile: str) -> list[dict[str, Any]] | None:
    """The measurements of the machine against itself that a profile plans beside a time; None if the condition needs none."""
    name = condition.get("floor")
    if name is None:
        return None
    return plan[name].entries(profile) if name in plan else []


def _shared(floor: Mapping[str, Any], timed: Mapping[str, Any]) -> dict[str, Any]:
    """The conditions of timing that a floor names and a timed setup has, too: engine, batch, threads, ..."""
    return {path: value for path, value in floor.items() if path in timed and path.split(".")[0] not in FREE}


def _setting(row: Row, floors: Floors) -> str:
    """The conditions of timing of a row, in words."""
    paths = {path for flat, _ in floors for path in _shared(flat, row.setup)}
    return label({path: row.setup[path] for path in sorted(paths)}) if paths else "any setup"


def _above_floor(row: Row, experiment: Experiment, condition: Condition, floors: Floors, there: Mapping[str, Any]) -> Row | None:
    """A timed row with its noise floor: the largest of those measured under its conditions with at most as many runs; None if
    there is none, or not all of them are recorded.
    """
    values = []
    for flat, key in floors:
        if any(not same(row.setup[p], v) for p, v in _shared(flat, row.setup).items()):
            continue
        if flat.get("runs", 0) <= row.setup.get("runs", math.inf):
            value = there[key]["metrics"].get("floor") if key in there else None
            if value is None:
                return None
            values.append(value)
    if not values:
        return None
    larger, difference = (row.metrics.get(m) for m in experiment.differences.get(condition["metric"], ("", "")))
    often = (2 * larger - difference) / abs(difference) if larger and difference else 1.0  # both ends of a difference may be off
    return replace(row, floor=max(values) * often)


def matching(
    condition: Condition, entries: Sequence[tuple[dict[str, Any], dict[str, Any]]]
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The planned measurements that the condition is about; none if one of its groups is not planned at all."""
    at = {p: v for p, v in condition.get("at", {}).items() if p not in BESIDE}
    inside = [(flat, e) for flat, e in entries if matches(flat, at) and meets(e["seed"], condition.get("at", {}).get("seed", e["seed"]))]
    sides = [{p: v for p, v in side.items() if p not in BESIDE} for side in filters(condition)]
    if not all(any(matches(flat, side) for flat, _ in inside) for side in sides):
        return []
    return [(flat, e) for flat, e in inside if any(matches(flat, side) for side in sides)]


def _check_paths(condition: Condition, setups: Sequence[Mapping[str, Any]]) -> None:
    """A path that no setup has is an oversight, unless what is wanted is that it be left out."""
    known = {path for setup in setups for path in setup}
    if not setups:
        return
    for wanted in (condition.get("at", {}), *filters(condition)):
        for path, value in wanted.items():
            if path != "pick" and path not in known and path not in BESIDE and not meets(None, value):
                raise Refused(f"no setup of {condition['experiment']} has the path {path!r}; valid: {', '.join(sorted(known))}")


def _published(condition: Condition, experiment: Experiment) -> Selection:
    """Published figures: every column is both a path to select by and a metric; n counts figures, not seeds."""
    table = published.rows(str(experiment.table))
    entries = [(row, {"seed": 0}) for row in table]
    _check_paths(condition, table)
    found = tuple(Row(row, 0, row, "published", "published") for row, _ in matching(condition, entries))
    if not found:
        return Selection(missing=missing(f"no published figure in {experiment.table} matches"))
    return Selection(found, ("published",), ("published",))
