"""Vouching: records made by other code count as today's where today's code was seen to give the very same numbers.

An edit of a module makes all records behind it stale, although most edits change no number.  Measurements made anew in the quick
profile (``nox -s remeasure`` leaves them in ``_build/remeasured``) are compared with the recorded ones of the same machine and
key.  If every metric and every array of all of them is the same, to the last digit, and they took every branch that the records
took (each text and truth value of a setup occurs), then a line in ``<root>/<machine>/vouched.jsonl`` says that what was recorded by
the old code, in that experiment and for those kinds of config, is what the new code gives.  Records are not touched.  What the
clock measures never repeats and cannot be vouched for.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused, flatten
from cnnstudy.report import claims, evidence
from cnnstudy.report import plan as plans
from cnnstudy.runtime import ROOT, machine_id

LAST_DIGITS = 1e-6  # relative; sums in another order differ by less, until a training has amplified them
Entry = tuple[plans.Experiment, dict[str, Any]]
Voucher = tuple[str, tuple[str, ...], str, str]  # experiment, kinds of config, the code that was, the code that is


@dataclass(frozen=True)
class Line:
    """One line of ``vouched.jsonl``: the keys that were compared, when, and with how many threads the new ones were made."""

    experiment: str
    kinds: tuple[str, ...]
    was: str
    is_: str
    checked: tuple[str, ...]
    date: str
    threads: tuple[int, ...]

    @property
    def voucher(self) -> Voucher:
        return self.experiment, self.kinds, self.was, self.is_


@dataclass(frozen=True)
class Result:
    """What came of one experiment's records by one older code: how many were compared and how many stand behind them.

    ``problem`` says why they are not vouched for; None: they are.
    """

    question: str
    experiment: str
    kinds: tuple[str, ...]
    was: str
    is_: str
    compared: int
    records: int
    problem: str | None

    def row(self) -> dict[str, Any]:
        """For a table: ``result`` says "vouched for" or why not."""
        return {
            "question": self.question,
            "experiment": self.experiment,
            "kinds": " ".join(self.kinds),
            "was": self.was,
            "is": self.is_,
            "compared": self.compared,
            "records": self.records,
            "result": self.problem or "vouched for",
        }


def path(machine: str, root: Path | None = None) -> Path:
    return (root or evidence.store_root()) / machine / "vouched.jsonl"


def read(machine: str, root: Path | None = None) -> frozenset[Voucher]:
    """What is vouched for on a machine.  Raises Refused, naming the line, for one that cannot be read (not the last, torn one)."""
    file = path(machine, root)
    lines = file.read_text("utf-8").split("\n") if file.exists() else []
    found = set()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.add(_line(json.loads(line)).voucher)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise Refused(f"{machine}/{file.name}:{number}: damaged line ({error}); restore the file from git") from None
    return frozenset(found)


def _line(body: Mapping[str, Any]) -> Line:
    return Line(
        body["experiment"], tuple(body["kinds"]), body["was"], body["is"], tuple(body["checked"]), body["date"], tuple(body["threads"])
    )


def current(experiment: str, kinds: Iterable[str], was: str | None, today: str, vouched: frozenset[Voucher]) -> bool:
    """Whether a record made by the code ``was`` counts as made by today's: it is the same, or it is vouched for."""
    return was == today or (experiment, tuple(sorted(kinds)), was, today) in vouched


def stale(question: str, profile: str, machine: str | None = None) -> list[Entry]:
    """The measurements of a profile that this machine (or ``machine``) has recorded with other code, not vouched for."""
    machine = machine or machine_id()
    vouched, there = read(machine), {r["key"]: r["provenance"].get("code") for r in evidence.read(machine)}
    return [
        (e, entry)
        for e in plans.load(question).values()
        for entry in e.entries(profile)
        if entry["key"] in there and not current(e.name, e.kinds_of(entry["setup"]), there[entry["key"]], e.code(entry["setup"]), vouched)
    ]


