"""Where a page stands on a machine: what its plan expects, what is recorded, how its claims come out, what they still need.

Digesting the plans, reading the records and judging the claims of fifty pages takes half a minute; each answer is kept in
``_build/standing`` beside a mark of all that it was made from, and is made anew where that has changed.  Nothing is lost with
that folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cnnstudy.config import digest
from cnnstudy.report import claims, evidence, outcomes
from cnnstudy.report import plan as plans
from cnnstudy.report.select import Flats, floor_entries, matching
from cnnstudy.runtime import ROOT
from cnnstudy.source import HOME

Needs = dict[str, dict[str, list[str]]]  # condition -> profile -> the keys that it selects there
JUDGES = (  # what a verdict is made by; a test holds this against what judging imports
    "config", "stats", "report.claims", "report.conditions", "report.evidence", "report.judging", "report.outcomes", "report.plan",
    "report.published", "report.rows", "report.rules", "report.select", "report.standing", "report.trends", "report.verdicts",
    "report.wording",
)  # fmt: skip


@dataclass(frozen=True)
class Brief:
    """What the overview needs of a record that counts; ``mark`` changes with anything in it."""

    question: str
    experiment: str
    code: str
    seconds: float
    failed: str | None
    mark: str


@dataclass(frozen=True)
class Group:
    """Planned measurements of one experiment whose setups hold the same kinds of config: today's code is one digest for all."""

    experiment: str
    kinds: tuple[str, ...]
    code: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Expected:
    """A question's plan in keys: per profile, and by experiment and code."""

    profiles: Mapping[str, tuple[str, ...]]
    groups: tuple[Group, ...]


@dataclass(frozen=True)
class Standing:
    """Per claim its outcome; per untested claim that records could decide, the conditions whose records are missing.

    A condition without any profile in ``needs`` can not be met by measuring on this machine alone.
    """

    outcomes: Mapping[str, str]
    needs: Mapping[str, Needs]


# what is kept -----------------------------------------------------------------------------------------------------------


def _kept(path: Path, mark: str, make: Callable[[], Any]) -> Any:
    """The JSON value kept at ``path``, if it was made from what has this mark; else made anew and kept."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text("utf-8"))
        if kept["mark"] == mark:
            return kept["value"]
    value = make()
    with suppress(OSError):  # a checkout that may not be written to: made anew each time
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(json.dumps({"mark": mark, "value": value}, separators=(",", ":")), "utf-8")
        os.replace(part, path)
    return value


def _folder(machine: str | None = None) -> Path:
    """Kept answers; those about records stand apart for each machine and store."""
    where = ROOT / "_build" / "standing"
    return where / f"{machine}-{digest(str(evidence.store_root().resolve()), 6)}" if machine else where


def _state(paths: Iterable[Path]) -> list[Any]:
    """What changes when a file does."""
    found = [(path, path.stat()) for path in paths if path.exists()]
    return [[path.name, state.st_size, state.st_mtime_ns] for path, state in found]


@cache
def _sources(judging: bool) -> str:
    """A mark of the code that judges, or of the code that measures and digests plans."""
    package = HOME / "cnnstudy"
    if judging:
        files = [package.joinpath(*name.split(".")).with_suffix(".py") for name in JUDGES]
    else:
        files = [*(path for path in package.rglob("*.py") if path.parent.name != "report"), package / "report" / "plan.py"]
    return digest(_state(sorted(files)))


# plans and records ------------------------------------------------------------------------------------------------------


def _plan_path(question: str) -> Path:
    return plans.plans_root() / f"{question}.json"


def expected(question: str) -> Expected:
    """The keys that each profile of a question expects, and the digest of today's code behind each."""

    def make() -> dict[str, Any]:
        profiles: dict[str, list[str]] = {profile: [] for profile in plans.PROFILES}
        groups: dict[tuple[str, tuple[str, ...], str], dict[str, None]] = {}
        for experiment in plans.load(question).values():
            for profile in plans.PROFILES:
                for entry in experiment.entries(profile):
                    profiles[profile].append(entry["key"])
                    group = experiment.name, experiment.kinds_of(entry["setup"]), experiment.code(entry["setup"])
                    groups.setdefault(group, {})[entry["key"]] = None
        return {"profiles": profiles, "groups": [[*group, list(keys)] for group, keys in groups.items()]}

    mark = digest([_state([_plan_path(question)]), _sources(judging=False)])
    kept = _kept(_folder() / f"{question}-plan.json", mark, make)
    groups = tuple(Group(name, tuple(kinds), code, tuple(keys)) for name, kinds, code, keys in kept["groups"])
    return Expected({profile: tuple(dict.fromkeys(keys)) for profile, keys in kept["profiles"].items()}, groups)


