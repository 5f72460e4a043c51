"""Execute one notebook with papermill so that two runs give the same bytes; in a child process that ``warm`` starts."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused
from cnnstudy.report.cells import notebook_path
from cnnstudy.runtime import ROOT


def normalise(notebook: Any) -> Any:
    """Drop what differs between two runs: times, execution metadata, progress, the versions that a kernel reports."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        tags = cell.metadata.get("tags", [])
        if "injected-parameters" in tags:
            cell["id"] = "injected-parameters"
            cell.metadata["tags"] = ["injected-parameters", "hide-input"]
        elif not tags:
            cell.metadata.pop("tags", None)
        if cell.cell_type == "code":
            cell.outputs = _joined([o for o in cell.outputs if o.get("name") != "stderr"])
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = cell.execution_count
    return notebook


def _joined(outputs: list[Any]) -> list[Any]:
    """Pieces of text that follow one another as one: how many there are depends on when a kernel happened to send them."""
    joined: list[Any] = []
    for output in outputs:
        if output.output_type == "stream" and joined and joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def check_executed(notebook: Any, name: str) -> None:
    """Every code cell has run, and none ended in an error."""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "code":
            continue
        if cell.execution_count is None:
            raise Refused(f"{name}: cell {number} was not executed")
        if any(o.output_type == "error" for o in cell.outputs):
            raise Refused(f"{name}: cell {number} ended in an error")


def execute(source: Path, target: Path, given: dict[str, Any]) -> None:
    """Execute ``source`` with parameters ``given`` and publish it at ``target``, or leave ``target`` as it was.

    The cells run in this process, which is to be one of its own: ``main`` is what a child is started with.
    """
    import nbformat
    from papermill.engines import papermill_engines
    from papermill.exceptions import PapermillExecutionError
    from papermill.execute import execute_notebook

    from cnnstudy.report.shell import ShellEngine

    papermill_engines.register("shell", ShellEngine)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        part = Path(scratch) / source.name
        try:
            notebook = execute_notebook(
                str(source), str(part), parameters=given, kernel_name="python3", engine_name="shell", progress_bar=False,
                request_save_on_cell_execute=False, cwd=str(source.parent),
            )  # fmt: skip
        except PapermillExecutionError as error:
            failed = ROOT / "_build" / "failed" / source.name
            failed.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, failed)
            raise Refused(f"{source.name}: {error.ename}: {error.evalue}".splitlines()[0]) from None
        notebook = normalise(notebook)
        check_executed(notebook, source.name)
        nbformat.write(notebook, part)
        os.replace(part, target)


def main() -> None:
    """``python -m cnnstudy.report.drawing q33 '{...}' target.ipynb``; a notebook's path may stand for the question."""
    page, given, target = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    try:
        execute(Path(page) if page.endswith(".ipynb") else notebook_path(page), target, given)
    except Refused as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