# comparing --------------------------------------------------------------------------------------------------------------


def vouch(questions: Iterable[str], fresh: Path | None = None, machine: str | None = None, root: Path | None = None) -> list[Result]:
    """Compare what was measured anew, in the store ``fresh``, with the records by older code; write down what may be vouched for.

    Raises Refused when there is no such store, or it has nothing of this machine.
    """
    fresh, machine = fresh or ROOT / "_build" / "remeasured", machine or machine_id()
    if machine not in evidence.machines(fresh):
        raise Refused(f"no measurements of {machine} in {fresh}; make them with: nox -s remeasure")
    anew = {r["key"]: r for r in evidence.read(machine, None, fresh)}
    there = {r["key"]: r for r in evidence.read(machine, None, root)}
    asked = list(questions)
    names = {name for question in asked for name in plans.load(question)}
    shared: dict[Voucher, dict[str, None]] = {}  # a voucher speaks for the records of every page that shares the experiment
    for question in dict.fromkeys([*asked, *claims.questions()]):
        for e in plans.load(question).values():
            for voucher, keys in _groups(e, there).items() if e.name in names else ():
                shared.setdefault(voucher, {}).update(keys)
    results = [result for question in asked for result in _page(question, shared, there, anew, machine, fresh, root)]
    known = read(machine, root)
    if new := {line.voucher: line for _, line in results if line is not None and line.voucher not in known}:
        lines = [{name.rstrip("_"): value for name, value in asdict(line).items()} for line in new.values()]
        evidence.write_line(path(machine, root), *lines)
    return [result for result, _ in results]


def _groups(e: plans.Experiment, there: Mapping[str, Any]) -> dict[Voucher, dict[str, None]]:
    """The planned keys of an experiment that other code has recorded, by what a voucher for them would say."""
    found: dict[Voucher, dict[str, None]] = {}
    for entry in (entry for profile in plans.PROFILES for entry in e.entries(profile) if entry["key"] in there):
        was, today = there[entry["key"]]["provenance"].get("code"), e.code(entry["setup"])
        if was not in (today, None):
            found.setdefault((e.name, e.kinds_of(entry["setup"]), was, today), {})[entry["key"]] = None
    return found


def _page(
    question: str, shared: Mapping[Voucher, Mapping[str, None]], there: Mapping[str, Any], anew: Mapping[str, Any],
    machine: str, fresh: Path, root: Path | None,
) -> Iterator[tuple[Result, Line | None]]:  # fmt: skip
    """One result per experiment, kinds of config and older code of a page; with a line where it may be vouched for.

    ``shared``: the keys that stand behind each voucher, on this page and on others.
    """
    experiments = claims.load(question).experiments
    for e in plans.load(question).values():
        kind = experiments[e.name].kind if e.name in experiments else "removed"
        for voucher in _groups(e, there):
            keys, today = shared[voucher], voucher[-1]
            checked = [key for key in keys if key in anew]
            if kind == "hardware":
                problem: str | None = "its numbers are times of this machine, which never repeat; measure them anew"
            else:
                problem = _problem([(there[key], anew[key]) for key in checked], today, machine, fresh, root)
                problem = problem or _unseen([there[key]["setup"] for key in keys], [there[key]["setup"] for key in checked])
            result = Result(question, *voucher, len(checked), len(keys), problem)
            yield result, None if problem else _written(result, checked, [anew[key] for key in checked])


def _written(result: Result, checked: list[str], anew: Iterable[Mapping[str, Any]]) -> Line:
    threads = tuple(sorted({r["provenance"]["threads"] for r in anew if "threads" in r["provenance"]}))
    today = datetime.date.today().isoformat()
    return Line(result.experiment, result.kinds, result.was, result.is_, tuple(sorted(checked)), today, threads)


