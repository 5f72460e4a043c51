"""The history of records: every line of a store's files, also those that no longer count, and which lines of another history are new.

A record is told by its key and the time when its measuring began; a retraction by the record that it retracts, and its reason.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused

Line = Mapping[str, Any]


def written(line: Line) -> str:
    """A line as the store writes it: one text for one content."""
    return json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False)


def lines(path: Path) -> list[Line]:
    """Every line of a file of the store; what a killed writer left half written is no line."""
    whole = path.read_bytes().rpartition(b"\n")[0] if path.exists() else b""
    found: list[Line] = []
    for number, text in enumerate(whole.split(b"\n"), 1):
        if text.strip():
            try:
                found.append(dict(json.loads(text)))
            except (ValueError, TypeError) as error:
                where = f"{path.parent.name}/{path.name}:{number}"
                raise Refused(f"{where}: damaged record line ({error}); restore the file from git") from None
    return found


def key_of(line: Line) -> str:
    """The key of a record, or the key that a retraction is about."""
    return str(line.get("key") or line.get("retract"))


def begun(line: Line | None) -> str:
    """When the measuring of a record began (UTC, as text in the order of time): with its key, what it is known by."""
    return "" if line is None else str(line.get("provenance", {}).get("started", ""))


def owners(lines: Iterable[Line]) -> dict[str, Line]:
    """By key the record that its file of arrays belongs to: the last that names some."""
    return {line["key"]: line for line in lines if line.get("arrays")}


class Known:
    """What is there of each key: its records by the time they began, the last of them, and what was retracted for which reason."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        self.records: dict[tuple[str, str], Line] = {}
        self.last: dict[str, Line] = {}
        self.retractions: set[tuple[str, str, str]] = set()
        for line in lines:
            self.add(line)

    def retraction(self, line: Line) -> tuple[str, str, str]:
        """What a retraction is known by: key, reason, and the record that it retracts."""
        return line["retract"], line["reason"], begun(self.last.get(line["retract"]))

    def add(self, line: Line) -> None:
        if "retract" in line:
            self.retractions.add(self.retraction(line))
        else:
            self.records[line["key"], begun(line)] = self.last[line["key"]] = line


class News:
    """Which lines of a bundle are new to a store, in their order.

    Records are told apart by key and beginning, so that merging twice adds nothing.  A record that began before the one that counts in the
    store is left out, and so is a retraction of such a one: appended, it would count instead.
    """

    def __init__(self, there: Known) -> None:
        self.there, self.before = there, dict(there.last)
        self.new: list[Line] = []
        self.known = self.older = 0

    def take(self, lines: Iterable[Line]) -> None:
        """Raises Refused where a record says otherwise than the one of the same key and time that is there."""
        mine = Known()
        for line in lines:
            if "retract" in line:
                if line["retract"] not in mine.last:
                    raise Refused(f"it retracts {line['retract']}, of which it has no record")
                known = mine.retraction(line) in self.there.retractions
                older = begun(mine.last[line["retract"]]) != begun(self.there.last.get(line["retract"]))
            else:
                known = self._known(line)
                older = begun(line) < begun(self.before.get(line["key"]))
            if known:
                self.known += 1
            elif older:
                self.older += 1
            else:
                self.new.append(line)
                self.there.add(line)
            mine.add(line)

    def _known(self, line: Line) -> bool:
        old = self.there.records.get((line["key"], begun(line)))
        if old is None or written(old) == written(line):
            return old is not None
        odd = next(name for name in ("metrics", *sorted(line.keys() | old.keys())) if old.get(name) != line.get(name))
        a, b = (json.dumps(one.get(odd), sort_keys=True) for one in (old, line))
        at = max(0, next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), 0) - 24)
        raise Refused(
            f"record {line['key']} of {line['question']}, begun {begun(line)}, contradicts one that is there: "
            f"{odd} is ..{a[at : at + 48]}.. there and ..{b[at : at + 48]}.. in the bundle; one of them was altered"
        )
