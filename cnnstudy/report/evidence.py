"""The evidence store: append-only records, one JSONL file per machine and question.

``<root>/<machine>/q33.jsonl`` holds one record a line, ``<root>/<machine>/arrays/<key>.npz`` the arrays
that are too large for a line.  Nothing is ever edited or deleted: of two records with one key the later
counts, and a retraction is a line of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnnstudy.config import Refused, key
from cnnstudy.runtime import ROOT, describe_machine

if TYPE_CHECKING:
    import numpy as np

Record = dict[str, Any]
FIELDS = {"key", "question", "experiment", "setup", "seed", "protocol", "profile", "metrics", "provenance"}


def store_root() -> Path:
    """``data/records`` of the checkout, or the folder that CNNSTUDY_RECORDS names."""
    return Path(os.environ.get("CNNSTUDY_RECORDS") or ROOT / "data" / "records")


def machines(root: Path | None = None) -> list[str]:
    """Ids of the machines that have records."""
    root = root or store_root()
    return sorted(p.name for p in root.iterdir() if p.is_dir() and any(p.glob("q*.jsonl"))) if root.is_dir() else []


def reference(root: Path | None = None) -> list[str]:
    """The machines whose records the book is drawn from, best first (``reference.json``), then all others."""
    root = root or store_root()
    path = root / "reference.json"
    first: list[str] = json.loads(path.read_text("utf-8"))["machines"] if path.exists() else []
    known = machines(root)
    return [m for m in first if m in known] + [m for m in known if m not in first]


def _path(machine: str, question: str, root: Path | None) -> Path:
    return (root or store_root()) / machine / f"{question}.jsonl"


def append(record: Record, machine: str, root: Path | None = None, arrays: Mapping[str, np.ndarray] | None = None) -> None:
    """Append one record: arrays first, then one write of one line under a file lock, then fsync."""
    missing = FIELDS - record.keys()
    if missing:
        raise Refused(f"a record lacks {', '.join(sorted(missing))}")
    _check_key(record, "record to append")
    path = _path(machine, record["question"], root)
    path.parent.mkdir(parents=True, exist_ok=True)
    describe = path.parent / "machine.json"
    if not describe.exists():
        _replace(describe, (json.dumps(describe_machine() | {"id": machine}, indent=1) + "\n").encode())
    if arrays:
        import io

        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        (path.parent / "arrays").mkdir(exist_ok=True)
        _replace(path.parent / "arrays" / f"{record['key']}.npz", buffer.getvalue())
        record = record | {"arrays": sorted(arrays)}
    write_line(path, record)


def retract(record_key: str, reason: str, machine: str, question: str, root: Path | None = None) -> None:
    """Say that the records of a key no longer count, and why.  Later records of that key count again."""
    if not reason.strip():
        raise Refused("a retraction needs a reason")
    if record_key not in {r["key"] for r in read(machine, question, root)}:
        raise Refused(f"no record {record_key} of {question} on {machine}")
    write_line(_path(machine, question, root), {"retract": record_key, "reason": reason})


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_bytes(content)
    os.replace(part, path)


def write_line(path: Path, *lines: Mapping[str, Any]) -> None:
    """Append lines of JSON in one write under a file lock, with one fsync; what a killed writer left half written is dropped first."""
    from filelock import FileLock

    text = "".join(json.dumps(line, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n" for line in lines)
    with FileLock(str(path.with_name(f".{path.name}.lock"))), open(path, "a+b") as file:
        _drop_torn_tail(file)
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def _drop_torn_tail(file: Any) -> None:
    """A killed writer may leave half a line at the end; it was never a record."""
    size = file.seek(0, os.SEEK_END)
    if size == 0:
        return
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def _check_key(record: Record, where: str) -> None:
    right = key(record["experiment"], record["setup"], record["seed"], record["protocol"])
    if right != record["key"]:
        raise Refused(f"{where}: key {record['key']} does not match its setup (its key would be {right})")


@lru_cache(maxsize=512)
def _parsed(path: Path, size: int, changed: int) -> tuple[Record, ...]:
    """A file's lines, checked once per state of the file; callers must not alter them."""
    return tuple(_parse(path))


def _parse(path: Path) -> Iterator[Record]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path.parent.name}/{path.name}:{number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was killed
                return
            raise Refused(f"{where}: damaged record line ({error}); restore the file from git") from None
        if "retract" not in record:
            missing = FIELDS - record.keys()
            if missing:
                raise Refused(f"{where}: a record lacks {', '.join(sorted(missing))}")
            _check_key(record, where)
        yield record


def read(machine: str, question: str | None = None, root: Path | None = None) -> list[Record]:
    """The records of a machine that count, in the order of measuring: not retracted, the latest of each key.

    Raises Refused, naming file and line, for a damaged line or a key that does not match its setup.
    """
    folder = (root or store_root()) / machine
    latest: dict[str, Record] = {}
    for path in sorted(folder.glob("q*.jsonl") if question is None else folder.glob(f"{question}.jsonl")):
        state = path.stat()
        for record in _parsed(path, state.st_size, state.st_mtime_ns):
            if "retract" in record:
                latest.pop(record["retract"], None)
            else:
                latest.pop(record["key"], None)
                latest[record["key"]] = record
    return list(latest.values())


def find(keys: Iterable[str], machine: str, root: Path | None = None) -> dict[str, Record]:
    """Records by key, whichever question measured them."""
    wanted = set(keys)
    return {r["key"]: r for r in read(machine, None, root) if r["key"] in wanted}


def load_arrays(record: Record, machine: str, root: Path | None = None) -> dict[str, np.ndarray]:
    """The arrays that were stored beside a record."""
    import numpy as np

    with np.load((root or store_root()) / machine / "arrays" / f"{record['key']}.npz", allow_pickle=False) as file:
        return {name: file[name] for name in record.get("arrays", [])}
