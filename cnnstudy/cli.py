"""The command line: ``cnnstudy list | plan | run | draw | status | verdicts | compare | share | merge | vouch | retract | data``.

Every refusal is one line on standard error and exit code 2; ``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from cnnstudy.config import Refused
from cnnstudy.report import commands

Command = Callable[[argparse.Namespace], int]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cnnstudy", description="Fifty questions about CNNs, answered by recorded measurements.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a refusal")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, function: Command, *, many: bool = False, as_json: bool = False) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(function=function)
        if many:
            sub.add_argument("questions", nargs="*", help="e.g. q33; default: all")
        if as_json:
            sub.add_argument("--json", action="store_true", help="machine-readable")
        return sub

    add("list", commands.list_, as_json=True)

    planning = add("plan", commands.plan, many=True, as_json=True)
    planning.add_argument("--profile", help="quick, standard or full; default: quick, with --minutes standard")
    planning.add_argument("--minutes", type=float, help="what would make most claims decidable in this time")
    planning.add_argument("--write", action="store_true", help="make data/plans anew from the notebooks")

    running = add("run", commands.run, many=True)
    running.add_argument("--profile", help="quick, standard or full; default: full with a CUDA GPU, else quick; with --minutes standard")
    running.add_argument("--minutes", type=float, help="measure what makes most claims decidable in this time; draws nothing")
    running.add_argument("--failed", action="store_true", help="only pages that the last run did not finish")
    running.add_argument("--stale", action="store_true", help="measure anew what was recorded by other code")
    running.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="override a parameter of the profile")
    running.add_argument("--measure-only", action="store_true", help="make records, draw nothing")
    running.add_argument("--only", action="append", default=[], metavar="EXPERIMENT", help="with --measure-only: these experiments alone")
    running.add_argument("--no-site", action="store_true", help="draw the pages, but build no site")
    running.add_argument("--jobs", type=int, help="pages at once; default: cores")
    running.add_argument("--timeout", type=float, default=12 * 3600, help="seconds that a page may measure")
    running.add_argument("--scheduler", metavar="ADDRESS", help="measure on the workers of a Dask scheduler, or of slurm")

    drawing = add("draw", commands.draw, many=True)
    drawing.add_argument("--jobs", type=int, help="pages at once; default: cores")
    drawing.add_argument("--force", action="store_true", help="also those that are up to date")

    standing = add("status", commands.status, many=True, as_json=True)
    standing.add_argument("--all", action="store_true", help="every machine in full, and what untested claims need")

    judging = add("verdicts", commands.verdicts, many=True, as_json=True)
    judging.add_argument("--machine", default="reference", help="reference, this, or a machine's id")

    comparing = add("compare", commands.compare, as_json=True)
    comparing.add_argument("machines", nargs="*", help="two of reference (the book), this, and ids; default: reference this")
    comparing.add_argument("--question", action="append", default=[], help="only these; may be given again")

    sharing = add("share", commands.share, many=True)
    sharing.add_argument("--out", help="the file to write; default: cnnstudy-<machine>.zip")
    add("merge", commands.merge).add_argument("bundle", nargs="+", help="files made by cnnstudy share")

    vouching = add("vouch", commands.vouch, many=True, as_json=True)
    vouching.add_argument("--from", dest="fresh", help="records made anew; default: _build/remeasured, as nox -s remeasure leaves them")

    retracting = add("retract", commands.retract)
    for name in ("question", "key", "reason"):
        retracting.add_argument(name)

    data = subparsers.add_parser("data", help="data sets").add_subparsers(dest="what", required=True, metavar="what")
    fetching = data.add_parser("fetch", help=commands.fetch.__doc__)
    fetching.set_defaults(function=commands.fetch)
    fetching.add_argument("name", help="cifar10")
    fetching.add_argument("--source", help="a local folder or archive instead of the mirrors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a refusal into one line."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.function(args)
    except (Refused, OSError) as error:
        if args.debug:
            raise
        print(f"cnnstudy: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cnnstudy: stopped; what was recorded is kept, run the same command to go on", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
