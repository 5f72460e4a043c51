"""Time to draw all committed pages again: plain papermill, one by one, against ours, as many at once as there are cores.

    python benchmarks/drawing.py [q33 ...] [--runs 1] [--jobs N]

papermill: ``papermill in.ipynb out.ipynb`` for each page, as a user would.  Ours: one process that starts the server of
``report/warm.py`` and draws each page in a fork of it; starting and ending all that is in the time.  ``identical``: how many of
our notebooks are those that were given, to the byte.  ``benchmarks/startup.py`` does the same for trivial notebooks.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from results import in_turns, keep

from cnnstudy.report import warm
from cnnstudy.report.cells import notebook_path, questions
from cnnstudy.runtime import ROOT, cores


def papermill(sources: Sequence[Path], out: Path) -> None:
    """The plain way: an interpreter and a kernel for each notebook, one after another."""
    for source in sources:
        command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(source), str(out / source.name)]
        subprocess.run(command, check=True, capture_output=True, cwd=source.parent)


def ours(sources: Sequence[Path], out: Path, jobs: int) -> None:
    """Forks of one warm server; in a process of its own, so that importing this package counts too."""
    arguments = [str(jobs), str(out), *map(str, sources)]
    subprocess.run([sys.executable, __file__, "--draw", *arguments], check=True, cwd=ROOT)


def draw(jobs: int, out: Path, *sources: Path) -> None:
    """What ``ours`` starts; also writes the largest memory of a page."""

    def one(source: Path) -> int:
        log = out / f"{source.stem}.log"
        arguments = [str(source), "{}", str(out / source.name)]
        child = warm.start("cnnstudy.report.drawing", arguments, log=log, threads=max(1, cores() // jobs))
        if child.wait():
            sys.exit(f"{source.name}: {log.read_text()}")
        return child.peak_mib or 0

    warm.begin()
    with ThreadPoolExecutor(jobs) as pool:
        peaks = list(pool.map(one, sources))
    warm.close()
    (out / "peak").write_text(str(max(peaks)))


def compare(benchmark: str, sources: Sequence[Path], runs: int, jobs: int) -> None:
    """Draw notebooks both ways in turns, and keep the ratio of the times."""
    with tempfile.TemporaryDirectory() as scratch:
        plain, warmly = Path(scratch) / "papermill", Path(scratch) / "ours"
        plain.mkdir()
        warmly.mkdir()
        cases = {"papermill": partial(papermill, sources, plain), "ours": partial(ours, sources, warmly, jobs)}
        seconds = in_turns(cases, runs)
        identical = sum((warmly / s.name).read_bytes() == s.read_bytes() for s in sources)
        peak = int((warmly / "peak").read_text())
    ratios = {f"{len(sources)} notebooks, {jobs} at once, against papermill one by one": seconds["papermill"] / seconds["ours"]}
    keep(benchmark, ratios, seconds={n: round(s, 1) for n, s in seconds.items()}, runs=runs, identical=identical, peak_mib=peak)


def main() -> None:
    if sys.argv[1:2] == ["--draw"]:
        draw(int(sys.argv[2]), *map(Path, sys.argv[3:]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", help="default: all")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=cores())
    args = parser.parse_args()
    compare("drawing the committed pages", [notebook_path(q) for q in args.questions or questions()], args.runs, args.jobs)


if __name__ == "__main__":
    main()
