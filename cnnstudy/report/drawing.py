"""Execute one notebook with papermill so that two runs give the same bytes; a child process of ``execute.draw``."""

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
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = cell.execution_count
    return notebook


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
    """Execute ``source`` with parameters ``given`` and publish it at ``target``, or leave ``target`` as it was."""
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch, tempfile.TemporaryDirectory(prefix="k") as sockets:
        part = Path(scratch) / source.name
        # Sockets in a folder of its own instead of TCP ports: two kernels that start at once can't take each other's.
        # Without "ip" the socket would be ./kernel-ipc-1, the same file for every kernel started in this folder.
        kernel = {} if os.name == "nt" else {"transport": "ipc", "ip": os.path.join(sockets, "k")}
        try:
            papermill.execute_notebook(
                str(source), str(part), parameters=given, kernel_name="python3", progress_bar=False, cwd=str(source.parent),
                start_timeout=180, config=Config({"KernelManager": kernel}),
            )  # fmt: skip
        except PapermillExecutionError as error:
            failed = ROOT / "_build" / "failed" / source.name
            failed.parent.mkdir(parents=True, exist_ok=True)
            if part.exists():
                os.replace(part, failed)
            raise Refused(f"{source.name}: {error.ename}: {str(error.evalue).splitlines()[0]}") from None
        notebook = normalise(nbformat.read(part, 4))
        check_executed(notebook, source.name)
        nbformat.write(notebook, part)
        os.replace(part, target)


def main() -> None:
    """``python -m cnnstudy.report.drawing q33 '{...}' target.ipynb``"""
    question, given, target = sys.argv[1], json.loads(sys.argv[2]), Path(sys.argv[3])
    try:
        execute(notebook_path(question), target, given)
    except Refused as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
