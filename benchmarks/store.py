"""Appending records and reading them, against SQLite (a commit for each record) and against parsing JSON alone.

    python benchmarks/store.py [--appended 500] [--read 100000] [--runs 3]
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
from itertools import count
from pathlib import Path

from results import in_turns, keep

from cnnstudy.config import key
from cnnstudy.report import evidence


def record(number: int) -> dict[str, object]:
    """A record like those of a training."""
    setup = {"model": {"kind": "ResNet", "depth": number, "width": 16}, "recipe": {"kind": "Recipe", "epochs": 15, "lr": 0.1}}
    metrics = {"val_acc": 0.87654, "train_acc": 0.98765, "val_loss": 0.432, "loss_curve": [round(2.3 / (i + 1), 4) for i in range(15)]}
    made = {"machine": "bench", "device": "cpu", "threads": 2, "code": "0123456789ab", "started": "2026-01-01T00:00:00", "seconds": 1.0}
    return {
        "key": key("bench", setup, 0, 1), "question": "q99", "experiment": "bench", "setup": setup, "seed": 0, "protocol": 1,
        "profile": "quick", "metrics": metrics, "provenance": made,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--appended", type=int, default=500)
    parser.add_argument("--read", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root, numbers = Path(folder), count()
        table = sqlite3.connect(root / "records.db")
        table.execute("create table records (key text, line text)")

        def ours() -> None:
            for _ in range(args.appended):
                evidence.append(record(next(numbers)), "bench", root)

        def sqlite() -> None:
            for _ in range(args.appended):
                one = record(next(numbers))
                with table:
                    table.execute("insert into records values (?, ?)", (one["key"], json.dumps(one)))

        seconds = in_turns({"ours": ours, "sqlite": sqlite}, args.runs)
        rate = args.appended / seconds["ours"]
        keep("append", {"against SQLite with a commit each": seconds["sqlite"] / seconds["ours"]}, per_second=round(rate))
        table.close()

        many = root / "many" / "q99.jsonl"
        many.parent.mkdir()
        many.write_text("".join(json.dumps(record(i)) + "\n" for i in range(args.read)))

        def read() -> None:
            evidence._parsed.cache_clear()
            assert len(evidence.read("many", None, root)) == args.read

        def parse() -> None:
            assert len([json.loads(line) for line in many.read_text().splitlines()]) == args.read

        seconds = in_turns({"read": read, "parse": parse}, args.runs)
        keep("read", {"of the time that parsing takes": seconds["read"] / seconds["parse"]}, per_second=round(args.read / seconds["read"]))


if __name__ == "__main__":
    main()
