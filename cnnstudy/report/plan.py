"""The plan of a question: which measurements each profile expects, known without torch.

``data/plans/q33.json`` is made by running the notebook's measuring cells with measuring switched off
(``cnnstudy plan``), is committed, and is compared with the notebooks by a test.  It is what lets ``status`` and
``verdicts`` say "4 of 12 recorded", and which records were made by other code, in a fraction of a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused, Setup, canonical, key
from cnnstudy.runtime import ROOT
from cnnstudy.source import code_digest

PROFILES = ("quick", "standard", "full")  # in order of evidence


def plans_root() -> Path:
    return ROOT / "data" / "plans"


@dataclass
class Experiment:
    """What is expected of one experiment: ``setups`` once each, and per profile which of them with which seeds.

    ``reads``: by a setup's number, the measurements that its trial looks up, as pairs of an experiment's name and a number in its setups.
    """

    name: str
    protocol: int = 1
    trial: str = ""
    modules: list[str] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)
    setups: list[dict[str, Any]] = field(default_factory=list)
    reads: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    profiles: dict[str, list[tuple[int, list[int]]]] = field(default_factory=dict)
    _codes: dict[tuple[str, ...], str] = field(default_factory=dict, init=False, repr=False, compare=False)
    _keys: dict[tuple[int, int], str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def expect(self, profile: str, setups: Iterable[Setup], seeds: Iterable[int]) -> None:
        """Add setups with seeds to a profile; what is expected already is not expected twice, or one record would count as two."""
        rows = self.profiles.setdefault(profile, [])
        asked = [int(s) for s in seeds]
        for setup in setups:
            form = canonical(setup)
            if form not in self.setups:
                self.setups.append(form)
            which = self.setups.index(form)
            known = {seed for i, some in rows if i == which for seed in some}
            if new := [seed for seed in dict.fromkeys(asked) if seed not in known]:
                rows.append((which, new))

    def read(self, setup: Setup, what: Mapping[str, Iterable[Setup]], plan: Mapping[str, Experiment]) -> None:
        """Note what a setup's trial looks up; refused unless that is expected already."""
        rows = self.reads.setdefault(str(self.setups.index(canonical(setup))), [])
        for name, setups in what.items():
            for form in map(canonical, setups):
                if name not in plan or form not in plan[name].setups:
                    raise Refused(f"{self.name} reads {name} with a setup that is not measured before it: {json.dumps(form)}")
                if (row := (name, plan[name].setups.index(form))) not in rows:
                    rows.append(row)

    def entries(self, profile: str) -> list[dict[str, Any]]:
        """The expected measurements of a profile: ``{"setup", "seed", "key"}`` each."""
        return [
            {"setup": self.setups[i], "seed": seed, "key": self.key_of(i, seed)}
            for i, seeds in self.profiles.get(profile, [])
            for seed in seeds
        ]

    def seeds(self, i: int, profile: str) -> list[int]:
        """The seeds that a profile expects of a setup."""
        return [seed for which, some in self.profiles.get(profile, []) if which == i for seed in some]

    def key_of(self, i: int, seed: int) -> str:
        """The key of a planned measurement; profiles share most of theirs."""
        if (i, seed) not in self._keys:
            self._keys[i, seed] = key(self.name, self.setups[i], seed, self.protocol)
        return self._keys[i, seed]

    def kinds_of(self, setup: Mapping[str, Any]) -> tuple[str, ...]:
        """The kinds of config in a setup, in order of name."""
        text = json.dumps(setup)
        return tuple(sorted(name for name in self.kinds if f'"kind": "{name}"' in text))

    def code(self, setup: Mapping[str, Any]) -> str:
        """The digest that a record of ``setup`` made by today's code would carry."""
        kinds = self.kinds_of(setup)
        if kinds not in self._codes:
            self._codes[kinds] = code_digest(self.trial, [*self.modules, *{self.kinds[name] for name in kinds}])
        return self._codes[kinds]

    def to_json(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "trial": self.trial,
            "modules": self.modules,
            "kinds": self.kinds,
            **({"reads": self.reads} if self.reads else {}),
            "setups": self.setups,
            "profiles": {p: rows for p, rows in self.profiles.items()},
        }


