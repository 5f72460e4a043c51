"""Sentinels: what is exact must come out the same on every machine; where it does not, the install is wrong.

``python -m cnnstudy.report.sentinels FOLDER`` compares the records below FOLDER with the book's.  Whole numbers, texts and
truth values of exact experiments must be equal; real numbers, whose last digits depend on the order of additions, are left out.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from cnnstudy.config import Refused
from cnnstudy.report import claims, evidence
from cnnstudy.report.compare import Exact, by_kind, sides


def differences(root: Path, book: Path | None = None) -> Iterator[str]:
    """One line per metric that differs.  Raises Refused when the two have no exact record in common."""
    ledgers, common = [claims.load(q) for q in claims.questions()], 0
    for machine in evidence.machines(root):
        theirs, ours = sides("reference", machine, root, book or evidence.store_root())
        pairs, exact = by_kind(theirs, ours, ledgers).get("exact", []), Exact(theirs, ours)
        common += len(pairs)
        for row in (row for pair in pairs for row in exact.differences(*pair)):
            if not any(isinstance(row[side], float) for side in "ab"):
                yield f"{machine} {row['name']} is {row['b']}, the book has {row['a']}"
    if not common:
        raise Refused(f"{root} and the book have no exact record in common")


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
