"""Verdicts: the rows for each condition, the conditions' findings, and what the ledger says they mean together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from cnnstudy.config import Refused, digest
from cnnstudy.report import outcomes
from cnnstudy.report.claims import Claim, Ledger
from cnnstudy.report.rules import RULES, Finding
from cnnstudy.report.select import Flats, Selection, index, select
from cnnstudy.report.wording import sentence
from cnnstudy.runtime import ROOT

OUTCOMES = ("confirmed", "mixed", "refuted", "undecided", "untested")
JSON_FIELDS = ("id", "outcome", "estimate", "low", "high", "n", "machine", "profile", "rule", "reason")
MOST_REASONS = 3  # conditions named in a reason; the others stand in the table

Record = Mapping[str, Any]


class Planned(Protocol):
    """What is asked of an experiment's plan (``plan.Experiment``): the measurements that a profile expects."""

    def entries(self, profile: str) -> list[dict[str, Any]]:
        """``{"setup", "seed", "key"}`` each."""
        ...


@dataclass(frozen=True)
class Verdict:
    """The outcome of one claim.  Estimate, interval, n, rule, machine and profile are those of its leading condition."""

    id: str
    outcome: str
    findings: Mapping[str, Finding]
    estimate: float | None
    low: float | None
    high: float | None
    n: int
    reason: str
    digest: str
    rule: str | None = None
    machine: str | None = None
    profile: str | None = None
    changed: str | None = None
    sources: Mapping[str, Selection] = field(default_factory=dict, compare=False, repr=False)


def rule_digest(claim: Claim) -> str:
    """12 hex digits of the claim's conditions and expressions as the ledger has them: changes when the rule does."""
    return digest(claim.written)


def judge(claim: Claim, findings: Mapping[str, Finding], sources: Mapping[str, Selection] | None = None) -> Verdict:
    """What the findings of a claim's conditions mean by its expressions, in three-valued logic."""
    if claim.untested is not None:
        return Verdict(claim.id, "untested", {}, None, None, None, 0, sentence(claim.untested), rule_digest(claim))
    truth = {"holds": True, "fails": False}
    states: dict[str, bool | None] = {name: truth.get(findings[name].state) for name in claim.conditions}
    found = outcomes.outcome(claim.expressions, states)
    if found is None:
        named = [n for n in claim.conditions if n in outcomes.relevant(claim.expressions, states)]
        if not named:  # every completion leads to the same outcome
            found = outcomes.outcome(claim.expressions, {n: bool(s) for n, s in states.items()})
    if found is None:
        absent = [n for n in named if findings[n].state == "missing"]
        result, named = ("untested", absent) if absent else ("undecided", named)
        reason = _because(claim, findings, named)
    elif found == "none":
        result, named = "undecided", list(claim.conditions)
        reason = "every condition is decided, but this combination is none of the outcomes: " + _because(claim, findings, named)
    else:
        result, named = found, _decisive(claim, states, found)
        reason = _because(claim, findings, named)
    lead = next((n for n in named if findings[n].estimate is not None), named[0])
    one, source = findings[lead], (sources or {}).get(lead, Selection())
    return Verdict(
        claim.id, result, dict(findings), one.estimate, one.low, one.high, one.n, sentence(reason), rule_digest(claim),
        str(claim.conditions[lead]["rule"]), ", ".join(source.machines) or None, ", ".join(source.profiles) or None,
        sources=dict(sources or {}),
    )  # fmt: skip


def _decisive(claim: Claim, states: Mapping[str, bool | None], found: str) -> list[str]:
    """The conditions that this outcome hangs on: decided otherwise, the outcome would be another."""
    whole = {n: bool(s) for n, s in states.items()}
    turn = [n for n in whole if outcomes.outcome(claim.expressions, whole | {n: not whole[n]}) != found]
    pivotal = [n for n in turn if states[n] is not None]
    if found == "mixed":  # a reader asks what holds and what fails: name one of each
        for state in (True, False):
            if pivotal and not any(states[n] is state for n in pivotal):
                pivotal += [n for n in claim.conditions if states[n] is state][:1]
    decided = [n for n in claim.expressions[found].names if states[n] is not None]
    return pivotal or decided or [n for n in claim.conditions if states[n] is not None] or list(claim.conditions)


def _because(claim: Claim, findings: Mapping[str, Finding], named: Sequence[str]) -> str:
    """The reasons of the named conditions in one sentence; conditions with the same reason are named together."""
    if len(claim.conditions) == 1:
        only = findings[named[0]]
        return ("missing: " if only.state == "missing" else "") + _inside(only.reason)
    alike: dict[tuple[str, str], list[str]] = {}
    for n in named:
        alike.setdefault((findings[n].state, findings[n].reason), []).append(n)
    parts = [f"{_STATES[state].format(_called(claim, names, state))}: {_inside(reason)}" for (state, reason), names in alike.items()]
    more = [f"and {len(parts) - MOST_REASONS} more"] if len(parts) > MOST_REASONS else []
    return "; ".join(parts[:MOST_REASONS] + more)


_STATES = {"holds": "{} holds", "fails": "{} fails", "unclear": "{} is unclear", "missing": "missing for {}"}


def _called(claim: Claim, names: Sequence[str], state: str) -> str:
    """A condition by its own words, if it has some; several by their names."""
    text = claim.conditions[names[0]].get("text") if len(names) == 1 else None
    if text:
        return f"“{text.removesuffix('.')}”"
    return _list(names) if state == "missing" else f"condition {_list(names)}"


