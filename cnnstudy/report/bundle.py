"""Bundles: what a machine measured, in one file that drops into another checkout's records.

A bundle is a zip; its bytes follow from its content alone:

    manifest.json      format, machine, package, commit, counts, and the sha256 of every other member
    machine.json       as the store has it
    q33.jsonl          records and retractions of that question, in the order of measuring
    arrays/<key>.npz   the arrays of records that name some

``merge`` checks all of it, and that it contradicts nothing here, before it writes a byte.  The hashes tell damage and careless edits, not a
forger: whoever shares records vouches for them.  The diary of runs stays at home, and so do names of hosts, users and folders.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import zipfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cnnstudy
from cnnstudy.config import Refused, choose
from cnnstudy.report import claims, evidence, history, intake
from cnnstudy.report.history import Line
from cnnstudy.report.intake import LIMIT
from cnnstudy.report.wording import of
from cnnstudy.runtime import commit, describe_machine

FORMAT = 1
MANIFEST = ("format", "machine", "package", "commit", "records", "retractions", "arrays", "members")
SAME_MACHINE = ("cpu", "gpu", "arch")  # memory and cores may be lent in parts
_MACHINE = re.compile(r"(?=.{1,64}$)[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Bundle:
    """A checked bundle: the lines of each question, the arrays (bytes of an npz) by key, and which package packed them."""

    machine: str
    package: str
    commit: str | None
    records: int
    retractions: int
    describe: Mapping[str, Any] = field(repr=False)
    lines: Mapping[str, Sequence[Line]] = field(repr=False)
    arrays: Mapping[str, bytes] = field(repr=False)

    def __str__(self) -> str:
        return f"{_count(self.records, self.retractions, len(self.arrays))} of {self.machine} ({', '.join(self.lines)})"


@dataclass(frozen=True)
class Summary:
    """What a merge added; ``known``: lines that were here already; ``older``: lines left out, as a later record of their key is here."""

    machine: str
    records: int
    retractions: int
    arrays: int
    known: int
    older: int

    def __str__(self) -> str:
        older = f"; {self.older} older than what counts here, left out" if self.older else ""
        return f"{self.machine}: {_count(self.records, self.retractions, self.arrays)} added; {self.known} lines known already{older}"


def _count(records: int, retractions: int, arrays: int) -> str:
    return f"{of(records, 'record')}, {of(retractions, 'retraction')}, {of(arrays, 'file')} of arrays"


# packing


def pack_bytes(
    machine: str, questions: Sequence[str] | None = None, keys: Collection[str] | None = None, root: Path | None = None
) -> bytes:
    """The history of a machine as a bundle: all of it, or of some questions or keys.  The same records give the same bytes.

    Lines of experiments that no ledger has any more are left out.  Raises Refused for unknown machines, questions and keys, and for
    whatever ``check`` refuses: what names this host, its user or a folder does not leave it.
    """
    return _packed(machine, questions, keys, root)[0]


def pack(
    machine: str, target: Path, questions: Sequence[str] | None = None, keys: Collection[str] | None = None, root: Path | None = None
) -> Bundle:
    """Write a bundle to the file ``target``; see ``pack_bytes``."""
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise Refused(f"cannot write {target}: expected the name of a file in a folder that exists")
    content, bundle = _packed(machine, questions, keys, root)
    _replace(target, content)
    return bundle


def _packed(machine: str, questions: Sequence[str] | None, keys: Collection[str] | None, root: Path | None) -> tuple[bytes, Bundle]:
    root = root or evidence.store_root()
    folder = root / choose("machine", machine, evidence.machines(root))
    there = sorted(path.stem for path in folder.glob("q[0-9][0-9].jsonl"))
    for question in questions or ():
        choose(f"question with records of {machine}", question, there)
    lines = {q: history.lines(folder / f"{q}.jsonl") for q in there if not questions or q in questions}
    lines = {q: [line for line in those if keys is None or history.key_of(line) in keys] for q, those in lines.items()}
    for missing in sorted(set(keys or ()) - {history.key_of(line) for those in lines.values() for line in those}):
        raise Refused(f"no record {missing} of {machine}{' in ' + ', '.join(questions) if questions else ''}")
    for question, those in lines.items():
        known = _protocols(question)
        gone = {line["key"] for line in those if "key" in line and line.get("experiment") not in known}
        lines[question] = [line for line in those if history.key_of(line) not in gone]
    members = {f"{q}.jsonl": "".join(history.written(line) + "\n" for line in those).encode() for q, those in lines.items() if those}
    if not members:
        raise Refused(f"{machine} has no records to pack")
    every = [line for _, those in sorted(lines.items()) for line in those]
    for name in ["machine.json", *(f"arrays/{one}.npz" for one in history.owners(every))]:
        if not (folder / name).exists():
            raise Refused(f"{machine}/{name} is missing; restore it from git")
        members[name] = (folder / name).read_bytes()
    manifest = {
        "format": FORMAT, "machine": machine, "package": cnnstudy.__version__, "commit": commit()[0],
        **_counts(every, len(history.owners(every))),
        "members": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(members.items())},
    }  # fmt: skip
    members["manifest.json"] = (json.dumps(manifest, indent=1) + "\n").encode()
    content = zipped(members)
    return content, check(content)  # nothing leaves that a merge would refuse


def zipped(members: Mapping[str, bytes]) -> bytes:
    """A zip archive that does not tell when, where or in which order it was made."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in sorted(members.items()):
            info = zipfile.ZipInfo(name)  # dated 1980
            info.compress_type, info.create_system, info.external_attr = zipfile.ZIP_DEFLATED, 3, (stat.S_IFREG | 0o644) << 16
            file.writestr(info, content, compresslevel=9)
    return buffer.getvalue()