def behind(plan: Mapping[str, Experiment], name: str, entry: Mapping[str, Any], profile: str) -> list[str]:
    """The keys of all that a measurement expected in a profile looks up, and of what that looks up in turn.

    A setup with several seeds looks up its own; one with a single seed (no training) looks up all that there are.
    """
    one, found = plan[name], []
    mine = one.setups.index(entry["setup"]) if one.reads else 0
    for upstream, i in one.reads.get(str(mine), []):
        other = plan[upstream]
        seeds = other.seeds(i, profile)
        if entry["seed"] in seeds and len(one.seeds(mine, profile)) > 1:
            seeds = [entry["seed"]]
        for seed in seeds:
            found += [*behind(plan, upstream, {"setup": other.setups[i], "seed": seed}, profile), other.key_of(i, seed)]
    return list(dict.fromkeys(found))


def load(question: str) -> dict[str, Experiment]:
    """The plan of a question, by experiment; empty where there is none yet."""
    path = plans_root() / f"{question}.json"
    if not path.exists():
        return {}
    state = path.stat()
    return dict(_loaded(path, state.st_size, state.st_mtime_ns))


@lru_cache(maxsize=256)
def _loaded(path: Path, size: int, changed: int) -> dict[str, Experiment]:
    """A plan, read once per state of its file; callers must not alter its experiments."""
    try:
        plan = json.loads(path.read_text("utf-8"))
        return {name: Experiment(name=name, **body) for name, body in plan["experiments"].items()}
    except (ValueError, KeyError, TypeError) as error:
        question = path.stem
        raise Refused(f"data/plans/{path.name} is damaged ({error}); make it anew with: cnnstudy plan {question} --write") from None


def dump(question: str, experiments: Mapping[str, Experiment]) -> str:
    """The text of a plan file: one setup a line, so that a change of the notebook reads well in a diff."""
    lines = []
    for name, experiment in experiments.items():
        body = experiment.to_json()
        setups = ",\n   ".join(json.dumps(s, sort_keys=True) for s in body.pop("setups"))
        profiles = ",\n   ".join(f"{json.dumps(p)}: {json.dumps(rows)}" for p, rows in body.pop("profiles").items())
        head = json.dumps(body)[1:-1]
        lines.append(f' {json.dumps(name)}: {{{head},\n  "setups": [\n   {setups}],\n  "profiles": {{\n   {profiles}}}}}')
    return f'{{"question": {json.dumps(question)}, "experiments": {{\n' + ",\n".join(lines) + "\n}}\n"


def make(question: str) -> dict[str, Experiment]:
    """Make the plan anew from the notebook: its measuring cells run once per profile, measuring nothing.

    The notebook imports the bench, hence torch; call this in a process of its own.
    """
    from cnnstudy.report import study
    from cnnstudy.report.cells import notebook_path, run_cells

    experiments: dict[str, Experiment] = {}
    before = os.environ.get("CNNSTUDY_PLANNING")
    os.environ["CNNSTUDY_PLANNING"] = "1"
    try:
        for profile in PROFILES:
            namespace = run_cells(notebook_path(question), {"profile": profile, "machine": "this"})
            (found,) = {id(v): v for v in namespace.values() if isinstance(v, study.Study)}.values()
            for call in found.planned:
                one = experiments.setdefault(call.experiment, Experiment(call.experiment))
                one.protocol, one.trial = call.protocol, call.trial
                one.modules = call.modules
                one.kinds |= call.kinds
                one.expect(profile, call.setups, call.seeds)
                for setup, what in call.reads.items():
                    one.read(setup, what, experiments)
    finally:
        os.environ.pop("CNNSTUDY_PLANNING") if before is None else os.environ.update(CNNSTUDY_PLANNING=before)
    return experiments
