"""Sentinels: what is exact must come out the same on every machine; where it does not, the install is wrong.

``python -m cnnstudy.report.sentinels FOLDER`` compares the records below FOLDER with the book's.  Whole numbers, texts and
truth values of exact experiments must be equal; real numbers, whose last digits depend on the order of additions, are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused
from cnnstudy.report import claims, evidence


def exact_metrics(root: Path) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """By key: where a record of an exact experiment stands, and those of its metrics that must agree everywhere."""
    kinds = {(q, name): e.kind for q in claims.questions() for name, e in claims.load(q).experiments.items()}
    found: dict[str, tuple[str, Mapping[str, Any]]] = {}
    for machine in evidence.machines(root):
        for record in evidence.read(machine, None, root):
            if kinds.get((record["question"], record["experiment"])) == "exact":
                sure = {n: v for n, v in record["metrics"].items() if isinstance(v, (bool, int, str))}
                found[record["key"]] = (f"{machine} {record['question']} {record['experiment']}", sure)
    return found


def differences(root: Path, book: Path | None = None) -> Iterator[str]:
    """One line per metric that differs.  Raises Refused when the two have no exact record in common."""
    theirs, ours = exact_metrics(book or evidence.store_root()), exact_metrics(root)
    common = theirs.keys() & ours.keys()
    if not common:
        raise Refused(f"{root} and the book have no exact record in common")
    for record_key in sorted(common):
        where, metrics = ours[record_key]
        for name, value in metrics.items():
            expected = theirs[record_key][1].get(name)
            if value != expected:
                yield f"{where} {record_key}: {name} is {value}, the book has {expected}"


def main() -> int:
    try:
        lines = list(differences(Path(sys.argv[1])))
    except Refused as error:
        print(f"sentinels: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines) or "what is exact agrees with the book")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