def _counts(lines: Iterable[Line], arrays: int) -> dict[str, int]:
    kinds = ["key" in line for line in lines]
    return {"records": sum(kinds), "retractions": len(kinds) - sum(kinds), "arrays": arrays}


def _protocols(question: str) -> dict[str, int]:
    return {name: e.protocol for name, e in claims.load(question).experiments.items() if e.kind != "published"}


def _replace(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# checking


def check(source: Path | bytes) -> Bundle:
    """Read a bundle from a file or from memory, and check all of it: names, sizes, hashes, every line with its key, arrays, machine ids.

    Raises Refused in one line that names the member, and the line in it, for anything that ``pack`` does not make.
    """
    name = "bundle" if isinstance(source, bytes) else source.name
    try:
        if not isinstance(source, bytes):
            if not source.is_file():
                raise Refused("there is no such file")
            if (size := source.stat().st_size) > LIMIT:
                raise Refused(f"it has {size:,} bytes; a bundle has at most {LIMIT:,}")
            source = source.read_bytes()
        return _checked(intake.members(source))
    except Refused as error:
        raise Refused(f"{name}: {error}") from None
    except RecursionError:
        raise Refused(f"{name}: something in it is nested too deeply") from None


def _checked(members: Mapping[str, bytes]) -> Bundle:
    for name in ("manifest.json", "machine.json"):
        if name not in members:
            raise Refused(f"it has no {name}")
    manifest, describe = (intake.parsed(members[name], name) for name in ("manifest.json", "machine.json"))
    _check_manifest(manifest, members)
    intake.check_fields(describe, describe_machine(), "machine.json")
    if not all(intake.is_scalar(v) for value in describe.values() for v in (value if isinstance(value, list) else [value])):
        raise Refused("machine.json holds more than texts and numbers")
    machine = manifest["machine"]
    if describe["id"] != machine:
        raise Refused(f"machine.json describes {describe['id']!r}, manifest.json {machine!r}")
    names = intake.own_names()
    intake.impersonal(manifest, "manifest.json", names)
    intake.impersonal(describe, "machine.json", names)
    lines: dict[str, list[Line]] = {}
    for name in sorted(n for n in members if n.endswith(".jsonl")):
        question = name.removesuffix(".jsonl")
        known = _protocols(question)
        texts = members[name].decode("ascii", "replace").removesuffix("\n").split("\n")
        lines[question] = [intake.checked_line(t, f"{name}:{i}", question, machine, known, names) for i, t in enumerate(texts, 1)]
    every = [line for those in lines.values() for line in those]
    history.News(history.Known()).take(every)  # does the bundle contradict itself?
    owners, arrays = history.owners(every), {Path(n).stem: content for n, content in members.items() if n.startswith("arrays/")}
    for one in sorted(owners.keys() ^ arrays.keys()):
        raise Refused(
            f"arrays/{one}.npz belongs to no record" if one in arrays else f"arrays/{one}.npz is not there, and a record names it"
        )
    left = LIMIT
    for one, content in sorted(arrays.items()):
        left -= intake.check_arrays(content, owners[one]["arrays"], f"arrays/{one}.npz", left)
    counts = _counts(every, len(arrays))
    if any(manifest[name] != counts[name] for name in counts):
        raise Refused(f"manifest.json counts otherwise than there is: {_count(**counts)}")
    return Bundle(machine, manifest["package"], manifest["commit"], counts["records"], counts["retractions"], describe, lines, arrays)


def _check_manifest(manifest: Any, members: Mapping[str, bytes]) -> None:
    if isinstance(manifest, dict) and manifest.get("format") != FORMAT:
        raise Refused(f"manifest.json: format is {manifest.get('format')!r}; this version of cnnstudy reads format {FORMAT}")
    intake.check_fields(manifest, MANIFEST, "manifest.json")
    machine, listed = manifest["machine"], manifest["members"]
    if not isinstance(machine, str) or not _MACHINE.fullmatch(machine) or machine in ("this", "reference", "published"):
        raise Refused(f"manifest.json: machine is {machine!r}; expected small letters, digits and hyphens, e.g. 'epyc-2core'")
    if not isinstance(listed, dict) or not isinstance(manifest["package"], str) or not isinstance(manifest["commit"], str | None):
        raise Refused("manifest.json: members, package or commit is not what it should be")
    for name in sorted((members.keys() - {"manifest.json"}) ^ listed.keys()):
        raise Refused(f"manifest.json names {name}, which is not there" if name in listed else f"{name} is not in manifest.json")
    for name, wanted in sorted(listed.items()):
        if hashlib.sha256(members[name]).hexdigest() != wanted:
            raise Refused(f"{name} is not what manifest.json says: it was altered or damaged after packing")


# merging


def merge(source: Path | bytes, root: Path | None = None) -> Summary:
    """Add what is new in a bundle to the store; merging twice adds nothing.

    Everything is checked first, also against what the store has of that machine; then arrays are written, then lines, each whole and under
    the store's lock, so that others may append meanwhile.  A merge that is killed is finished by merging again.
    """
    from filelock import FileLock

    bundle = check(source)
    folder = (root or evidence.store_root()) / bundle.machine
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".merge.lock"):
        news, arrays = _plan(bundle, folder)
        if not (folder / "machine.json").exists():
            _replace(folder / "machine.json", (json.dumps(bundle.describe, indent=1) + "\n").encode())
        for one, content in arrays.items():
            (folder / "arrays").mkdir(exist_ok=True)
            _replace(folder / "arrays" / f"{one}.npz", content)
        added = {id(line) for line in news.new}
        for question, lines in bundle.lines.items():
            if mine := [line for line in lines if id(line) in added]:
                evidence.write_line(folder / f"{question}.jsonl", *mine)
    return Summary(bundle.machine, **_counts(news.new, len(arrays)), known=news.known, older=news.older)


