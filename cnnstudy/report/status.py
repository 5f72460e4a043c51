"""Status: per page and machine what is expected, recorded, missing, stale and failed, what its claims come to, how its last run went.

Everything comes from plans, records and the runner's diary, without torch; what is expensive is kept by :mod:`standing`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from cnnstudy.config import Refused, choose
from cnnstudy.report import evidence, runs, vouch
from cnnstudy.report import plan as plans
from cnnstudy.report.live import clock
from cnnstudy.report.standing import Brief, Expected, Standing, expected, recorded, standing
from cnnstudy.report.verdicts import OUTCOMES
from cnnstudy.runtime import machine_id


@dataclass(frozen=True)
class Count:
    """Measurements of one profile, or of all together.  ``stale``: made by other code; ``vouched``: by other code that was seen to
    give the same numbers, and not stale; ``failed``: recorded as failed; ``seconds``: what the recorded ones took."""

    expected: int = 0
    recorded: int = 0
    stale: int = 0
    vouched: int = 0
    failed: int = 0
    seconds: float = 0.0

    @property
    def missing(self) -> int:
        return self.expected - self.recorded


@dataclass(frozen=True)
class Need:
    """Measurements of one experiment that a claim waits for, in the profile where the fewest are missing."""

    experiment: str
    profile: str
    keys: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """A page on a machine.  ``planned``: all profiles together, each measurement once; ``failure``: the last one of the runner on this
    page, unless the same step has succeeded since; ``lacking``: per untested claim what its conditions still need; ``trouble``: why its
    claims cannot be judged, where their ledger is not in order."""

    question: str
    machine: str
    profiles: Mapping[str, Count]
    planned: Count
    outcomes: Mapping[str, int]
    lacking: Mapping[str, tuple[Need, ...]]
    claims: Mapping[str, str]
    last: runs.Run | None = None
    failure: runs.Run | None = None
    trouble: str | None = None


def machines() -> list[str]:
    """This machine, then all others that have records."""
    here = machine_id()
    return [here, *(m for m in evidence.reference() if m != here)]


def pages(questions: Iterable[str], of: Sequence[str] | None = None) -> list[Page]:
    """The status of each page on each of the machines ``of`` (default: all, this one first)."""
    asked, found = list(questions), []
    for machine in machines() if of is None else of:
        there, vouched, diary = recorded(machine), vouch.read(machine), _diary(machine)
        for question in asked:
            plan = expected(question)
            made = _made(plan, there, vouched)
            try:
                state, trouble = standing(question, machine, there), None
            except Refused as error:  # somebody is at work on this page; the others have a status all the same
                state, trouble = Standing({}, {}), str(error)
            found.append(
                Page(
                    question,
                    machine,
                    {name: _count(keys, there, made) for name, keys in plan.profiles.items()},
                    _count(dict.fromkeys(k for keys in plan.profiles.values() for k in keys), there, made),
                    {outcome: n for outcome in OUTCOMES if (n := Counter(state.outcomes.values())[outcome])},
                    {claim: _needs(needs, plan, there) for claim, needs in state.needs.items()},
                    state.outcomes,
                    *diary.get(question, (None, None)),
                    trouble,
                )
            )
    return found


def _made(plan: Expected, there: Mapping[str, Brief], vouched: frozenset[vouch.Voucher]) -> dict[str, str]:
    """The recorded keys that today's code did not make: stale, or vouched for."""
    found = {}
    for group in plan.groups:
        for key in group.keys:
            if key in there and there[key].code != group.code:
                same = vouch.current(group.experiment, group.kinds, there[key].code, group.code, vouched)
                found[key] = "vouched" if same else "stale"
    return found


def _count(keys: Iterable[str], there: Mapping[str, Brief], made: Mapping[str, str]) -> Count:
    every = list(keys)
    have = [key for key in every if key in there]
    by = Counter(made[key] for key in have if key in made)
    failed = sum(there[key].failed is not None for key in have)
    return Count(len(every), len(have), by["stale"], by["vouched"], failed, round(math.fsum(there[k].seconds for k in have), 1))


