"""What to measure first when time is short: the measurements that make most claims decidable.

A claim becomes decidable when every missing condition that could change its outcome has all that its selection expects in one
profile.  Claims share measurements, so that two together may cost hardly more than one.  The best choice is a set-union knapsack,
which is NP-hard (Goldschmidt, Nehme and Yu 1994, Naval Research Logistics 41); this one is greedy, and was the best in all but a few of
some hundred small cases where every choice was tried.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cnnstudy.config import choose
from cnnstudy.report import plan as plans
from cnnstudy.report.estimates import LEAST_S, Durations
from cnnstudy.report.standing import recorded, standing
from cnnstudy.runtime import machine_id

TOGETHER = 4  # claims that are looked at together
Keys = frozenset[str]


@dataclass(frozen=True)
class Chosen:
    """One measurement to make, and the highest profile that plans it, of those that were allowed."""

    question: str
    experiment: str
    profile: str
    key: str
    seconds: float


@dataclass(frozen=True)
class Choice:
    """What to measure within a time, and the claims that become decidable by it.

    ``later``: claims that need more than is left, each with the seconds it would still need; ``unknown``: claims with a measurement
    of which no duration is known; ``beyond``: claims that no planned profile up to the one asked for decides on this machine.
    """

    entries: tuple[Chosen, ...]
    claims: tuple[str, ...]
    later: Mapping[str, float]
    unknown: tuple[str, ...]
    beyond: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return math.fsum(entry.seconds for entry in self.entries)

    @property
    def profiles(self) -> tuple[str, ...]:
        """The profiles to run, each restricted to :attr:`keys`."""
        return tuple(p for p in plans.PROFILES if any(entry.profile == p for entry in self.entries))

    @property
    def keys(self) -> Keys:
        return frozenset(entry.key for entry in self.entries)

    def pages(self, profile: str) -> list[str]:
        """The pages that have something to measure in a profile."""
        return sorted({entry.question for entry in self.entries if entry.profile == profile})

    def rows(self) -> list[dict[str, Any]]:
        """Per page, profile and experiment: how many measurements, and for how long."""
        found: dict[tuple[str, str, str], list[float]] = {}
        for entry in self.entries:
            found.setdefault((entry.question, entry.profile, entry.experiment), []).append(entry.seconds)
        names = ("question", "profile", "experiment")
        return [dict(zip(names, place, strict=True)) | {"to_measure": len(s), "seconds": math.fsum(s)} for place, s in found.items()]


def choose_within(minutes: float, questions: Iterable[str], profile: str, machine: str | None = None) -> Choice:
    """The measurements that make most claims decidable within ``minutes`` on this machine, from profiles up to ``profile``.

    Each step takes what decides most claims per added minute: what one claim needs, or what it needs together with those that add
    least to it, or what all claims need that hang together.  To begin with the largest offer is tried as well: a small one taken
    first may leave no room for it.
    """
    allowed = plans.PROFILES[: plans.PROFILES.index(choose("profile", profile, plans.PROFILES)) + 1]
    needs = _Needs(machine or machine_id(), allowed)
    for question in questions:
        needs.add(question)
    islands = _islands(needs.open, needs.entries)
    first = [(i, offer) for i, island in enumerate(islands) for offer in island.offers(0) if offer.seconds <= minutes * 60]
    largest = min(first, key=lambda one: (-one[1].claims, one[1].seconds), default=None)
    ends = [_fill(islands, minutes * 60, start) for start in (None, largest)]
    made = max(ends, key=lambda end: (sum(map(_Island.decided, islands, end)), -sum(map(_Island.cost, islands, end))))
    taken = [needs.entries[key] for island, bits in zip(islands, made, strict=True) for key in island.keys(bits)]
    done = [c for island, bits in zip(islands, made, strict=True) for c in island.claims if island.has(c, bits)]
    later = {
        c: island.cost(island.lacking(c, bits))
        for island, bits in zip(islands, made, strict=True)
        for c in island.claims
        if not island.has(c, bits)
    }
    taken.sort(key=lambda c: (c.question, plans.PROFILES.index(c.profile), c.experiment, c.key))
    return Choice(tuple(taken), tuple(sorted(done)), dict(sorted(later.items())), tuple(needs.unknown), tuple(needs.beyond))


class _Needs:
    """What the open claims of some pages need: per claim and missing condition the sets of keys, one of which has to be made."""

    def __init__(self, machine: str, allowed: Sequence[str]) -> None:
        self.durations, self.machine, self.allowed = Durations(machine), machine, allowed
        self.there = recorded(machine)
        self.entries: dict[str, Chosen] = {}
        self.open: dict[str, list[list[Keys]]] = {}
        self.unknown: list[str] = []
        self.beyond: list[str] = []

    def add(self, question: str) -> None:
        """Find what the page's untested claims need, and how long that takes."""
        planned: dict[str, tuple[str, str, dict[str, Any]]] = {}
        for profile in reversed(self.allowed):
            for e in plans.load(question).values():
                for entry in e.entries(profile):
                    planned.setdefault(entry["key"], (e.name, profile, entry))
        for claim, needs in standing(question, self.machine, self.there).needs.items():
            conditions = [
                [frozenset(keys).difference(self.there) for profile, keys in options.items() if profile in self.allowed]
                for options in needs.values()
            ]
            if not all(any(options) for options in conditions):  # not planned, or all there and still not enough for the rule
                self.beyond.append(claim)
                continue
            for key in {k for options in conditions for keys in options for k in keys} - self.entries.keys():
                experiment, profile, entry = planned[key]
                seconds = self.durations.seconds(question, experiment, entry)
                if seconds is not None:
                    self.entries[key] = Chosen(question, experiment, profile, key, seconds)
            known = [[keys for keys in options if keys and keys <= self.entries.keys()] for options in conditions]
            if all(known):
                self.open[claim] = known
            else:
                self.unknown.append(claim)


