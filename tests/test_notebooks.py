"""The committed notebooks: executed, normalised, short, and in step with their plan."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnnstudy.report import plan
from cnnstudy.report.cells import notebook_path, parameters, questions

ROOT = Path(__file__).parents[1]
QUESTIONS = questions()
PARAMETERS = {"profile": "recorded", "machine": "reference", "overrides": {}}


def cells(question: str) -> list[dict]:
    return json.loads(notebook_path(question).read_text())["cells"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_parameters(question: str) -> None:
    assert parameters(notebook_path(question)) == PARAMETERS


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_code_cell_was_executed_and_none_failed(question: str) -> None:
    """nbval passes a cell that never ran, so this has to be asked here."""
    code = [c for c in cells(question) if c["cell_type"] == "code"]
    assert all(c["execution_count"] for c in code)
    assert not [o for c in code for o in c["outputs"] if o["output_type"] == "error"]
    assert not [o for c in code for o in c["outputs"] if o.get("name") == "stderr"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_no_classes_no_installs_no_shell_lines(question: str) -> None:
    for cell in cells(question):
        if cell["cell_type"] == "code":
            source = "".join(cell["source"])
            assert not source.lstrip().startswith(("!", "%"))
            assert not [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.ClassDef)]


@pytest.mark.parametrize("question", QUESTIONS)
def test_trials_fit_in_twelve_lines(question: str) -> None:
    for cell in cells(question):
        if cell["cell_type"] == "code" and "show" not in cell["metadata"].get("tags", []):
            for node in ast.parse("".join(cell["source"])).body:
                if isinstance(node, ast.FunctionDef):
                    assert (node.end_lineno or 0) - node.lineno < 12, f"{question}: {node.name}"


@pytest.mark.parametrize("question", QUESTIONS)
def test_figures_have_alternative_text_and_caption(question: str) -> None:
    outputs = [o for c in cells(question) if c["cell_type"] == "code" for o in c["outputs"]]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(figures) >= 2
    for figure in figures:
        about = figure["metadata"]["image/png"]
        assert len(about["alt"]) > 40 and len(about["caption"]) > 40 and about["name"].startswith(f"fig-{question}")


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_the_plan_is_the_notebooks(question: str) -> None:
    """In a process of its own: the notebooks import torch."""
    code = f"import cnnstudy.report.plan as p; import sys; sys.stdout.write(p.dump({question!r}, p.make({question!r})))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    committed = (plan.plans_root() / f"{question}.json").read_text()
    assert done.stdout == committed, f"run: cnnstudy plan {question} --write"
