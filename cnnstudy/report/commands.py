"""What the commands do; each is a few lines on top of the rooms of the report."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused, choose


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
    from cnnstudy.report import estimates
    from cnnstudy.report import plan as plans

    questions = _questions(args.questions)
    if args.minutes is not None:
        return _plan_minutes(args, questions)
    profile = choose("profile", args.profile or "quick", plans.PROFILES)
    if args.write:
        for question in questions:
            text = plans.dump(question, plans.make(question))
            plans.plans_root().mkdir(parents=True, exist_ok=True)
            (plans.plans_root() / f"{question}.json").write_text(text, "utf-8")
            print(f"wrote data/plans/{question}.json")
        return 0
    durations, rows = estimates.Durations(), []
    for question in questions:
        todo = estimates.missing(question, profile)
        seconds = estimates.estimate(question, todo, durations)
        rows.append({"question": question, "profile": profile, "to_measure": len(todo), "seconds": seconds})
    if args.json:
        _print_rows(rows, True)
        return 0
    _print_rows([{n: r[n] for n in ("question", "profile", "to_measure")} | {"time": _clock(r["seconds"])} for r in rows], False)
    known, unknown = [r["seconds"] for r in rows if r["seconds"] is not None], [r["question"] for r in rows if r["seconds"] is None]
    rest = f", not counting {', '.join(unknown)}: nothing like them was measured yet" if unknown else ""
    if known:
        print(f"in all {sum(r['to_measure'] for r in rows)} to measure, about {_clock(sum(known))} one after another{rest}")
    return 0


def _clock(seconds: float | None) -> str:
    from cnnstudy.report.live import clock

    return clock(seconds)


def _choice(args: argparse.Namespace, questions: Sequence[str]) -> Any:
    """The measurements that decide most claims in --minutes."""
    from cnnstudy.report import choosing

    if not args.minutes > 0:  # nor what is no number
        raise Refused(f"--minutes {args.minutes:g}: expected more than 0")
    return choosing.choose_within(args.minutes, questions, args.profile or "standard")


def _plan_minutes(args: argparse.Namespace, questions: Sequence[str]) -> int:
    choice = _choice(args, questions)
    if args.json:
        print(json.dumps({"measure": choice.rows(), "claims": choice.claims, "seconds": choice.seconds}, indent=1))
        return 0
    _print_rows([row | {"seconds": _clock(row["seconds"])} for row in choice.rows()], False)
    claims = f"{len(choice.claims)} claims become decidable: {', '.join(choice.claims)}" if choice.claims else "no claim becomes decidable"
    print(f"about {_clock(choice.seconds)}; {claims}")
    if choice.later:
        claim, seconds = min(choice.later.items(), key=lambda one: one[1])
        print(f"{len(choice.later)} claims need more time; the next, {claim}, {_clock(seconds)} more")
    for names, why in ((choice.unknown, "nothing like it was measured yet"), (choice.beyond, "not decidable on this machine")):
        if names:
            print(f"{len(names)} claims, {why}: {', '.join(names)}")
    return 0


def run(args: argparse.Namespace) -> int:
    """Measure what is missing on this machine, draw the pages into _build/executed, build the site."""
    from cnnstudy.report import children, execute, locks, runner
    from cnnstudy.report.plan import PROFILES
    from cnnstudy.runtime import gpu_name

    questions = _questions(args.questions)
    if args.failed:
        before = runner.last_states()
        questions = [q for q in questions if before.get(q, "done") != "done"]
        if not questions:
            print("nothing to do: " + ("no page asked for failed in the last run" if before else "no run of this checkout came before"))
            return 0
    if args.only and not args.measure_only:
        raise Refused("--only goes with --measure-only: a page is drawn from all of its experiments")
    if args.minutes is not None and (args.set or args.stale or args.only):
        raise Refused("--minutes chooses what to measure: it goes without --set, --stale and --only")
    overrides = _overrides(args.set)
    drawing = not args.measure_only and args.minutes is None
    if args.minutes is None:
        profile = choose("profile", args.profile or ("full" if gpu_name() else "quick"), PROFILES)
        orders = [(execute.Order(profile, overrides, args.stale, tuple(args.only), timeout=args.timeout), questions)]
    else:
        choice = _choice(args, questions)
        print(f"{len(choice.entries)} measurements for {len(choice.claims)} claims, about {_clock(choice.seconds)}")
        orders = [(execute.Order(p, keys=choice.keys, timeout=args.timeout), choice.pages(p)) for p in choice.profiles]
    runners = [runner.Runner(pages, order, args.jobs) for order, pages in orders]
    with locks.checkout("run"):
        states = [_run(one, args.scheduler, drawing) for one in runners]
        if children.stopping.is_set():
            raise KeyboardInterrupt
        published = args.no_site or not drawing or _publish()
    return int(not published or any(state != "done" for one in states for state in one.values()))


def _publish() -> bool:
    """Build the site, and say how that went; whether it went well."""
    from cnnstudy.report import children, runner

    try:
        print(f"site: {runner.publish()}: _build/site/index.html")
    except children.Stopped:
        pass
    except children.PageFailed as failure:
        print(f"site: failed: {failure}")
        return False
    if children.stopping.is_set():
        raise KeyboardInterrupt
    return True


def _run(one: Any, scheduler: str | None, drawing: bool) -> dict[str, str]:
    from cnnstudy.report import children

    if children.stopping.is_set():
        return {}
    if scheduler is None:
        states: dict[str, str] = one.run(drawing)
        return states
    from cnnstudy.report import remote

    with remote.cluster(scheduler, one.jobs, one.board) as cluster:
        states = one.run(drawing, cluster.measure)
    return states


def draw(args: argparse.Namespace) -> int:
    """Draw the committed notebooks that are out of date, in place, from the book's records."""
    from cnnstudy.report import children, locks, runner

    with locks.checkout("draw"):
        outcomes = runner.draw_committed(_questions(args.questions), args.jobs, args.force)
    if children.stopping.is_set():
        raise KeyboardInterrupt
    print(", ".join(f"{sum(o == kind for o in outcomes.values())} {kind}" for kind in dict.fromkeys(outcomes.values())))
    return int(not set(outcomes.values()) <= {"done", "unchanged"})