def _list(names: Sequence[str]) -> str:
    shown = [*names[:MOST_REASONS], f"{len(names) - MOST_REASONS} more"] if len(names) > MOST_REASONS + 1 else list(names)
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " and " + shown[-1]


def _inside(reason: str) -> str:
    """A sentence as part of another: no full stop, and no capital unless its first word has more of them."""
    first = reason.split(" ", 1)[0]
    return (reason[:1].lower() + reason[1:] if first[1:].islower() else reason).removesuffix(".")


def judge_question(
    ledger: Ledger,
    plan: Mapping[str, Planned],
    records: Mapping[str, Sequence[Record]],
    machines: Sequence[str],
    history: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Verdict]:
    """The verdicts on a question's claims.

    ``plan``: per experiment what each profile expects; ``records``: per machine what counts; ``machines``: the best
    first.  ``history`` (default: ``data/verdicts``) tells which rules were changed after records existed.
    Raises Refused, naming claim and condition, where a condition does not fit its rows.
    """
    history = read_history(ledger.question) if history is None else history
    there, flats = index(records), Flats()
    verdicts = []
    for claim in ledger.claims:
        findings, sources = {}, {}
        for name, condition in claim.conditions.items():
            try:
                experiment = ledger.experiments[condition["experiment"]]
                sources[name] = chosen = select(condition, experiment, plan, there, machines, flats)
                findings[name] = chosen.missing or RULES[condition["rule"]](condition, chosen.rows)
            except Refused as error:
                raise Refused(f"{claim.id}: condition {name}: {error}") from None
        verdict = judge(claim, findings, sources)
        verdicts.append(replace(verdict, changed=_changed(history.get(claim.id), verdict.digest)))
    return verdicts


def judge_all(questions: Iterable[str] | None = None, machines: Sequence[str] | None = None) -> list[tuple[Ledger, list[Verdict]]]:
    """Every question's ledger with its verdicts, from the records of ``machines`` (default: the book's)."""
    from cnnstudy.report import claims, evidence, plan

    machines = evidence.reference() if machines is None else machines
    records = {m: evidence.read(m) for m in machines}
    ledgers = [claims.load(q) for q in (questions if questions is not None else claims.questions())]
    return [(one, judge_question(one, plan.load(one.question), records, machines)) for one in ledgers]


def rows(questions: Iterable[str] | None = None, machines: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """One row per claim for the board: the JSON fields, and question, title, part, statement, evidence, changed."""
    return [
        row | {"question": ledger.question, "title": ledger.title, "part": ledger.part, "statement": claim.statement,
               "evidence": list(claim.evidence), "changed": verdict.changed}
        for ledger, verdicts in judge_all(questions, machines)
        for claim, verdict, row in zip(ledger.claims, verdicts, to_json(verdicts), strict=True)
    ]  # fmt: skip


def to_json(verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """The machine-readable list: ``JSON_FIELDS`` of each verdict."""
    return [{name: getattr(v, name) for name in JSON_FIELDS} for v in verdicts]


def board(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many claims have which outcome, all outcomes named, and ``claims`` in all."""
    counts = Counter(v.outcome for v in verdicts)
    return {"claims": counts.total()} | {outcome: counts[outcome] for outcome in OUTCOMES}


# the rule is fixed before the data: which rule was in force when records first existed


def history_path(question: str) -> Path:
    return ROOT / "data" / "verdicts" / f"{question}.json"


def read_history(question: str, path: Path | None = None) -> dict[str, dict[str, Any]]:
    """Per claim ``{digest, first_judged, outcome}`` and, after a change, ``changed``; empty where nothing is stored."""
    path = path or history_path(question)
    if not path.exists():
        return {}
    try:
        return {str(name): dict(entry) for name, entry in json.loads(path.read_text("utf-8")).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise Refused(f"{path.parent.name}/{path.name} is damaged ({error}); restore it from git") from None


def _changed(entry: Mapping[str, Any] | None, now: str) -> str | None:
    if entry is None or (entry["digest"] == now and "changed" not in entry):
        return None
    date = f"on {entry['changed']} " if entry["digest"] == now else ""
    return f"The rule was changed {date}after records existed (first judged on {entry['first_judged']})."


def remember(verdicts: Iterable[Verdict], history: Mapping[str, Mapping[str, Any]], today: str) -> dict[str, dict[str, Any]]:
    """The history with these verdicts: a claim enters when it is first judged from records, and keeps that date.

    ``today`` (ISO date) is noted as ``changed`` where the digest is not the stored one.
    """
    new = {name: dict(entry) for name, entry in history.items()}
    for v in verdicts:
        if v.id not in new:
            if any(f.n > 0 for f in v.findings.values()):
                new[v.id] = {"digest": v.digest, "first_judged": today, "outcome": v.outcome}
        elif new[v.id]["digest"] != v.digest:
            new[v.id] |= {"digest": v.digest, "outcome": v.outcome, "changed": today}
        else:
            new[v.id]["outcome"] = v.outcome
    return dict(sorted(new.items()))


def write_history(question: str, verdicts: Iterable[Verdict], today: str, path: Path | None = None) -> bool:
    """Store the history of a question's verdicts; returns whether the file changed."""
    path = path or history_path(question)
    text = json.dumps(remember(verdicts, read_history(question, path), today), indent=1) + "\n"
    if text == "{}\n" or (path.exists() and path.read_text("utf-8") == text):
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return True
