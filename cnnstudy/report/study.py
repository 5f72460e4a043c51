"""``Study``: the one object that a notebook holds.

    study = Study("q33", profile, machine, overrides)
    frame = study.measure("depth_sweep", setups, trial)      # found in the records, or measured and recorded
    study.verdicts()                                         # judges the question's claims from records

A page never shows what is left in memory from a run: ``measure`` returns what it reads back from the records.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnstudy.config import Refused, Setup, canonical, choose, flatten, grid, key
from cnnstudy.load import Watch
from cnnstudy.report import claims, evidence, plan, vouch
from cnnstudy.report.progress import Progress
from cnnstudy.report.results import split
from cnnstudy.runtime import machine_id, provenance, seed_all
from cnnstudy.source import code_digest, config_modules, modules_of, trial_digest

if TYPE_CHECKING:
    import pandas as pd

    from cnnstudy.report.verdicts import Verdict

Trial = Callable[..., Any]
Reads = Callable[[Setup], Iterable[Setup]]


@dataclass(frozen=True)
class Planned:
    """One call of ``measure``: what it expects, and the code that would measure it."""

    experiment: str
    setups: list[Setup]
    seeds: list[int]
    protocol: int
    trial: str
    modules: list[str]
    kinds: dict[str, str]
    reads: dict[Setup, dict[str, list[Setup]]]


@dataclass(frozen=True)
class Coverage:
    """How much of an experiment is recorded; ``seconds`` is what measuring it took."""

    profile: str
    machine: str
    recorded: int
    expected: int
    seconds: float
    failed: int


class Parameters(Mapping[str, Any]):
    """The values behind a profile, as attributes; an unknown name is refused with the valid ones."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._values[choose("parameter", name, self._values)]

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Any:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class Study:
    """A question under study: its ledger, its parameters, and whose records are read or made.

    ``profile``: "recorded" draws from the best records in the store and measures nothing; "quick", "standard" and
    "full" measure what is missing on this machine.  ``machine``: "reference" (the book's), "this", or an id.
    ``overrides`` replace single parameters of the profile.  Unknown names are refused with the valid ones.
    """

    def __init__(
        self, question: str, profile: str = "recorded", machine: str = "reference", overrides: Mapping[str, Any] | None = None
    ) -> None:
        self.ledger = claims.load(question)
        self.question = question
        self.profile = choose("profile", profile, ("recorded", *plan.PROFILES))
        self.measures = self.profile != "recorded"
        self.planning = bool(os.environ.get("CNNSTUDY_PLANNING"))
        self.planned: list[Planned] = []
        self.overrides = dict(overrides or {})
        if self.overrides and not self.measures:
            raise Refused(f"overrides {sorted(self.overrides)} need a profile that measures: {', '.join(plan.PROFILES)}")
        values = dict(self.ledger.profiles[self.profile if self.measures else "standard"])
        for name, value in self.overrides.items():
            choose(f"override of {question}", name, values)
            if isinstance(value, list) != isinstance(values[name], list):
                raise Refused(f"override {name}={value!r}: expected something like {values[name]!r}")
            values[name] = value
        self.p = Parameters(values)
        self.machines = self._machines(machine)
        self.plan = plan.load(question)
        self._frames: dict[str, pd.DataFrame] = {}

    def _machines(self, machine: str) -> list[str]:
        if self.measures or machine == "this":
            if machine not in ("this", "reference", machine_id()):
                raise Refused(f"machine {machine!r}: measuring happens on this machine, {machine_id()!r}")
            return [machine_id()]
        known = evidence.reference()
        return known if machine == "reference" else [choose("machine", machine, ["reference", "this", *known])]

    grid = staticmethod(grid)

    def measure(
        self,
        experiment: str,
        setups: Iterable[Setup],
        trial: Trial,
        seeds: Sequence[int] | None = None,
        together: str | None = None,
        reads: Iterable[str] | Mapping[str, Reads] = (),
    ) -> pd.DataFrame:
        """One row per setup and seed, each found in the records or measured and recorded at once.

        ``trial(setup, seed) -> {metric: number, text, short list or array}``.  ``seeds`` defaults to the profile's
        where the experiment is trained, else to [0].  With ``together="model"`` setups that differ only in ``model``
        are measured in one call, ``trial(setups, seed) -> one dict each``, so that timings can be interleaved.
        ``reads={"base_networks": pair}``: the trial looks up other measurements of this page, of the setups ``pair(setup)``, with its own
        seed (all seeds, if it has but one); ``reads=["base_networks"]``: of all setups so far.  Whoever plans or measures a part of a page
        has to know that.
        """
        spec = self.ledger.experiments[choose(f"experiment of {self.question}", experiment, self.ledger.experiments)]
        if not self.measures:
            return self.frame(experiment)
        wanted = list(dict.fromkeys(setups))  # a setup may stand on two grids
        chosen = list(seeds) if seeds is not None else list(self.p.seeds) if spec.kind == "trained" else [0]
        kinds = {name: module for setup in wanted for name, module in config_modules(setup).items()}
        read = self._read_by(wanted, reads)
        call = Planned(experiment, wanted, chosen, spec.protocol, trial_digest(trial), modules_of(trial), kinds, read)
        self.planned.append(call)
        if self.planning:
            import pandas as pd

            return pd.DataFrame()
        only = os.environ.get("CNNSTUDY_ONLY", "").split()
        if not only or experiment in only:
            self._measure(call, trial, together)
        calls = [c for c in self.planned if c.experiment == experiment]
        keys = dict.fromkeys(key(experiment, s, seed, spec.protocol) for c in calls for s in c.setups for seed in c.seeds)
        entries = [{"key": one} for one in keys]
        self._frames[experiment] = self._read(entries, self.machines[0], self.profile)
        return self._frames[experiment]

    def _measure(self, call: Planned, trial: Trial, together: str | None) -> None:
        code = {s: code_digest(call.trial, [*call.modules, *config_modules(s).values()]) for s in call.setups}
        machine = self.machines[0]
        todo = [(s, seed) for s in call.setups for seed in call.seeds]
        keys = {(s, seed): key(call.experiment, s, seed, call.protocol) for s, seed in todo}
        there = evidence.find(keys.values(), machine)
        missing = [t for t in todo if keys[t] not in there]
        if os.environ.get("CNNSTUDY_STALE"):
            vouched = vouch.read(machine)
            made = {t: there[keys[t]]["provenance"].get("code") for t in todo if keys[t] in there}
            missing += [t for t, by in made.items() if not vouch.current(call.experiment, config_modules(t[0]), by, code[t[0]], vouched)]
        if chosen := os.environ.get("CNNSTUDY_KEYS"):  # a file: the runner was asked for these measurements alone
            wanted = set(Path(chosen).read_text("utf-8").split())
            missing = [t for t in missing if keys[t] in wanted]
        self._refuse_without(call, missing)
        with Progress(self.question, call.experiment, len(todo), len(todo) - len(missing)) as progress:
            for group in _groups(missing, together):
                progress.begin(_label(group[0][0], call.setups))
                for record, arrays in self._trial(call, trial, group, together is not None, code):
                    evidence.append(record, machine, arrays=arrays)
                    progress.advance(record["provenance"]["seconds"], record.get("failed"))

    def _read_by(self, setups: Iterable[Setup], reads: Iterable[str] | Mapping[str, Reads]) -> dict[Setup, dict[str, list[Setup]]]:
        every = {name: [s for c in self.planned if c.experiment == name for s in c.setups] for name in reads}
        narrow = reads if isinstance(reads, Mapping) else {}
        return {setup: {n: list(narrow[n](setup)) if n in narrow else of for n, of in every.items()} for setup in setups} if every else {}

    def _refuse_without(self, call: Planned, missing: Iterable[tuple[Setup, int]]) -> None:
        """Say in one line what a trial would look up in vain."""
        for name in dict.fromkeys(name for what in call.reads.values() for name in what):
            seeds = {s for c in self.planned if c.experiment == name for s in c.seeds}
            protocol = self.ledger.experiments[name].protocol
            keys = {
                key(name, one, s, protocol)
                for setup, seed in missing
                for one in call.reads[setup].get(name, ())
                for s in ([seed] if seed in seeds and len(call.seeds) > 1 else seeds)
            }
            if lacking := len(keys) - len(evidence.find(keys, self.machines[0])):
                raise Refused(f"{call.experiment} looks up {lacking} measurements of {name} that are not recorded here; measure {name} too")

    def _trial(
        self, call: Planned, trial: Trial, group: list[tuple[Setup, int]], together: bool, code: Mapping[Setup, str]
    ) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
        """Run one trial (or one interleaved group) and put its results into the form of records."""
        seed = group[0][1]
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        failed = None
        with Watch(active=self.ledger.experiments[call.experiment].kind == "hardware") as watch:
            before = time.perf_counter()
            seed_all(seed)
            try:
                results = trial([s for s, _ in group], seed) if together else [trial(group[0][0], seed)]
            except ArithmeticError as error:  # a loss that is not finite: a failed measurement, not a number
                results, failed = [{} for _ in group], str(error)
            seconds = (time.perf_counter() - before) / len(group)
        for (setup, _), result in zip(group, results, strict=True):
            metrics, arrays = split(result, call.experiment)
            record = {
                "key": key(call.experiment, setup, seed, call.protocol),
                "question": self.question,
                "experiment": call.experiment,
                "setup": canonical(setup),
                "seed": seed,
                "protocol": call.protocol,
                "profile": self.profile,
                "metrics": metrics,
                "provenance": provenance(code[setup], started, seconds) | watch.note(),
            }
            yield (record | {"failed": failed} if failed else record), arrays

    def frame(self, experiment: str) -> pd.DataFrame:
        """The records of an experiment: setup (dotted columns), seed, metrics, ``machine``, ``profile``, ``failed``.

        Recorded: those of the highest profile that has any which lower ones have not, on the machine that has most of them.
        """
        if experiment not in self._frames:
            if experiment not in self.plan:
                raise Refused(f"{self.question} has no plan for {experiment!r}; make it with: cnnstudy plan {self.question} --write")
            frame = self._read(self.plan[experiment].entries("standard"), "", "")  # empty: no machine has no name
            for profile in [self.profile] if self.measures else plan.PROFILES:
                entries = self.plan[experiment].entries(profile)
                found = max((self._read(entries, machine, profile) for machine in self.machines), key=len, default=frame)
                if not set(found["key"]) <= set(frame["key"]):
                    frame = found
            self._frames[experiment] = frame
        return self._frames[experiment]

    def progress(self, profile: str) -> tuple[int, int]:
        """How many of all measurements that a profile expects are recorded, on any of the machines that are read."""
        keys = {entry["key"] for one in self.plan.values() for entry in one.entries(profile)}
        there = {record["key"] for machine in self.machines for record in evidence.read(machine)}
        return len(keys & there), len(keys)

    def _read(self, entries: Sequence[Mapping[str, Any]], machine: str, profile: str) -> pd.DataFrame:
        import pandas as pd

        there = evidence.find((e["key"] for e in entries), machine)
        rows = [
            flatten(r["setup"]) | {"seed": r["seed"]} | r["metrics"]
            | {"machine": machine, "profile": profile, "failed": r.get("failed"), "key": r["key"]}
            for r in (there[e["key"]] for e in entries if e["key"] in there)
        ]  # fmt: skip
        # an empty frame still has the columns that cells select by
        paths = {path: None for e in entries if "setup" in e for path in flatten(e["setup"])}
        return pd.DataFrame(rows, columns=None if rows else [*paths, "seed", "machine", "profile", "failed", "key"])

    def arrays(self, record_key: str, machine: str) -> dict[str, Any]:
        """The arrays stored beside a record, e.g. the images of a gallery."""
        return evidence.load_arrays(evidence.find([record_key], machine)[record_key], machine)

    def judge(self) -> list[Verdict]:
        """The verdicts on this question's claims, from the records of ``self.machines``."""
        from cnnstudy.report import verdicts

        records = {machine: evidence.read(machine) for machine in self.machines}
        return verdicts.judge_question(self.ledger, self.plan, records, self.machines)

    def verdicts(self, written_for: Mapping[str, str] | None = None) -> None:
        """Show the verdict box; ``written_for`` holds the outcomes that the page's prose was written for."""
        from cnnstudy.report import show

        valid = [claim.id for claim in self.ledger.claims]
        for name in written_for or {}:
            choose(f"claim of {self.question}", name, valid)
        show.verdict_box(self.ledger, self.judge(), written_for)

    def coverage(self, experiment: str) -> Coverage:
        """How much of an experiment is recorded, of the profile and machine that ``frame`` shows."""
        frame = self.frame(experiment)
        profile = frame["profile"].iloc[0] if len(frame) else "–"
        machine = frame["machine"].iloc[0] if len(frame) else "–"
        known = experiment in self.plan
        expected = len(self.plan[experiment].entries(profile if len(frame) else "standard")) if known else len(frame)
        records = evidence.find(frame["key"], machine).values() if len(frame) else []
        seconds = sum(r["provenance"]["seconds"] for r in records)
        return Coverage(profile, machine, len(frame), expected, seconds, sum("failed" in r for r in records))


def _groups(missing: list[tuple[Setup, int]], together: str | None) -> list[list[tuple[Setup, int]]]:
    if together is None:
        return [[one] for one in missing]
    groups: dict[Any, list[tuple[Setup, int]]] = {}
    for setup, seed in missing:
        rest = Setup(**{name: part for name, part in setup.parts.items() if name != together})
        groups.setdefault((rest, seed), []).append((setup, seed))
    return list(groups.values())


def _label(setup: Setup, all_setups: Sequence[Setup]) -> str:
    """What tells this setup from the others, for the progress line."""
    flat = [flatten(canonical(s)) for s in all_setups]
    mine = flatten(canonical(setup))
    return " ".join(f"{n.split('.')[-1]}={v}" for n, v in mine.items() if any(f.get(n) != v for f in flat))
