"""The graph of pages: what runs again after what change, and what a failure stops."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import CELLS, Project

from cnnstudy.report import graph
from cnnstudy.report.children import PageFailed
from cnnstudy.runtime import ROOT


class Kitchen:
    """Steps that write down that they ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ran, self.broken = folder, [], set()
        self.states = {"flour": "1", "salt": "1"}

    def step(self, name: str, needs: list[str], after: tuple[str, ...] = (), late: bool = False) -> graph.Step:
        def work() -> None:
            self.ran.append(name)
            if name in self.broken:
                raise PageFailed("burnt")
            (self.folder / name).write_text(name)

        states = {n: lambda n=n: self.states[n] for n in needs}
        return graph.Step(name, work, self.folder / name, states, [self.folder / a for a in after], late)

    def build(self, *steps: graph.Step) -> dict[str, str]:
        self.ran.clear()
        return graph.build(steps, self.folder / "lock", jobs=2)


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def test_only_what_changed_runs_again(kitchen: Kitchen) -> None:
    steps = [kitchen.step("bread", ["flour"]), kitchen.step("soup", ["salt"])]
    assert kitchen.build(*steps) == {"bread": "done", "soup": "done"}
    assert kitchen.build(*steps) == {"bread": "unchanged", "soup": "unchanged"} and kitchen.ran == []
    kitchen.states["flour"] = "2"
    assert kitchen.build(*steps) == {"bread": "done", "soup": "unchanged"}
    (kitchen.folder / "soup").write_text("spilt")  # what was made is not as it was left
    assert kitchen.build(*steps) == {"bread": "unchanged", "soup": "done"}
    (kitchen.folder / "bread").unlink()
    assert kitchen.build(*steps) == {"bread": "done", "soup": "unchanged"}


def test_a_failure_stops_only_what_needs_it_and_runs_alone_next_time(kitchen: Kitchen) -> None:
    steps = [kitchen.step("dough", ["flour"]), kitchen.step("bread", [], after=("dough",)), kitchen.step("soup", ["salt"])]
    kitchen.broken = {"dough"}
    assert kitchen.build(*steps) == {"dough": "failed", "bread": "not run", "soup": "done"}
    kitchen.broken = set()
    assert kitchen.build(*steps) == {"dough": "done", "bread": "done", "soup": "unchanged"}
    assert kitchen.ran == ["dough", "bread"]


def test_steps_not_asked_for_keep_their_state(kitchen: Kitchen) -> None:
    bread, soup = kitchen.step("bread", ["flour"]), kitchen.step("soup", ["salt"])
    kitchen.build(bread, soup)
    kitchen.states["flour"] = "2"
    kitchen.build(bread)
    assert kitchen.build(bread, soup) == {"bread": "unchanged", "soup": "unchanged"}


def test_late_steps_start_last(kitchen: Kitchen) -> None:
    steps = [kitchen.step("z-clock", [], late=True), *(kitchen.step(f"s{i}", []) for i in range(6))]
    kitchen.build(*steps)
    assert kitchen.ran[-1] == "z-clock" or kitchen.ran[-2] == "z-clock"  # two at once


def test_modules_of_a_page_are_those_that_it_uses() -> None:
    of_q42 = graph.modules("q42")
    assert {"cnnstudy.attacks.gradient", "cnnstudy.train", "cnnstudy.models.resnet", "cnnstudy.report.show"} <= set(of_q42)
    of_q20 = graph.modules("q20")
    assert not any(m.startswith("cnnstudy.attacks") for m in of_q20)
    assert "cnnstudy.attacks.gradient" in graph.ingredients("q42") and "cnnstudy.attacks.gradient" not in graph.ingredients("q20")


def test_outputs_are_no_part_of_a_notebook_but_cells_are(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cnnstudy.report.cells.NOTEBOOKS", project.root / "notebooks")
    path = project.root / "notebooks/q99_toy.ipynb"
    before = graph.cells_digest("q99"), graph.cells_digest("q99", measuring=True)
    notebook = json.loads(path.read_text())
    notebook["cells"][1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "hello"}]
    path.write_text(json.dumps(notebook))
    assert (graph.cells_digest("q99"), graph.cells_digest("q99", measuring=True)) == before
    notebook["cells"][len(CELLS) - 1]["source"] += "\n# a comment in a drawing cell"
    path.write_text(json.dumps(notebook))
    assert graph.cells_digest("q99") != before[0] and graph.cells_digest("q99", measuring=True) == before[1]


@pytest.mark.slow
def test_editing_a_module_runs_the_pages_that_use_it(project: Project, tmp_path: Path) -> None:
    project.second_page()
    code = tmp_path / "code"
    shutil.copytree(ROOT / "cnnstudy", code / "cnnstudy", ignore=shutil.ignore_patterns("__pycache__"))
    project.env["PYTHONPATH"] = str(code)
    project.ok("run", "--profile", "quick", "--no-site")
    assert project.ok("run", "--profile", "quick", "--no-site").count("up to date") == 2
    with open(code / "cnnstudy/attacks/gradient.py", "a") as file:
        file.write("\n# edited\n")
    out = project.ok("run", "--profile", "quick", "--no-site")
    assert "q99: up to date" in out and "q98: done" in out
    notebook = project.root / "notebooks/q99_toy.ipynb"
    notebook.write_text(notebook.read_text().replace("study.verdicts(", "print(1)\\nstudy.verdicts("))
    out = project.ok("run", "--profile", "quick", "--no-site")
    assert "q98: up to date" in out and "q99: done" in out


def test_the_command_line_leaves_pytask_alone_until_it_runs() -> None:
    code = "import sys, cnnstudy.report.execute; print(sorted({'pytask', 'rich', 'distributed'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


def test_clock_of_the_machine_is_not_part_of_a_state(kitchen: Kitchen) -> None:
    step = kitchen.step("bread", ["flour"])
    kitchen.build(step)
    time.sleep(0.01)
    os.utime(kitchen.folder / "bread")  # touched, not changed
    assert kitchen.build(step) == {"bread": "unchanged"}


def test_finished_steps_are_seen_at_once(kitchen: Kitchen) -> None:
    """The parallel builder looks again after 0.05 s at the most: else every page of a fast run waits for up to a second."""
    from pytask_parallel.execute import _Sleeper

    kitchen.build(kitchen.step("bread", ["flour"]))
    assert max(_Sleeper().timings) <= 0.05
