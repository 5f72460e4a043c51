"""Outcome expressions: which combination of conditions means what, read in three-valued logic.

``confirmed: standard and count(a, b, c) >= 2`` is parsed here into a small tree; nothing is ever evaluated as code.
A condition that holds is True, one that fails False, one that is unclear or missing None (unknown); ``and``, ``or``
and ``not`` follow Kleene (1952, Introduction to Metamathematics, section 64): an unknown stays unknown exactly as
long as it could still matter.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cnnstudy.config import Refused

OUTCOMES = ("confirmed", "refuted", "mixed")  # in the order in which they are tried
RESERVED = ("and", "or", "not", "count", "otherwise")
MOST_UNKNOWN = 10  # beyond this, every unknown is taken to matter (2 ** 10 completions are tried at the most)
_TOKEN = re.compile(r"\s*(?:(>=)|([A-Za-z][A-Za-z0-9_-]*)|(\d+)|([(),]))")

Tree = tuple[Any, ...]  # ("name", n) | ("not", t) | ("and" | "or", t, ...) | ("count", k, t, ...) | ("otherwise",)


@dataclass(frozen=True)
class Expression:
    """A parsed outcome expression: its text, and the names of the conditions in it."""

    text: str
    names: tuple[str, ...]
    tree: Tree = field(repr=False, default=("otherwise",))

    def value(self, states: Mapping[str, bool | None]) -> bool | None:
        """True, False, or None (unknown), given those of the named conditions."""
        return _value(self.tree, states)


def parse(text: Any) -> Expression:
    """Parse names, ``and``, ``or``, ``not``, parentheses, ``count(a, b) >= k``, or ``otherwise`` alone.

    Raises Refused with what was met and what was expected.
    """
    if not isinstance(text, str):
        raise Refused(f"expression {text!r} is not text; expected names, and, or, not, ( ), count(a, b) >= k")
    source = text.strip()
    tokens: list[str] = []
    place = 0
    while source[place:].strip():
        match = _TOKEN.match(source, place)
        if match is None:
            raise Refused(
                f"expression {source!r}: unexpected {source[place:].strip()[0]!r}; valid: names, and, or, not, ( ), count(a, b) >= k"
            )
        tokens.append(match.group(match.lastindex or 0))
        place = match.end()
    if tokens == ["otherwise"]:
        return Expression(source, (), ("otherwise",))
    reader = _Reader(source, tokens)
    tree = reader.either()
    reader.expect("")
    return Expression(source, tuple(dict.fromkeys(reader.names)), tree)


class _Reader:
    """Recursive descent: or < and < not < name, parentheses, count."""

    def __init__(self, source: str, tokens: list[str]) -> None:
        self.source, self.tokens, self.names = source, tokens, []  # type: str, list[str], list[str]

    def peek(self) -> str:
        return self.tokens[0] if self.tokens else ""

    def take(self) -> str:
        return self.tokens.pop(0) if self.tokens else ""

    def expect(self, token: str) -> None:
        got = self.take()
        if got != token:
            raise Refused(f"expression {self.source!r}: expected {token or 'the end'!r}, found {got or 'the end'!r}")

    def either(self) -> Tree:
        parts = [self.both()]
        while self.peek() == "or":
            self.take()
            parts.append(self.both())
        return parts[0] if len(parts) == 1 else ("or", *parts)

    def both(self) -> Tree:
        parts = [self.one()]
        while self.peek() == "and":
            self.take()
            parts.append(self.one())
        return parts[0] if len(parts) == 1 else ("and", *parts)

    def one(self) -> Tree:
        token = self.take()
        if token == "not":
            return ("not", self.one())
        if token == "(":
            inner = self.either()
            self.expect(")")
            return inner
        if token == "count":
            return self.count()
        if not token or token in RESERVED or not token[0].isalpha():
            raise Refused(f"expression {self.source!r}: expected the name of a condition, found {token or 'the end'!r}")
        self.names.append(token)
        return ("name", token)

    def count(self) -> Tree:
        self.expect("(")
        parts = [self.either()]
        while self.peek() == ",":
            self.take()
            parts.append(self.either())
        self.expect(")")
        self.expect(">=")
        least = self.take()
        if not least.isdigit() or not 1 <= int(least) <= len(parts):
            raise Refused(f"expression {self.source!r}: count(...) >= {least or 'nothing'}: expected 1 to {len(parts)}")
        return ("count", int(least), *parts)


def _value(tree: Tree, states: Mapping[str, bool | None]) -> bool | None:
    kind = tree[0]
    if kind == "name":
        return states[tree[1]]
    if kind == "otherwise":
        return True
    if kind == "not":
        inner = _value(tree[1], states)
        return None if inner is None else not inner
    parts = [_value(t, states) for t in (tree[2:] if kind == "count" else tree[1:])]
    least = {"and": len(parts), "or": 1, "count": tree[1]}[kind]  # all three ask: are at least this many true?
    if sum(p is True for p in parts) >= least:
        return True
    return False if sum(p is not False for p in parts) < least else None


def outcome(expressions: Mapping[str, Expression], states: Mapping[str, bool | None]) -> str | None:
    """The first of confirmed, refuted, mixed that is True; "none" if all are False; None while that is open.

    An outcome stands only when no earlier one could still become true: with ``mixed: otherwise`` an unknown
    ``confirmed`` must not read as mixed.
    """
    for name in OUTCOMES:
        if name in expressions:
            value = expressions[name].value(states)
            if value is None:
                return None
            if value:
                return name
    return "none"


def relevant(expressions: Mapping[str, Expression], states: Mapping[str, bool | None]) -> set[str]:
    """The unknown conditions that could still change the outcome, whatever the other unknown ones turn out to be."""
    unknown = sorted({n for e in expressions.values() for n in e.names if states[n] is None})
    if len(unknown) > MOST_UNKNOWN:
        return set(unknown)
    seen = {}
    for choice in itertools.product((False, True), repeat=len(unknown)):
        seen[choice] = outcome(expressions, dict(states) | dict(zip(unknown, choice, strict=True)))
    return {name for i, name in enumerate(unknown) if any(seen[c] != seen[(*c[:i], not c[i], *c[i + 1 :])] for c in seen)}


def reachable(expressions: Mapping[str, Expression], names: Iterable[str]) -> set[str | None]:
    """The outcomes that some combination of fully decided conditions leads to; stops once it can go either way."""
    order = list(names)
    few = (chosen for size in range(len(order) + 1) for chosen in itertools.combinations(order, size))  # the likeliest first
    found: set[str | None] = set()
    for chosen in itertools.islice(few, 2 ** (2 * MOST_UNKNOWN - 1)):
        for odd in (True, False):  # all alike but for a few
            found.add(outcome(expressions, dict.fromkeys(order, not odd) | dict.fromkeys(chosen, odd)))
        if found >= {"confirmed", "refuted"}:
            break
    return found
