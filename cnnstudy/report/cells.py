"""The measuring cells of a notebook, run in this process without a kernel.

That is how the plan is made (nothing is measured), and how records are made where there is no Jupyter.
Cells tagged ``show`` draw; they are left out.
"""

from __future__ import annotations

import json
import linecache
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused, choose
from cnnstudy.runtime import ROOT

NOTEBOOKS = ROOT / "notebooks"


def notebook_path(question: str) -> Path:
    """``notebooks/q33_....ipynb``; an unknown question is refused with the ones there are."""
    found = {path.name.split("_")[0]: path for path in sorted(NOTEBOOKS.glob("q[0-9][0-9]_*.ipynb"))}
    path: Path = found[choose("question", question, found)]
    return path


def questions() -> list[str]:
    """The questions that have a notebook, in order."""
    return sorted(path.name.split("_")[0] for path in NOTEBOOKS.glob("q[0-9][0-9]_*.ipynb"))


def read_notebook(path: Path) -> dict[str, Any]:
    """A notebook as JSON; refused by name when it is damaged."""
    try:
        notebook: dict[str, Any] = json.loads(path.read_text("utf-8"))
        notebook["cells"]
    except (OSError, ValueError, KeyError) as error:
        raise Refused(f"{path.name} is not a readable notebook: {error}") from None
    return notebook


def parameters(path: Path) -> dict[str, Any]:
    """The names and defaults of a notebook's ``parameters`` cell: plain assignments of JSON values."""
    import ast

    for cell in read_notebook(path)["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            tree = ast.parse("".join(cell["source"]))
            return {n.targets[0].id: ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)}  # type: ignore[attr-defined]
    raise Refused(f"{path.name} has no cell tagged 'parameters'")


def run_cells(path: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """Execute the measuring cells with parameters ``given`` over the notebook's own; returns the namespace."""
    known = parameters(path)
    for name in given:
        choose(f"parameter of {path.name}", name, known)
    namespace: dict[str, Any] = {"__name__": f"__{path.stem}__"}
    for number, cell in enumerate(read_notebook(path)["cells"]):
        tags = cell.get("metadata", {}).get("tags", [])
        if cell["cell_type"] != "code" or "show" in tags:
            continue
        text = "".join(cell["source"])
        name = f"<{path.stem}: cell {number}>"
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)  # for inspect.getsource
        exec(compile(text, name, "exec"), namespace)
        if "parameters" in tags:
            namespace.update(given)
    return namespace


def main() -> None:
    """``python -m cnnstudy.report.cells q33 '{"profile": "quick"}'``: measure a page's records, without a kernel."""
    import sys

    question, given = sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}
    try:
        run_cells(notebook_path(question), given)
    except Refused as error:
        sys.exit(f"{question}: {error}")


if __name__ == "__main__":
    main()
