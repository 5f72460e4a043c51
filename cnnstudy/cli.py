"""The command line: ``cnnstudy list | plan | run | draw | status | verdicts | retract | data``.

Every refusal is one line on standard error and exit code 2; ``--debug`` shows the traceback instead.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cnnstudy.config import Refused, choose

Command = Callable[[argparse.Namespace], int]


def _questions(given: Sequence[str]) -> list[str]:
    from cnnstudy.report.cells import questions

    valid = questions()
    return [choose("question", q, valid) for q in given] or valid


def _print_rows(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        print("nothing to show")
        return
    names = list(rows[0])
    text = [[("–" if r[n] is None else f"{r[n]:.4g}" if isinstance(r[n], float) else str(r[n])) for n in names] for r in rows]
    widths = [max(len(n), *(len(t[i]) for t in text)) for i, n in enumerate(names)]
    for line in [names, *text]:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def _overrides(items: Iterable[str]) -> dict[str, Any]:
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            raise Refused(f"--set {item!r}: expected name=value, with a JSON value")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            raise Refused(f"--set {name}: {value!r} is not JSON; write lists as [8, 20] and texts as '\"text\"'") from None
    return found


def list_(args: argparse.Namespace) -> int:
    """Questions, titles and how many claims each has."""
    from cnnstudy.report import claims

    ledgers = [claims.load(q) for q in _questions([])]
    _print_rows([{"question": le.question, "claims": len(le.claims), "title": le.title} for le in ledgers], args.json)
    return 0


def plan(args: argparse.Namespace) -> int:
    """What a profile would still measure on this machine, and for how long; --write makes data/plans anew."""
    from cnnstudy.report import execute
    from cnnstudy.report import plan as plans

    choose("profile", args.profile, plans.PROFILES)
    if args.write:
        for question in _questions(args.questions):
            text = plans.dump(question, plans.make(question))
            plans.plans_root().mkdir(parents=True, exist_ok=True)
            (plans.plans_root() / f"{question}.json").write_text(text, "utf-8")
            print(f"wrote data/plans/{question}.json")
        return 0
    rows = []
    for question in _questions(args.questions):
        todo = execute.missing(question, args.profile)
        rows.append({"question": question, "profile": args.profile, "to_measure": len(todo), "seconds": execute.estimate(question, todo)})
    _print_rows(rows, args.json)
    return 0


def run(args: argparse.Namespace) -> int:
    """Measure what is missing on this machine, and draw the pages into _build/executed."""
    from cnnstudy.report import execute
    from cnnstudy.report.plan import PROFILES
    from cnnstudy.runtime import gpu_name

    profile = choose("profile", args.profile or ("full" if gpu_name() else "quick"), PROFILES)
    chosen, overrides = _questions(args.questions), _overrides(args.set)
    if args.only and not args.measure_only:
        raise Refused("--only goes with --measure-only: a page is drawn from all of its experiments")
    if args.measure_only:
        return execute.measure_pages(chosen, profile, overrides, args.timeout, args.stale, args.only)
    states = execute.run(chosen, profile, overrides, args.jobs, args.timeout, stale=args.stale)
    return int(any(state != "done" for state in states.values()))


def draw(args: argparse.Namespace) -> int:
    """Draw the committed notebooks again, in place, from the book's records; remember the rules they were judged by."""
    import datetime

    from cnnstudy.report import evidence, execute, verdicts
    from cnnstudy.report.cells import notebook_path
    from cnnstudy.report.study import Study
    from cnnstudy.runtime import ROOT

    today = datetime.date.today().isoformat()

    failed = 0
    for question in _questions(args.questions):
        try:
            if evidence.store_root() == ROOT / "data" / "records":  # trial records elsewhere are no evidence to remember
                verdicts.write_history(question, Study(question).judge(), today)
            execute.draw(question, {}, notebook_path(question))
            print(f"{question}: drawn")
        except execute.PageFailed as error:
            failed = 1
            print(f"{question}: {error}", file=sys.stderr)
    return failed