def _needs(needs: Mapping[str, Mapping[str, Sequence[str]]], plan: Expected, there: Mapping[str, Brief]) -> tuple[Need, ...]:
    """What a claim still needs: of each condition the profile with the fewest missing, together by experiment."""
    experiments = {key: group.experiment for group in plan.groups for key in group.keys}
    found: dict[tuple[str, str], dict[str, None]] = {}
    for options in needs.values():
        left = {profile: [key for key in keys if key not in there] for profile, keys in options.items()}
        profile = min((p for p in left if left[p]), key=lambda p: len(left[p]), default=None)
        if profile is not None:
            found.setdefault((experiments[left[profile][0]], profile), {}).update(dict.fromkeys(left[profile]))
    return tuple(Need(experiment, profile, tuple(keys)) for (experiment, profile), keys in found.items())


def _diary(machine: str) -> dict[str, tuple[runs.Run | None, runs.Run | None]]:
    """Per page its last run, and its last failure that no later success of the same step has mended."""
    last: dict[str, runs.Run] = {}
    failures: dict[str, dict[str, runs.Run]] = {}
    for run in runs.read(machine):
        last[run.question] = run
        own = failures.setdefault(run.question, {})
        if run.state == "failed":
            own[run.stage] = run
        elif run.state == "done":
            own.pop(run.stage, None)
    return {q: (run, max(failures[q].values(), key=lambda r: r.started, default=None)) for q, run in last.items()}


# for people and programs ------------------------------------------------------------------------------------------------


def rows(found: Iterable[Page]) -> list[dict[str, Any]]:
    """One row per page, machine and profile, for ``--json``; verdicts and runs are those of the page on that machine."""
    return [
        {"question": page.question, "machine": page.machine, "profile": name}
        | asdict(count)
        | {
            "missing": count.missing,
            "verdicts": dict(page.outcomes),
            "lacking": {claim: wanted(needs) for claim, needs in page.lacking.items()},
            "last_run": None if page.last is None else asdict(page.last),
            "last_failure": None if page.failure is None else asdict(page.failure),
        }
        for page in found
        for name, count in page.profiles.items()
    ]


def total(counts: Iterable[Count]) -> Count:
    """Counts of several pages together."""
    every = list(counts)
    names = ("expected", "recorded", "stale", "vouched", "failed")
    return Count(**{n: sum(getattr(c, n) for c in every) for n in names}, seconds=round(math.fsum(c.seconds for c in every), 1))  # type: ignore[misc]


def text(found: Sequence[Page], whole: bool = False) -> str:
    """The status for a terminal: a line per page of the first machine and one per other machine; ``whole``: everything of all."""
    by_machine: dict[str, list[Page]] = {}
    for page in found:
        by_machine.setdefault(page.machine, []).append(page)
    parts: list[str] = []
    for machine, own in by_machine.items():
        if whole or not parts:
            parts.append("\n".join([f"{machine}:", *_table(own), *_remarks(own, whole)]))
    if not whole and len(by_machine) > 1:
        parts.append("\n".join(f"{machine}: {_summary(own)}" for machine, own in list(by_machine.items())[1:]))
    return "\n\n".join(parts)


def _table(own: Sequence[Page]) -> list[str]:
    """Recorded of expected by profile, verdicts, time: one line per page, and one for all of them."""
    head = ["page", *plans.PROFILES, "stale", "failed", *OUTCOMES, "measured in", "last run"]
    lines = [_line(p.question, p.profiles, p.planned, p.outcomes, "" if p.last is None else ran(p.last)) for p in own]
    if len(own) > 1:
        profiles = {name: total(p.profiles[name] for p in own) for name in plans.PROFILES}
        lines.append(_line("all", profiles, total(p.planned for p in own), _together(own), ""))
    widths = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
    sides = [str.ljust, *[str.rjust] * (len(head) - 2), str.ljust]
    return ["  ".join(side(cell, width) for side, cell, width in zip(sides, line, widths, strict=True)).rstrip() for line in [head, *lines]]


def _line(name: str, profiles: Mapping[str, Count], planned: Count, outcomes: Mapping[str, int], last: str) -> list[str]:
    counts = [f"{count.recorded}/{count.expected}" for count in profiles.values()]
    verdicts = [str(outcomes.get(outcome, "-")) for outcome in OUTCOMES]
    return [name, *counts, str(planned.stale or "-"), str(planned.failed or "-"), *verdicts, clock(planned.seconds), last]


