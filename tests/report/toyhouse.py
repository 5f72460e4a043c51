"""A house with one made-up page: a ledger, a plan and stores of records, for tests that need no notebook and no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cnnstudy.report import claims, evidence, plan, published, standing, vouch
from cnnstudy.runtime import machine_id

HERE, THERE = "here-2core", "there-gpu"

LEDGER = """\
question: {question}
slug: toy
title: A toy question
part: Toys
profiles:
  quick: {{}}
  standard: {{}}
  full: {{}}
experiments:
  squares: {{kind: exact, shows: Squares.}}
  training: {{kind: trained, shows: Accuracy.}}
  clock: {{kind: hardware, shows: Times.}}
claims:
{claims}
citations: []
"""

CLAIM = """\
  - id: {id}
    statement: {id} is so.
    kind: value
    evidence: [exact]
    test: A test.
    conditions:
{conditions}
    confirmed: {expression}
    refuted: not ({expression})
"""

CLAIMS = {
    "two-squared": {"four": "{rule: equal, experiment: squares, metric: square, at: {n: 2}, value: 4}"},
    "shallow-learns": {"learns": "{rule: above, experiment: training, metric: acc, at: {model.depth: 2}, margin: 0.5}"},
    "deep-learns": {"learns": "{rule: above, experiment: training, metric: acc, at: {model.depth: 8}, margin: 0.5}"},
    "depth-does-not-matter": {
        "alike": "{rule: difference_above, experiment: training, metric: acc, a: {model.depth: 2}, b: {model.depth: 8}, margin: 0.1}"
    },
    "fast": {"fast": "{rule: below, experiment: clock, metric: ms, at: {n: 1}, margin: 5}"},
}


def ledger(question: str, made: Mapping[str, Mapping[str, str]]) -> str:
    parts = [
        CLAIM.format(
            id=f"{question}.{name}",
            conditions="\n".join(f"      {n}: {c}" for n, c in conditions.items()),
            expression=" and ".join(conditions),
        )
        for name, conditions in made.items()
    ]
    return LEDGER.format(question=question, claims="".join(parts).rstrip())


def training(depth: int, train: int = 2000, epochs: int = 2, kind: str = "Toy", **more: Any) -> dict[str, Any]:
    recipe = {"kind": "Recipe", "epochs": epochs, "batch": 100, **more}
    return {"data": {"kind": "Cifar", "train": train}, "model": {"kind": kind, "depth": depth, "skip": True}, "recipe": recipe}


def experiments() -> dict[str, plan.Experiment]:
    """squares: n = 1, 2, 3 in every profile; training: depths 2 and 8, larger and with three seeds from standard up; clock: n = 1, 2."""
    squares = plan.Experiment("squares", trial="aa", setups=[{"n": n} for n in (1, 2, 3)])
    squares.profiles = {p: [(i, [0]) for i in range(3)] for p in plan.PROFILES}
    kinds = {"Toy": "cnnstudy.layers", "Cifar": "cnnstudy.data", "Recipe": "cnnstudy.train"}
    trained = plan.Experiment("training", trial="bb", kinds=kinds)
    trained.setups = [training(2), training(8), training(2, 10000, 10), training(8, 10000, 10)]
    trained.profiles = {"quick": [(0, [0]), (1, [0])], "standard": [(2, [0, 1, 2]), (3, [0, 1, 2])], "full": [(2, [0, 1, 2, 3, 4])]}
    clock = plan.Experiment("clock", trial="cc", setups=[{"n": 1}, {"n": 2}])
    clock.profiles = {p: [(0, [0]), (1, [0])] for p in plan.PROFILES}
    return {e.name: e for e in (squares, trained, clock)}


class House:
    """A repository of its own; this machine is HERE."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        for folder in ("claims", "plans", "records", "published"):
            (root / "data" / folder).mkdir(parents=True)
        for module in (claims, evidence, plan, published, standing, vouch):
            patch.setattr(module, "ROOT", root)
        patch.delenv("CNNSTUDY_RECORDS", raising=False)
        patch.setenv("CNNSTUDY_MACHINE", HERE)
        machine_id.cache_clear()

    def page(
        self, question: str, made: Mapping[str, Mapping[str, str]] = CLAIMS, plans: Mapping[str, plan.Experiment] | None = None
    ) -> None:
        """Write the ledger and the plan of a page."""
        (self.root / f"data/claims/{question}.yaml").write_text(ledger(question, made))
        (self.root / f"data/plans/{question}.json").write_text(plan.dump(question, plans or experiments()))

    def entries(self, question: str, experiment: str, profile: str) -> list[dict[str, Any]]:
        return plan.load(question)[experiment].entries(profile)

    def record(
        self, question: str, experiment: str, entries: Iterable[Mapping[str, Any]], machine: str = HERE, seconds: float = 1.0,
        code: str | None = None, root: Path | None = None, threads: int = 1, arrays: Mapping[str, Any] | None = None, **more: Any,
    ) -> None:  # fmt: skip
        """Measure: metrics follow from the setup, unless given in ``more``; ``code`` defaults to today's."""
        one = plan.load(question)[experiment]
        for entry in entries:
            setup = entry["setup"]
            known = {"square": setup["n"] ** 2, "ms": 1.5 * setup["n"]} if "n" in setup else {"acc": 0.6 + 0.01 * entry["seed"]}
            made = {"code": code or one.code(setup), "seconds": seconds, "threads": threads, "machine": machine, "torch": "2.13.0"}
            record = {
                "key": entry["key"], "question": question, "experiment": experiment, "setup": setup, "seed": entry["seed"],
                "protocol": one.protocol, "profile": "quick", "metrics": known, "provenance": made, **more,
            }  # fmt: skip
            evidence.append(record, machine, root or self.root / "data" / "records", arrays)

    def lines(self, machine: str = HERE) -> list[dict[str, Any]]:
        """What is vouched for."""
        path = vouch.path(machine)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