def status(args: argparse.Namespace) -> int:
    """Per page, machine and profile: measurements expected, recorded, stale, failed, and their seconds."""
    from cnnstudy.report import execute

    _print_rows(list(execute.coverage(_questions(args.questions))), args.json)
    return 0


def verdicts(args: argparse.Namespace) -> int:
    """The verdict on every claim, from the book's records or from one machine's."""
    from cnnstudy.report.study import Study
    from cnnstudy.report.verdicts import to_json

    rows = [row for q in _questions(args.questions) for row in to_json(Study(q, machine=args.machine).judge())]
    if not args.json:
        rows = [{"id": r["id"], "outcome": r["outcome"], "n": r["n"], "reason": r["reason"]} for r in rows]
    _print_rows(rows, args.json)
    return 0


def retract(args: argparse.Namespace) -> int:
    """Say that a record of this machine no longer counts, and why; nothing is deleted."""
    from cnnstudy.report import evidence
    from cnnstudy.runtime import machine_id

    (question,) = _questions([args.question])
    evidence.retract(args.key, args.reason, machine_id(), question)
    print(f"retracted {args.key} of {question}")
    return 0


def fetch(args: argparse.Namespace) -> int:
    """Fetch a complete data set into the cache: cifar10."""
    from cnnstudy.fetch import cache_root, fetch_cifar10

    choose("data set", args.name, ("cifar10",))
    print(f"cifar10 is in {fetch_cifar10(cache_root(), source=args.source)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cnnstudy", description="Fifty questions about CNNs, answered by recorded measurements.")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a refusal")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    def add(name: str, function: Command, *, many: bool = False, as_json: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=function.__doc__, description=function.__doc__)
        sub.set_defaults(function=function)
        if many:
            sub.add_argument("questions", nargs="*", help="e.g. q33; default: all")
        if as_json:
            sub.add_argument("--json", action="store_true", help="machine-readable")
        return sub

    add("list", list_, as_json=True)
    planning = add("plan", plan, many=True, as_json=True)
    planning.add_argument("--profile", default="quick", help="quick, standard or full")
    planning.add_argument("--write", action="store_true", help="make data/plans anew from the notebooks")
    running = add("run", run, many=True)
    running.add_argument("--profile", help="quick, standard or full; default: full with a CUDA GPU, else quick")
    running.add_argument("--set", action="append", default=[], metavar="NAME=JSON", help="override a parameter of the profile")
    running.add_argument("--jobs", type=int, help="pages drawn at once; default: cores")
    running.add_argument("--timeout", type=float, default=12 * 3600, help="seconds a page may measure")
    running.add_argument("--stale", action="store_true", help="measure anew what was recorded by other code")
    running.add_argument("--only", action="append", default=[], metavar="EXPERIMENT", help="with --measure-only: these experiments alone")
    running.add_argument("--measure-only", action="store_true", help="make records, draw nothing")
    add("draw", draw, many=True)
    add("status", status, many=True, as_json=True)
    judging = add("verdicts", verdicts, many=True, as_json=True)
    judging.add_argument("--machine", default="reference", help="reference, this, or a machine's id")
    retracting = add("retract", retract)
    retracting.add_argument("question")
    retracting.add_argument("key")
    retracting.add_argument("reason")
    data = commands.add_parser("data", help="data sets").add_subparsers(dest="what", required=True, metavar="what")
    fetching = data.add_parser("fetch", help=fetch.__doc__)
    fetching.set_defaults(function=fetch)
    fetching.add_argument("name", help="cifar10")
    fetching.add_argument("--source", help="a local folder or archive instead of the mirrors")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run, and turn a refusal into one line."""
    args = _parser().parse_args(argv)
    try:
        code: int = args.function(args)
    except Refused as error:
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
