"""How long measuring will take, from how long it took.

The time of a measurement is, in this order: what the same one took on this machine; what it took on another, times how much slower
this one is; what the nearest setup of the same experiment took, times how much more work it is (pictures
seen in training, and ``WORK``).  On the book's
own records, standard measurements are told from quick ones to within a factor of 1.4 in the median.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from cnnstudy.config import flatten
from cnnstudy.report import evidence
from cnnstudy.report import plan as plans
from cnnstudy.runtime import machine_id

# besides pictures seen in training, what a setup's time grows with in proportion, as far as records tell; batch and attack steps do not
WORK = ("model.depth", "runs", "samples", "how.steps", "units.units")
TRAINING = ("recipe.epochs", "recipe.steps", "data.train")
LEAST_S = 1e-3  # what records hold of the shortest

Entry = tuple[plans.Experiment, dict[str, Any]]


def missing(question: str, profile: str, machine: str | None = None) -> list[Entry]:
    """The measurements that a profile expects and this machine (or ``machine``) has not recorded."""
    there = {r["key"] for r in evidence.read(machine or machine_id())}
    return [(e, entry) for e in plans.load(question).values() for entry in e.entries(profile) if entry["key"] not in there]


def estimate(question: str, entries: Sequence[Entry], durations: Durations | None = None) -> float | None:
    """Seconds that these measurements will take one after another; None if nothing is known of one of them."""
    durations = durations or Durations()
    times = [durations.seconds(question, e.name, entry) for e, entry in entries]
    return None if any(t is None for t in times) else math.fsum(t for t in times if t is not None)


class Durations:
    """What measuring took, on this machine (or ``machine``) and elsewhere; an empty store knows nothing, and says so."""

    def __init__(self, machine: str | None = None) -> None:
        self.machine = machine or machine_id()
        self._times: dict[str, dict[str, float]] = {}
        self._experiments: dict[str, dict[tuple[str, str], list[evidence.Record]]] = {}
        for name in [self.machine, *(m for m in evidence.reference() if m != self.machine)]:
            by_experiment = self._experiments.setdefault(name, {})
            times = self._times.setdefault(name, {})
            for record in evidence.read(name):
                times[record["key"]] = max(LEAST_S, record["provenance"].get("seconds") or 0.0)
                by_experiment.setdefault((record["question"], record["experiment"]), []).append(record)
        self._ratios: dict[tuple[str, str, str], float] = {}
        self._known: dict[tuple[str, str], list[_Known]] = {}
        self._guesses: dict[tuple[str, str, int], float | None] = {}

    def seconds(self, question: str, experiment: str, entry: Mapping[str, Any]) -> float | None:
        """Seconds of one planned measurement; None where nothing is recorded of its experiment."""
        for machine, times in self._times.items():
            if entry["key"] in times:
                return times[entry["key"]] * self._ratio(machine, question, experiment)
        place = question, experiment, id(entry["setup"])  # the plan has one object per setup, for all seeds and profiles
        if place not in self._guesses:
            self._guesses[place] = self._nearest(question, experiment, entry["setup"])
        return self._guesses[place]

    def _ratio(self, machine: str, question: str, experiment: str) -> float:
        """How many times longer this machine takes than another: the median over what both have of the experiment, page or store."""
        if machine == self.machine:
            return 1.0
        place = machine, question, experiment
        if place not in self._ratios:
            there = self._experiments[machine]
            ours, theirs = self._times[self.machine], self._times[machine]
            levels = [[(question, experiment)], [name for name in there if name[0] == question], list(there)]
            shared = [[r["key"] for name in level for r in there.get(name, ()) if r["key"] in ours] for level in levels]
            keys = next((one for one in shared if one), [])
            self._ratios[place] = median(ours[k] / theirs[k] for k in keys) if keys else 1.0
        return self._ratios[place]

    def _nearest(self, question: str, experiment: str, setup: Mapping[str, Any]) -> float | None:
        """From the nearest setups of the same kinds of model; if there are none, from the mean of all."""
        known = self._known_of(question, experiment)
        if not known:
            return None
        wanted = _Known.of(setup, 0.0)
        alike = [k for k in known if k.kinds == wanted.kinds]
        if not alike:
            return fmean(k.seconds * wanted.work(k) for k in known)
        ranks = [(len(wanted.rest ^ k.rest), *wanted.apart(k)) for k in alike]
        nearest = min(ranks)
        return median(k.seconds * wanted.work(k) for k, rank in zip(alike, ranks, strict=True) if rank == nearest)

    def _known_of(self, question: str, experiment: str) -> list[_Known]:
        """The recorded setups of an experiment with their times: this machine's, or else another's as this one would take."""
        place = question, experiment
        if place not in self._known:
            self._known[place] = []
            for machine, by_experiment in self._experiments.items():
                if place in by_experiment:
                    ratio = self._ratio(machine, question, experiment)
                    times = self._times[machine]
                    self._known[place] = [_Known.of(r["setup"], times[r["key"]] * ratio) for r in by_experiment[place]]
                    break
        return self._known[place]


@dataclass(frozen=True)
class _Known:
    """A setup and its seconds: the kinds in it, what multiplies its work, and all the rest."""

    kinds: frozenset[tuple[str, str]]
    size: Mapping[str, float]
    rest: frozenset[tuple[str, str]]
    seconds: float

    @staticmethod
    def of(setup: Mapping[str, Any], seconds: float) -> _Known:
        flat = flatten(setup)
        size = {path: flat[path] for path in WORK if type(flat.get(path)) in (int, float) and flat[path] > 0}
        if "recipe.epochs" in flat:  # so many pictures are seen
            steps = (flat.get("recipe.steps") or 0) * flat.get("recipe.batch", 1)
            size["training"] = max(1, steps or flat["recipe.epochs"] * flat.get("data.train", 1))
        rest = frozenset((path, repr(value)) for path, value in flat.items() if path not in size and path not in TRAINING)
        return _Known(frozenset(one for one in rest if one[0].endswith(".kind")), size, rest, seconds)

    def apart(self, other: _Known) -> tuple[int, float]:
        """In how many sizes two setups differ, and by how much work."""
        return sum(self.size[path] != other.size.get(path) for path in self.size), abs(math.log(self.work(other)))

    def work(self, other: _Known) -> float:
        """How many times the work of another setup this one is."""
        return math.prod(self.size[path] / other.size[path] for path in self.size.keys() & other.size.keys())
