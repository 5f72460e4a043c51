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
MEASURING = ("learn", "learned")  # functions of notebooks that return what ``measure`` does
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


def _measured(source: str) -> tuple[set[str], list[tuple[str, str, set[str]]], dict[str, ast.FunctionDef]]:
    """Names that hold rows of an experiment; per call of ``measure`` the experiment, its trial and its keywords; the functions."""
    tree, rows, calls = ast.parse(source), set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "study.measure" and len(node.args) > 2:
            calls.append((ast.unparse(node.args[0]), ast.unparse(node.args[2]), {k.arg or "" for k in node.keywords}))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            function = node.value.func
            if ast.unparse(function) == "study.measure" or getattr(function, "id", "") in MEASURING:
                rows |= {name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return rows, calls, {n.name: n for n in tree.body if isinstance(n, ast.FunctionDef)}


def _names(functions: dict[str, ast.FunctionDef], name: str, seen: set[str]) -> set[str]:
    """The global names and the attributes that a function and those that it calls look at."""
    if name not in functions or name in seen:
        return set()
    seen.add(name)
    nodes = [n for n in ast.walk(functions[name]) if isinstance(n, ast.Name)]
    own = {a.arg for a in functions[name].args.args} | {n.id for n in nodes if isinstance(n.ctx, ast.Store)}
    used = {n.id for n in nodes} - own | {ast.unparse(n) for n in ast.walk(functions[name]) if isinstance(n, ast.Attribute)}
    return used.union(*(_names(functions, other, seen) for other in used))


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_trial_that_looks_up_rows_or_opens_a_network_says_so(question: str) -> None:
    """Else ``run --minutes`` and ``run --only`` would measure it without what it looks up, and a probe's estimate would hide a training."""
    measuring = [c for c in cells(question) if c["cell_type"] == "code" and "show" not in c["metadata"].get("tags", [])]
    rows, calls, functions = _measured("\n".join("".join(c["source"]) for c in measuring))
    silent = [e for e, trial, given in calls if _names(functions, trial, set()) & (rows | {"pool.network"}) and "reads" not in given]
    assert not silent, f"{question}: {silent} look up other rows; say which: study.measure(..., reads=...)"


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