def _together(own: Iterable[Page]) -> dict[str, int]:
    counts = sum((Counter(page.outcomes) for page in own), Counter[str]())
    return {outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]}


def _summary(own: Sequence[Page]) -> str:
    """A machine in one line."""
    planned = total(page.planned for page in own)
    profiles = [(name, total(page.profiles[name] for page in own)) for name in plans.PROFILES]
    said = [", ".join(f"{name} {c.recorded}/{c.expected}" for name, c in profiles), f"{planned.stale} stale, {planned.failed} failed"]
    said.append(", ".join(f"{n} {outcome}" for outcome, n in _together(own).items()))
    return "; ".join([*said, f"measured in {clock(planned.seconds)}"])


def ran(run: runs.Run) -> str:
    """A run in a few words: its step, its end if that was not good, wall time and peak memory."""
    memory = "" if run.peak_mib is None else f", {run.peak_mib / 1024:.1f} GiB"
    return f"{run.stage}{'' if run.state == 'done' else f' {run.state}'} {clock(run.seconds)}{memory}"


def _remarks(own: Sequence[Page], whole: bool) -> Iterator[str]:
    """What the table has no room for: failures, and with ``whole`` what is vouched for and what untested claims need."""
    for page in own:
        if page.trouble is not None:
            yield f"{page.question} cannot be judged: {page.trouble}"
        if page.failure is not None:
            yield f"{page.question} {page.failure.stage} failed on {page.failure.started[:10]}: {page.failure.error or 'no reason given'}"
        if whole and page.planned.vouched:
            yield f"{page.question}: {page.planned.vouched} by other code, vouched for"
        for claim, needs in page.lacking.items() if whole else ():
            yield f"{claim} needs {wanted(needs)}"


def wanted(needs: Sequence[Need]) -> str:
    """``12 of training (standard)``; a claim that no profile decides on one machine says so."""
    if not needs:
        return "what no profile measures on this machine alone"
    return ", ".join(f"{len(n.keys)} of {n.experiment} ({n.profile})" for n in needs)


# for the book -----------------------------------------------------------------------------------------------------------


def entries(questions: Sequence[str], machine: str = "reference") -> dict[str, Any]:
    """What the status page shows: per machine of the book (or "this" one alone) its pages, and what untested claims wait for."""
    from cnnstudy.report import claims, estimates

    these = [machine_id()] if choose("machine", machine, ("reference", "this")) == "this" else evidence.reference()
    found = pages(questions, these)
    statements = {claim.id: claim.statement for question in questions for claim in claims.load(question).claims}
    shown = [
        {
            "id": name,
            "pages": [_entry(page) for page in found if page.machine == name],
            "hours": round(sum(brief.seconds for brief in recorded(name).values()) / 3600, 2),
        }
        for name in these
    ]
    durations = {name: estimates.Durations(name) for name in these}
    lacking = []
    for question in questions:
        own = [page for page in found if page.question == question]
        for claim in own[0].lacking if own else ():
            if all(page.claims.get(claim) == "untested" for page in own):  # the board has no verdict either
                page = min(own, key=lambda p: sum(len(n.keys) for n in p.lacking.get(claim, ())))
                needs = page.lacking.get(claim, ())
                times = [durations[page.machine].seconds(question, n.experiment, e) for n in needs for e in _of(question, n)]
                known = None if None in times or not times else math.fsum(t for t in times if t is not None)
                lacking.append(
                    {"claim": claim, "question": question, "statement": statements[claim], "machine": page.machine,
                     "needs": wanted(needs), "seconds": known}
                )  # fmt: skip
    return {"machines": shown, "lacking": lacking}


def _of(question: str, need: Need) -> list[dict[str, Any]]:
    return [entry for entry in plans.load(question)[need.experiment].entries(need.profile) if entry["key"] in need.keys]


def _entry(page: Page) -> dict[str, Any]:
    return {
        "question": page.question,
        "profiles": {name: asdict(count) for name, count in page.profiles.items()},
        "planned": asdict(page.planned),
        "verdicts": dict(page.outcomes),
        "last": None if page.last is None else ran(page.last),
        "failure": None if page.failure is None else f"{page.failure.stage} failed on {page.failure.started[:10]}",
    }
