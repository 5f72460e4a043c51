"""What one does with this project: ``nox -l`` lists it, ``nox -s rebuild`` is the main job.

All sessions share one environment in ``.nox/shared``, installed from ``pyproject.toml`` and ``constraints.txt`` when
either has changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "tests", "notebooks", "remeasure", "book"]

ROOT = Path(__file__).parent
HOME = ROOT / ".nox" / "shared"
BIN = HOME / ("Scripts" if os.name == "nt" else "bin")
Run = Callable[..., object]


def shared(session: nox.Session) -> Run:
    """The shared environment, installed if what it holds has changed; returns a function that runs a program of it.

    pip and no other installer: its configuration decides where torch comes from.
    """
    recipe = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    want = hashlib.sha256(recipe + sys.version.encode() + str(ROOT).encode()).hexdigest()
    stamp = HOME / "installed"
    if not stamp.exists() or stamp.read_text() != want:
        if not (BIN / "python").exists():
            session.run(sys.executable, "-m", "venv", str(HOME), external=True)
        session.log("installing the environment (a few minutes, once)")
        python = str(BIN / "python")
        session.run(python, "-m", "pip", "install", "-q", "--upgrade", "pip", external=True)
        session.run(python, "-m", "pip", "install", "-q", "-e", ".[dev]", "-c", "constraints.txt", external=True)
        stamp.write_text(want)
    session.env["PATH"] = os.pathsep.join([str(BIN), os.environ["PATH"]])
    session.env["VIRTUAL_ENV"] = str(HOME)
    # nox looks a program up on its own PATH, not on session.env's: name it in full
    return lambda program, *args, **more: session.run(str(BIN / program), *args, external=True, **more)


@nox.session
def rebuild(session: nox.Session) -> None:
    """``cnnstudy run``: measure what is missing here, draw pages, build the site.  -- [q33 ...] [--profile standard] [--jobs 4]"""
    run = shared(session)
    run("cnnstudy", "run", *session.posargs)


@nox.session
def book(session: nox.Session) -> None:
    """Build the site from the committed notebooks and records; a warning, a dead link or an outside request is an error."""
    run = shared(session)
    run("python", "-m", "cnnstudy.report.site", "build", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """The unit tests: package, layering, ledger, notebooks."""
    run = shared(session)
    # a thread each: two pools of threads on the same cores wait for each other most of the time
    run("pytest", "-q", "-n", "2", "--dist", "loadfile", *session.posargs, env={"OMP_NUM_THREADS": "1"})


@nox.session
def notebooks(session: nox.Session) -> None:
    """Execute the committed notebooks again (they measure nothing) and compare every output."""
    run = shared(session)
    chosen = session.posargs or sorted(str(p) for p in Path("notebooks").glob("q*.ipynb"))
    run(
        "pytest", "-q", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env", "--nbval-cell-timeout", "600",
        "-n", "2", "--dist", "loadfile", "-W", "ignore", *chosen,
        # what timm imports misses a widget in a kernel that shows none
        env={"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg", "PYTHONWARNINGS": "ignore:IProgress not found"},
    )  # fmt: skip


@nox.session
def remeasure(session: nox.Session) -> None:
    """Measure the quick profile of all pages into an empty store, draw them, and compare what is exact with the book.

    ``cnnstudy vouch`` uses what it leaves in ``_build/remeasured``.
    """
    run = shared(session)
    fresh = ROOT / "_build" / "remeasured"
    shutil.rmtree(fresh, ignore_errors=True)
    run("cnnstudy", "run", "--profile", "quick", "--no-site", *session.posargs, env={"CNNSTUDY_RECORDS": str(fresh)})
    run("python", "-m", "cnnstudy.report.sentinels", str(fresh))


@nox.session
def benchmarks(session: nox.Session) -> None:
    """Time this machine and the project's tools against others; ratios go to data/benchmarks.  -- [drawing store ...]"""
    run = shared(session)
    known = sorted(p.stem for p in Path("benchmarks").glob("*.py") if p.stem != "results")
    for name in session.posargs or known:
        if name not in known:
            session.error(f"unknown benchmark {name!r}; valid: {', '.join(known)}")
        run("python", f"benchmarks/{name}.py")


@nox.session
def lint(session: nox.Session) -> None:
    """Style (ruff) and types (mypy)."""
    run = shared(session)
    run("ruff", "check", ".")
    run("mypy")
