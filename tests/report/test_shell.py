"""Cells run in a shell of this process give what a kernel gives, to the byte; nothing is published of a page that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from cnnstudy.report.cells import notebook_path, questions
from cnnstudy.report.drawing import normalise

ROOT = Path(__file__).parents[2]
CELLS = r"""
profile = "recorded"
names = []
# %%
import sys

print("one"); print("two", end="")
print("hidden", file=sys.stderr)
sys.stdout.flush()
print("three")
# %%
from IPython.display import HTML, Image, Markdown, clear_output, display, update_display

print("before")
display({"application/json": {1: (2, float("nan"))}, "text/plain": "x"}, metadata={"a": {"b": 1}}, raw=True)
print("after")
HTML("<b>bold</b>")
# %%
import pandas as pd

frame = pd.DataFrame({"a": [1.5, float("nan")], "b": ["x", "y"]})
frame
# %%
_["a"].sum(), Out[5].shape, len(In)
# %%
handle = display("first", display_id="it")
1
# %%
update_display("second", display_id="it")
print("gone")
clear_output()
print("kept")
# %%
print("gone too")
clear_output(wait=True)
display(Markdown("*new*"))
# %%
import base64

Image(base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="))
# %%
import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(1, 1))
ax.plot([1, 2])
fig
# %%
import inspect


def here(x):
    "Doc."
    return x


print(inspect.getsource(here), __name__, here.__module__, type(get_ipython()).__name__)
here
# %%
import asyncio

await asyncio.sleep(0)
{"b", "a", "c"}
# %%
# %%
%who_ls str
# %%
x = 1;
"no output";
# %%
import os

os.path.basename(os.getcwd()), sys.stdout.isatty(), sys.stdout.encoding
# %%
"\x1b[31mred\x1b[0m", "é", "\ud800".encode("utf-8", "replace")
# %%
import logging
import warnings

warnings.warn("unseen")
logging.getLogger().warning("unseen")
[profile, names]
# %%
def f():
    print("on the way")
    raise ValueError("two\nlines")


f()
""".strip().split("# %%\n")
KERNEL = """
import sys, tempfile, os
import nbformat, papermill
from traitlets.config import Config
from cnnstudy.report.drawing import normalise
with tempfile.TemporaryDirectory() as sockets:
    config = Config({"KernelManager": {"transport": "ipc", "ip": os.path.join(sockets, "k")}})
    try:
        papermill.execute_notebook(
            sys.argv[1], sys.argv[2], {"names": ["a", 1]}, progress_bar=False, config=config, cwd=os.path.dirname(sys.argv[1])
        )
    except papermill.PapermillExecutionError:
        pass
nbformat.write(normalise(nbformat.read(sys.argv[2], 4)), sys.argv[2])
"""
SHELL = """
import json, sys
from pathlib import Path
from cnnstudy.report import drawing
drawing.execute(Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]))
"""


def notebook(path: Path, sources: list[str]) -> Path:
    """A notebook of code cells, the first of which holds the parameters."""
    cells = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {} if i else {"tags": ["parameters"]}, "source": source.rstrip("\n"),
         "outputs": [], "execution_count": None}
        for i, source in enumerate(sources)
    ]  # fmt: skip
    text = {"cell_type": "markdown", "id": "text", "metadata": {}, "source": "Text."}
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"cells": [text, *cells], "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}))
    return path


def python(code: str, *arguments: object, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONHASHSEED": "0", "MPLBACKEND": "agg", "CNNSTUDY_ROOT": str(root), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT, timeout=250)


def test_a_shell_gives_what_a_kernel_gives(tmp_path: Path) -> None:
    """In the drawn notebook and, as the last cell fails, in the one that is kept for looking into it."""
    source = notebook(tmp_path / "in" / "q99_all.ipynb", CELLS)
    done = python(KERNEL, source, tmp_path / "kernel.ipynb")
    assert done.returncode == 0, done.stderr[-3000:]
    kernel = nbformat.read(tmp_path / "kernel.ipynb", 4)
    done = python(SHELL, source, tmp_path / "shell.ipynb", '{"names": ["a", 1]}', root=tmp_path)
    assert done.stderr.splitlines()[-1].endswith("Refused: q99_all.ipynb: ValueError: two")
    shell = normalise(nbformat.read(tmp_path / "_build" / "failed" / source.name, 4))
    for one, other in zip(kernel.cells, shell.cells, strict=True):
        if one.cell_type == "markdown":  # papermill's notes on the failure have names by chance
            one.id = other.id = ""
        assert one == other
    assert kernel == shell
    outputs = [o for cell in shell.cells for o in cell.get("outputs", [])]
    assert {"text": "one\ntwothree\n", "name": "stdout", "output_type": "stream"} in outputs
    assert outputs[-1].output_type == "error" and len(outputs) > 20


def test_of_a_page_that_fails_nothing_is_published(tmp_path: Path) -> None:
    source = notebook(tmp_path / "in" / "q99_bad.ipynb", ["profile = 1", "1", "raise KeyError", "2"])
    target = tmp_path / "out" / source.name
    target.parent.mkdir()
    target.write_text("as it was")
    done = python(SHELL, source, target, "{}", root=tmp_path)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith("Refused: q99_bad.ipynb: KeyError: ")
    assert target.read_text() == "as it was" and [p.name for p in target.parent.iterdir()] == [target.name]
    failed = nbformat.read(tmp_path / "_build" / "failed" / source.name, 4)
    assert [o.output_type for c in failed.cells for o in c.get("outputs", [])] == ["execute_result", "error"]


@pytest.mark.slow
@pytest.mark.parametrize("question", questions())
def test_the_committed_pages_come_out_as_they_are(question: str, tmp_path: Path) -> None:
    target = tmp_path / "drawn.ipynb"
    code = "import sys; from cnnstudy.report.drawing import main; main()"
    done = python(code, question, "{}", target)
    assert done.returncode == 0, done.stderr[-3000:]
    assert target.read_bytes() == notebook_path(question).read_bytes()
