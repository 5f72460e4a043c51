"""The graph of pages: what each page is made of, and which pages are out of date.

The graph is a pytask project (https://pytask-dev.readthedocs.io): a task runs when the content of what it depends on, or of what
it made, has changed since it last succeeded; a failed task does not stop those that don't need it, and runs again next time.
Tasks only call the runner.  ``<folder>/pytask.lock`` remembers the states: the one in the repository is for the committed pages,
the one in ``_build`` for those that were measured on this machine.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused, digest
from cnnstudy.report import claims, evidence, plan
from cnnstudy.report.cells import notebook_path, questions, read_notebook
from cnnstudy.report.children import PageFailed, stopping
from cnnstudy.runtime import ROOT
from cnnstudy.source import PACKAGE, closure, module_file

# what a page is made of ---------------------------------------------------------------------------------------------------


def cells_digest(question: str, measuring: bool = False) -> str:
    """The digest of a notebook's cells without their outputs; with ``measuring`` only of those that measure."""
    kept = [
        [cell["cell_type"], "".join(cell["source"]), cell["metadata"].get("tags", [])]
        for cell in read_notebook(notebook_path(question))["cells"]
        if not measuring or (cell["cell_type"] == "code" and "show" not in cell["metadata"].get("tags", []))
    ]
    return digest(kept)


def modules(question: str) -> list[str]:
    """The modules of the package that a page's notebook leads to."""
    named: set[str] = set()
    for cell in read_notebook(notebook_path(question))["cells"]:
        if cell["cell_type"] == "code":
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                if isinstance(node, ast.ImportFrom) and node.module:
                    named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                elif isinstance(node, ast.Import):
                    named |= {alias.name for alias in node.names}
    for experiment in plan.load(question).values():
        named |= {*experiment.modules, *experiment.kinds.values()}  # configs are found through the registry, not by import
    return closure(name for name in named if name.split(".")[0] == PACKAGE)


@functools.cache
def _experiments(question: str) -> frozenset[str]:
    return frozenset(plan.load(question))


def record_files(question: str) -> list[Path]:
    """The files in which a page's records may stand: its own, and those of questions with an experiment of the same name."""
    shared = [q for q in questions() if q == question or _experiments(q) & _experiments(question)]
    root = evidence.store_root()
    return [root / m / f"{q}.jsonl" for m in evidence.machines() for q in shared if (root / m / f"{q}.jsonl").exists()]


def files_digest(paths: Iterable[Path]) -> str:
    """The digest of files' names and contents; of one that is not there, of its absence."""
    return digest([[p.name, p.parent.name, hashlib.sha256(p.read_bytes()).hexdigest() if p.exists() else None] for p in sorted(paths)])


def ingredients(question: str) -> dict[str, Callable[[], str | None]]:
    """What a drawn page depends on, by name, each as a function that digests its present state."""
    made_of: dict[str, Callable[[], str | None]] = {
        f"notebook {question}": lambda: cells_digest(question),
        f"records {question}": lambda: files_digest(record_files(question)),
        f"ledger {question}": lambda: files_digest([claims.claims_root() / f"{question}.yaml"]),
        f"plan {question}": lambda: files_digest([plan.plans_root() / f"{question}.json"]),
        "published figures": lambda: files_digest((ROOT / "data" / "published").glob("*.csv")),
    }
    for module in modules(question):
        made_of[module] = functools.partial(_module_digest, module)
    return made_of


@functools.cache
def _module_digest(module: str) -> str | None:
    path = module_file(module)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path else None


# the graph ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A task of the graph: ``work`` makes ``makes`` out of ``needs`` (states, by name) after the steps named in ``after``."""

    name: str
    work: Callable[[], None]
    makes: Path
    needs: Mapping[str, Callable[[], str | None]]
    after: Sequence[Path] = ()
    late: bool = False  # start it when nothing else is left to start


@dataclass
class _State:
    """A node of pytask's graph that is no file: its state is what a function says."""

    name: str
    digest: Callable[[], str | None]
    attributes: dict[Any, Any] = field(default_factory=dict)

    @property
    def signature(self) -> str:
        return digest(["state", self.name])

    def state(self) -> str | None:
        return self.digest()

    def load(self, is_product: bool = False) -> None:
        """Nothing is handed to a task: it knows what it works on."""

    def save(self, value: Any) -> None:
        raise NotImplementedError(f"{self.name} is not a product")


def _task(step: Step) -> Any:
    from pytask import Mark, PathNode, TaskWithoutPath

    def work(**nodes: Any) -> None:
        if stopping.is_set():
            raise PageFailed("stopped")
        step.work()

    needs: dict[str, Any] = {f"need_{i}": _State(name, state) for i, (name, state) in enumerate(step.needs.items())}
    needs |= {f"after_{i}": PathNode.from_path(path) for i, path in enumerate(step.after)}
    marks = [Mark("try_last", (), {})] if step.late else []
    makes = {"made": PathNode.from_path(step.makes)}
    return TaskWithoutPath(name=step.name, function=work, depends_on=needs, produces=makes, markers=marks)


def build(steps: Sequence[Step], folder: Path, jobs: int, force: bool = False) -> dict[str, str]:
    """Bring ``steps`` up to date; the outcome of each by name: "done", "unchanged", "failed" or "not run" (one before it failed).

    ``folder`` holds ``pytask.lock`` and pytask's own files; entries of steps that are not asked for now are kept.
    """
    import pytask

    _look_often()
    folder.mkdir(parents=True, exist_ok=True)
    configuration = folder / "pyproject.toml"
    if not configuration.exists():
        configuration.write_text("[tool.pytask.ini_options]\n")
    pytask.console.quiet = True  # the runner has a voice of its own
    try:
        session = pytask.build(
            tasks=[_task(step) for step in steps], config=configuration, paths=[configuration], capture=pytask.CaptureMethod.NO,
            n_workers=max(2, jobs), parallel_backend="threads", force=force, show_traceback=False, disable_warnings=True,
        )  # fmt: skip
    except KeyboardInterrupt:  # between two tasks; what they were doing is ended already
        stopping.set()
        return {step.name: "not run" for step in steps}
    finally:
        pytask.console.quiet = False
    if session.exit_code not in (pytask.ExitCode.OK, pytask.ExitCode.FAILED):
        where = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
        why = f"({session.exit_code.name}): is the disk full, or pytask.lock damaged?"
        raise Refused(f"the state of the pages in {where} cannot be read or written {why}")
    outcomes = {report.task.name: _OUTCOME.get(report.outcome.name, "failed") for report in session.execution_reports}
    return {step.name: outcomes.get(step.name, "not run") for step in steps}


def _look_often() -> None:
    """pytask-parallel looks for finished tasks ever more rarely, up to once a second; pages are drawn in less than that."""
    with suppress(ImportError, KeyError, TypeError, ValueError):  # its private parts: where they have moved, all is only slower
        from pytask_parallel.execute import _Sleeper

        inspect.signature(_Sleeper).parameters["timings"].default[:] = [0.01, 0.05]


_OUTCOME = {"SUCCESS": "done", "SKIP_UNCHANGED": "unchanged", "SKIP_PREVIOUS_FAILED": "not run"}