def recorded(machine: str) -> dict[str, Brief]:
    """The records of a machine that count, by key; only files that have changed are read."""
    found: dict[str, Brief] = {}
    for path in sorted((evidence.store_root() / machine).glob("q*.jsonl")):
        question = path.stem

        def make(question: str = question) -> dict[str, list[Any]]:
            return {
                r["key"]: [r["experiment"], r["provenance"].get("code"), r["provenance"].get("seconds", 0.0), r.get("failed"), digest(r)]
                for r in evidence.read(machine, question)
            }

        kept = _kept(_folder(machine) / f"{question}-records.json", digest(_state([path])), make)
        found |= {key: Brief(question, *values) for key, values in kept.items()}
    return found


# claims -----------------------------------------------------------------------------------------------------------------


def selected(condition: Mapping[str, Any], plan: Mapping[str, plans.Experiment], flats: Flats | None = None) -> dict[str, list[str]]:
    """The keys that a condition selects, with what their trials look up, per profile from its ``needs`` up; profiles with too few seeds
    for it are left out.

    ``flats``: keeps flattened setups from call to call, which saves most of the time.
    """
    flats = flats or Flats()
    name, found = condition["experiment"], {}
    if name in plan and condition.get("min_machines", 1) == 1:
        for profile in plans.PROFILES[plans.PROFILES.index(condition["needs"]) :]:
            chosen = [entry for _, entry in matching(condition, [(flats.of(e["setup"]), e) for e in plan[name].entries(profile)])]
            seeds: dict[int, set[int]] = {}
            for entry in chosen:
                seeds.setdefault(id(entry["setup"]), set()).add(entry["seed"])
            beside = floor_entries(condition, plan, profile)
            if chosen and min(map(len, seeds.values())) >= int(condition.get("min_seeds", 1)) and (beside is None or beside):
                read = [key for entry in chosen for key in plans.behind(plan, name, entry, profile)]
                found[profile] = list(dict.fromkeys([*read, *(entry["key"] for entry in [*chosen, *(beside or ())])]))
    return found


def judge(question: str, machine: str) -> Standing:
    """Judge a question from one machine's records, and find what its untested claims lack."""
    from cnnstudy.report.verdicts import judge_question

    ledger, plan = claims.load(question), plans.load(question)
    verdicts = judge_question(ledger, plan, {machine: evidence.read(machine)}, [machine], {})
    needs: dict[str, Needs] = {}
    flats = Flats()
    for claim, verdict in zip(ledger.claims, verdicts, strict=True):
        if verdict.outcome == "untested" and claim.conditions:
            truth = {"holds": True, "fails": False}
            open_ = outcomes.relevant(claim.expressions, {n: truth.get(f.state) for n, f in verdict.findings.items()})
            lacking = [n for n in claim.conditions if n in open_ and verdict.findings[n].state == "missing"]
            needs[claim.id] = {n: selected(claim.conditions[n], plan, flats) for n in lacking}
    return Standing({v.id: v.outcome for v in verdicts}, needs)


def standing(question: str, machine: str, there: Mapping[str, Brief] | None = None) -> Standing:
    """How a question's claims come out from one machine's records (``there``: as :func:`recorded` gives them)."""
    there = recorded(machine) if there is None else there
    keys = {key for one in expected(question).profiles.values() for key in one}
    made_of = [
        _state([claims.claims_root() / f"{question}.yaml", _plan_path(question), *sorted((ROOT / "data" / "published").glob("*.csv"))]),
        _sources(judging=True),
        sorted([key, there[key].mark] for key in keys & there.keys()),
    ]

    def make() -> dict[str, Any]:
        found = judge(question, machine)
        return {"outcomes": dict(found.outcomes), "needs": dict(found.needs)}

    return Standing(**_kept(_folder(machine) / f"{question}-claims.json", digest(made_of), make))