def status(args: argparse.Namespace) -> int:
    """Per page: recorded of expected by profile, stale, verdicts, time and last run on this machine; a line for each other machine."""
    from cnnstudy.report import status as standing

    found = standing.pages(_questions(args.questions))
    if args.json:
        _print_rows(standing.rows(found), True)
    else:
        print(standing.text(found, args.all))
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


def compare(args: argparse.Namespace) -> int:
    """What agrees and what differs between two machines' records and verdicts, or between this machine and the book."""
    from cnnstudy.report import compare as comparing

    found = comparing.compare(*comparing.pair(args.machines), _questions(args.question) if args.question else None)
    if args.json:
        _print_rows(found.rows, True)
        return found.exit_code
    print(found.text())
    if rows := found.noteworthy():
        _print_rows(rows, False)
    return found.exit_code


def share(args: argparse.Namespace) -> int:
    """Pack this machine's records into one checked file, without the names of host and user; merge adds it to another checkout."""
    from cnnstudy.report import bundle
    from cnnstudy.runtime import machine_id

    target = Path(args.out or f"cnnstudy-{machine_id()}.zip")
    print(f"{target}: {bundle.pack(machine_id(), target, args.questions or None)}")
    return 0


def merge(args: argparse.Namespace) -> int:
    """Check shared files of records, and add what is new to data/records; one that was tampered with is refused, saying why."""
    from cnnstudy.report import bundle

    for path in args.bundle:
        print(f"{path}: {bundle.merge(Path(path))}")
    return 0


def vouch(args: argparse.Namespace) -> int:
    """Keep records of older code where today's code was seen to give the same numbers to the last digit."""
    from cnnstudy.report import vouch as vouching

    results = vouching.vouch(_questions(args.questions), Path(args.fresh) if args.fresh else None)
    _print_rows([result.row() for result in results], args.json)
    return int(any(result.problem for result in results))


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