@dataclass(frozen=True)
class _Offer:
    """Something to measure next: how many claims it decides, and for how long it takes."""

    claims: int
    seconds: float
    bits: int


@dataclass
class _Island:
    """Claims that share measurements with each other and with no other claim, mostly those of a page.

    Measurements that are always needed together (the seeds of a setup) are one atom; a set of atoms is a whole number, a bit each.
    """

    claims: dict[str, list[list[int]]]
    atoms: list[list[str]]
    seconds: list[float]
    _costs: dict[int, float] = field(default_factory=dict)
    _offers: dict[int, list[_Offer]] = field(default_factory=dict)

    def keys(self, bits: int) -> list[str]:
        return [key for i, keys in enumerate(self.atoms) if bits >> i & 1 for key in keys]

    def cost(self, bits: int) -> float:
        if bits not in self._costs:
            self._costs[bits] = math.fsum(s for i, s in enumerate(self.seconds) if bits >> i & 1)
        return self._costs[bits]

    def has(self, claim: str, bits: int) -> bool:
        """Whether a claim is decidable with these atoms."""
        return all(any(not option & ~bits for option in options) for options in self.claims[claim])

    def decided(self, bits: int) -> int:
        return sum(self.has(claim, bits) for claim in self.claims)

    def lacking(self, claim: str, bits: int) -> int:
        """What a claim still needs, at its cheapest."""
        found = 0
        for options in self.claims[claim]:
            found |= min((option & ~bits for option in options), key=self.cost)
        return found

    def offers(self, bits: int) -> list[_Offer]:
        """What could be measured next: no offer decides fewer claims than one that takes less time."""
        if bits not in self._offers:
            needs = {claim: self.lacking(claim, bits) for claim in self.claims if not self.has(claim, bits)}
            sets = {0: None}
            for union in needs.values():
                rest = list(needs.values())
                for _ in range(TOGETHER):
                    sets[union] = None
                    rest = [more for more in rest if more & ~union]
                    if not rest:
                        break
                    union |= min(rest, key=lambda more, union=union: self.cost(more & ~union))  # type: ignore[misc]
            every = 0
            for more in needs.values():
                every |= more
            sets[every] = None
            before, best = len(self.claims) - len(needs), 0
            front = []
            for offer in sorted(
                (_Offer(self.decided(bits | s) - before, self.cost(s), s) for s in sets), key=lambda o: (o.seconds, -o.claims)
            ):
                if offer.claims > best:
                    front.append(offer)
                    best = offer.claims
            self._offers[bits] = front
        return self._offers[bits]


def _islands(claims: Mapping[str, list[list[Keys]]], entries: Mapping[str, Chosen]) -> list[_Island]:
    """Claims that share keys, together."""
    groups: list[tuple[set[str], list[str]]] = []
    for claim, conditions in claims.items():
        keys, names = {k for options in conditions for option in options for k in option}, [claim]
        for group in [g for g in groups if g[0] & keys]:
            groups.remove(group)
            keys, names = group[0] | keys, group[1] + names
        groups.append((keys, names))
    return [_island({name: claims[name] for name in names}, entries) for _, names in groups]


def _island(claims: Mapping[str, list[list[Keys]]], entries: Mapping[str, Chosen]) -> _Island:
    needed: dict[str, list[tuple[str, int, int]]] = {}  # by whom a key is needed
    for claim, conditions in claims.items():
        for c, options in enumerate(conditions):
            for o, option in enumerate(options):
                for key in option:
                    needed.setdefault(key, []).append((claim, c, o))
    atoms: dict[tuple[tuple[str, int, int], ...], list[str]] = {}
    for key in sorted(needed):
        atoms.setdefault(tuple(needed[key]), []).append(key)
    masks = {claim: [[0] * len(options) for options in conditions] for claim, conditions in claims.items()}
    for i, places in enumerate(atoms):
        for claim, c, o in places:
            masks[claim][c][o] |= 1 << i
    return _Island(masks, list(atoms.values()), [math.fsum(entries[key].seconds for key in keys) for keys in atoms.values()])


def _fill(islands: Sequence[_Island], budget: float, start: tuple[int, _Offer] | None) -> list[int]:
    """Take the best offer that still fits, until none does: per island what is taken."""
    made = [0] * len(islands)
    step = start
    while True:
        if step is not None:
            number, offer = step
            made[number] |= offer.bits
            budget -= offer.seconds
        fitting = [(i, o) for i, island in enumerate(islands) for o in island.offers(made[i]) if o.seconds <= budget]
        if not fitting:
            return made
        step = max(fitting, key=lambda one: (one[1].claims / max(one[1].seconds, LEAST_S), -one[1].seconds))