def _plan(bundle: Bundle, folder: Path) -> tuple[history.News, dict[str, bytes]]:
    """The lines and arrays to add.  Raises Refused where the bundle contradicts the store."""
    path = folder / "machine.json"
    described = intake.parsed(path.read_bytes(), f"{folder.name}/machine.json") if path.exists() else bundle.describe
    for name in SAME_MACHINE:
        if described.get(name) != bundle.describe[name]:
            raise Refused(
                f"another machine is called {bundle.machine} here: its {name} is {described.get(name)!r}, the bundle's "
                f"{bundle.describe[name]!r}; measure under another name (CNNSTUDY_MACHINE=...)"
            )
    stored = [line for file in sorted(folder.glob("q[0-9][0-9].jsonl")) for line in history.lines(file)]
    news = history.News(history.Known(stored))
    news.take(line for lines in bundle.lines.values() for line in lines)
    owners, added = history.owners([*stored, *news.new]), {id(line) for line in news.new}
    arrays = {}
    for one, mine in history.owners(line for lines in bundle.lines.values() for line in lines).items():
        path = folder / "arrays" / f"{one}.npz"
        if history.begun(owners.get(one)) != history.begun(mine):
            continue  # the store's are of a later record
        if id(mine) in added or not path.exists():
            arrays[one] = bundle.arrays[one]
        elif path.read_bytes() != bundle.arrays[one] and not intake.same_arrays(path.read_bytes(), bundle.arrays[one]):
            raise Refused(f"arrays/{one}.npz, of a record that is here, holds other arrays than the one here; one of them was altered")
    return news, arrays