def _problem(pairs: list[tuple[Any, Any]], today: str, machine: str, fresh: Path, root: Path | None) -> str | None:
    """Why the older records may not be vouched for; None if all that was measured anew is the same."""
    if not pairs:
        return "nothing of it was measured anew"
    for old, new in pairs:
        if new["provenance"].get("code") != today:
            return f"{new['key']} was measured anew by code {new['provenance'].get('code')}, which is not today's either"
        difference = _difference(old, new) or _array_difference(old, new, machine, fresh, root)
        if difference:
            return f"{new['key']}: {difference}"
    if not any(_tells(old) for old, _ in pairs):
        return "what was measured anew could not have come out otherwise"
    return None


def _unseen(setups: Iterable[Mapping[str, Any]], checked: Iterable[Mapping[str, Any]]) -> str | None:
    """A branch that the records took and no measurement made anew did: a value of their setups that is no number."""

    def branches(setup: Mapping[str, Any]) -> set[tuple[str, str]]:
        return {(path, json.dumps(value)) for path, value in flatten(setup).items() if not list(_numbers(value))}

    seen = {one for setup in checked for one in branches(setup)}
    unseen = sorted({one for setup in setups for one in branches(setup)} - seen)
    return f"nothing with {unseen[0][0]} = {unseen[0][1]} was measured anew" if unseen else None


def _tells(record: Mapping[str, Any]) -> bool:
    """Whether a record could have come out otherwise: it has an array, or a number that its setup does not state already."""
    stated = set(_numbers(record["setup"])) | {0.0, 1.0}
    return "failed" not in record and (bool(record.get("arrays")) or any(v not in stated for v in _numbers(record["metrics"])))


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str | None:
    """How two records of one key differ in what they found, in words."""
    for name in ("failed", "arrays"):
        if old.get(name) != new.get(name):
            return f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
    was, now = old["metrics"], new["metrics"]
    if was.keys() != now.keys():
        return f"metrics were {', '.join(sorted(was))}; they are {', '.join(sorted(now))}"
    for name in was:
        if not _same(was[name], now[name]):
            return f"{name} was {_short(was[name])}, is {_short(now[name])}{_why(old, new, was[name], now[name])}"
    return None


def _same(a: Any, b: Any) -> bool:
    """The same value and type, to the last digit; NaN is NaN, and -0.0 is not 0.0."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _why(old: Mapping[str, Any], new: Mapping[str, Any], was: Any, now: Any) -> str:
    """How large a difference is, and what else could explain it, in words: the code need not be the reason."""
    a, b = list(_numbers(was)), list(_numbers(now))
    close = len(a) == len(b) > 0 and all(math.isclose(x, y, rel_tol=LAST_DIGITS) for x, y in zip(a, b, strict=True))
    words = ["in the last digits"] if close else []
    before, after = old["provenance"], new["provenance"]
    changed = [name for name in ("threads", "torch", "device") if before.get(name) != after.get(name)]
    if changed:
        other = ", ".join(f"{name} {before.get(name)} then and {after.get(name)} now" for name in changed)
        words.append(f"{other}, which alone may be the reason: measure it anew under the same")
    return f" ({'; '.join(words)})" if words else ""


def _array_difference(old: Mapping[str, Any], new: Mapping[str, Any], machine: str, fresh: Path, root: Path | None) -> str | None:
    """How the arrays beside two records differ, in words."""
    if not old.get("arrays"):
        return None
    import numpy as np

    was, now = evidence.load_arrays(dict(old), machine, root), evidence.load_arrays(dict(new), machine, fresh)
    for name in was:
        a, b = was[name], now[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"array {name} was {a.dtype}{list(a.shape)}, is {b.dtype}{list(b.shape)}"
        if not np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"):
            if a.dtype.kind not in "fciu":
                return f"array {name} differs"
            apart = int(np.argmax(~np.isclose(a, b, rtol=0, atol=0, equal_nan=True)))
            x, y = a.ravel()[apart].item(), b.ravel()[apart].item()
            return f"array {name}[{apart}] was {x}, is {y}{_why(old, new, [x], [y])}"
    return None
