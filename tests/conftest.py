"""A toy project: one question with one trained and one exact experiment, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from toyhouse import House

HEAD = """\
question: q99
slug: toy
title: A toy question
part: Toys
"""
LEDGER = HEAD + """\
profiles:
  quick: {numbers: [1, 2, 3], seeds: [0, 1], pause: 0.0}
  standard: {numbers: [1, 2, 3, 4], seeds: [0, 1, 2], pause: 0.0}
  full: {numbers: [1, 2, 3, 4], seeds: [0, 1, 2, 3], pause: 0.0}
experiments:
  squares: {kind: exact, shows: Squares.}
  noise: {kind: trained, shows: Noise.}
claims:
  - id: q99.two-squared
    statement: Two squared is four.
    kind: value
    evidence: [exact]
    test: Confirmed if four.
    conditions:
      four: {rule: equal, experiment: squares, metric: square, at: {n: 2}, value: 4}
    confirmed: four
    refuted: not four
  - id: q99.noise-is-small
    statement: Noise is small.
    kind: value
    evidence: [trained]
    test: Confirmed if below 100.
    conditions:
      small: {rule: below, experiment: noise, metric: noise, at: {n: 1}, margin: 100}
    confirmed: small
    refuted: not small
citations: []
"""

CELLS = [
    ("parameters", 'profile = "recorded"  # p\nmachine = "reference"  # m\noverrides = {}  # o'),
    ("", "import random\nimport time\n\nfrom cnnstudy.config import Setup\nfrom cnnstudy.report.study import Study\n\n"
         'study = Study("q99", profile, machine, overrides)'),
    ("", "def squares(setup, seed):\n    time.sleep(study.p.pause)\n    return {'square': setup.n**2}\n\n\n"
         "table = study.measure('squares', [Setup(n=n) for n in study.p.numbers], squares)"),
    ("", "def noise(setup, seed):\n    if setup.n == 3 and seed == 1:\n        raise ArithmeticError('loss became nan at step 7')\n"
         "    time.sleep(study.p.pause)\n    return {'noise': random.random()}\n\n\n"
         "rows = study.measure('noise', [Setup(n=n) for n in study.p.numbers], noise)"),
    ("show", "study.verdicts(written_for={'q99.two-squared': 'confirmed'})"),
]  # fmt: skip


def toy_notebook() -> dict:
    code = [
        {
            "cell_type": "code",
            "id": f"q99-{i}",
            "metadata": {"tags": [tag]} if tag else {},
            "source": text,
            "outputs": [],
            "execution_count": None,
        }
        for i, (tag, text) in enumerate(CELLS)
    ]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": code, "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}, "nbformat": 4, "nbformat_minor": 5}


class Project:
    """A toy project on disk, and the command line to use on it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("data/claims", "data/plans", "data/records", "notebooks"):
            (root / folder).mkdir(parents=True)
        (root / "data/claims/q99.yaml").write_text(LEDGER)
        (root / "notebooks/q99_toy.ipynb").write_text(json.dumps(toy_notebook()))
        self.env = {
            **os.environ,
            "CNNSTUDY_ROOT": str(root),
            "CNNSTUDY_MACHINE": "toy-machine",
            "CNNSTUDY_RECORDS": "",
            "PYTHONWARNINGS": "ignore",
        }

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "cnnstudy.cli", *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, env=self.env, cwd=self.root, timeout=200)

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def second_page(self) -> None:
        """Another page, which uses the attacks and measures other setups."""
        ledger = (self.root / "data/claims/q99.yaml").read_text()
        (self.root / "data/claims/q98.yaml").write_text(ledger.replace("q99", "q98"))
        text = (self.root / "notebooks/q99_toy.ipynb").read_text().replace("q99", "q98").replace("Setup(n=n)", "Setup(n=n, page=98)")
        (self.root / "notebooks/q98_toy.ipynb").write_text(text.replace("import random", "import random\\n\\nimport cnnstudy.attacks"))
        self.ok("plan", "q98", "--write")

    @property
    def records(self) -> Path:
        return self.root / "data/records/toy-machine/q99.jsonl"

    def lines(self) -> Sequence[dict]:
        return [json.loads(line) for line in self.records.read_text().splitlines()] if self.records.exists() else []


@pytest.fixture(scope="session")
def toy_plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The toy project's plan, made once: making it starts torch."""
    made = Project(tmp_path_factory.mktemp("toy"))
    made.ok("plan", "--write")
    return (made.root / "data/plans/q99.json").read_text()


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    """A toy house with one page, q91, for tests that need no notebook."""
    from toyhouse import House

    from cnnstudy.runtime import machine_id

    made = House(tmp_path, monkeypatch)
    made.page("q91")
    yield made
    machine_id.cache_clear()


@pytest.fixture
def project(tmp_path: Path, toy_plan: str) -> Project:
    made = Project(tmp_path)
    (made.root / "data/plans/q99.json").write_text(toy_plan)
    return made
