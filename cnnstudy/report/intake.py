"""Intake: pieces of a bundle that is not to be trusted, each checked by itself; ``bundle`` puts them together.

Every function raises Refused in one line that begins with the piece: an archive's member, a line of records, a file of arrays.
"""

from __future__ import annotations

import getpass
import io
import json
import math
import platform
import re
import socket
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused, choose, key
from cnnstudy.report.evidence import FIELDS
from cnnstudy.report.history import written
from cnnstudy.report.plan import PROFILES
from cnnstudy.report.rows import leaves
from cnnstudy.runtime import cpu_name, gpu_name

LIMIT = 1 << 27  # bytes that a bundle may unpack to, and its arrays once more; the records of four questions take 0.8 MB
MOST_MEMBERS = 100_000
NESTED = 16  # values within values; setups have three or four
PROVENANCE = ("machine", "device", "threads", "python", "torch", "commit", "dirty", "code", "started", "seconds")
BESIDE = ("load",)  # what else a record may say of its making: clocks, heat and other processes while it was timed
TYPES = {
    "key": str, "question": str, "experiment": str, "setup": dict, "seed": int, "protocol": int, "profile": str, "metrics": dict,
    "provenance": dict, "failed": str, "arrays": list,
}  # fmt: skip
_MEMBER = re.compile(r"manifest\.json|machine\.json|q\d\d\.jsonl|arrays/[0-9a-f]{12}\.npz")
_KEY = re.compile(r"[0-9a-f]{12}")
_ARRAY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_STARTED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00")
_PATH = re.compile(r"(?:^|[\s\"'`(=:,;\[{<])(?:/(?:[\w.+@-]+/)+|~[\w.-]*/|[A-Za-z]:[\\/]|\\\\[\w.-]+\\)|file://")
# names that tell nobody apart
_NOBODY = {"root", "user", "admin", "localhost", "localdomain", "home", "host", "node", "runner", "worker", "docker", "jovyan", "ubuntu"}
_BROKEN = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError, OverflowError)


def members(content: bytes) -> dict[str, bytes]:
    """The members of a zip by name: plain files of known names that together unpack to no more than the limit."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            infos = file.infolist()
            for info in infos:
                _check_member(info)
            names = [info.filename for info in infos]
            if len(names) > MOST_MEMBERS or len(names) != len(set(names)):
                raise Refused(f"its {len(names)} members are too many, or two have one name")
            if (size := sum(info.file_size for info in infos)) > LIMIT:
                raise Refused(f"it unpacks to {size:,} bytes; a bundle has at most {LIMIT:,}")
            return {info.filename: file.read(info) for info in infos}  # reads no more than was declared
    except Refused:
        raise
    except _BROKEN as error:
        raise Refused(f"not a whole zip archive ({error})") from None


def _check_member(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    if name.startswith(("/", "\\")) or ".." in name or ":" in name:
        raise Refused(f"member {name!r} leads out of the bundle")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
        raise Refused(f"member {name!r} is a link or a device; a bundle holds plain files")
    if not _MEMBER.fullmatch(name) or name != info.filename:
        raise Refused(f"member {name!r} is of no bundle; valid: manifest.json, machine.json, qNN.jsonl, arrays/<key>.npz")
    if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(f"member {name!r} is encrypted, or compressed in a way that bundles are not")


def parsed(content: bytes | str, where: str) -> Any:
    """A JSON value."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Refused(f"{where}: not JSON ({error})") from None


def check_fields(body: Any, valid: Iterable[str], where: str, optional: Iterable[str] = ()) -> None:
    """Exactly the ``valid`` fields, and perhaps some ``optional`` ones: what is shared is known by name."""
    valid = list(valid)
    if not isinstance(body, dict):
        raise Refused(f"{where} is no mapping of {', '.join(valid)}")
    for name in sorted(body.keys() - {*valid, *optional}):
        raise Refused(f"{where} has a field {name!r}, which is not shared; valid: {', '.join([*valid, *optional])}")
    for name in sorted(set(valid) - body.keys()):
        raise Refused(f"{where} lacks its {name!r}")


# what names a person or a computer


def own_names() -> re.Pattern[str] | None:
    """Finds the names of this host and of whoever runs this; None where they tell nobody apart (``root``, ``localhost``)."""
    host = socket.gethostname()
    found = {host, host.split(".")[0], platform.node()}
    with suppress(Exception):  # a container's user may have no name
        found.add(getpass.getuser())
    with suppress(RuntimeError):
        found.add(Path.home().name)
    hardware = f"{cpu_name()} {gpu_name()} {platform.system()} {platform.machine()} cpu cuda mps".lower()
    names = sorted(n for n in found if len(n) > 2 and n.lower() not in _NOBODY and n.lower() not in hardware)
    return re.compile(rf"(?<![a-z0-9])(?:{'|'.join(map(re.escape, names))})(?![a-z0-9])", re.IGNORECASE) if names else None


def impersonal(body: Any, where: str, names: re.Pattern[str] | None = None) -> None:
    """Refuse texts with an absolute path, and with ``names`` those that name a host or a user."""
    for text in _strings(body):
        if _PATH.search(text):
            raise Refused(f"{where}: {text[:80]!r} holds an absolute path, which is not shared; reword it")
        if names and (found := names.search(text)):
            raise Refused(f"{where}: {text[:80]!r} names this host or its user ({found[0]}), which is not shared; reword it")


def _strings(body: Any, depth: int = 0) -> Iterator[str]:
    """Every text in a JSON value, names included."""
    if depth > NESTED:
        raise RecursionError
    if isinstance(body, str):
        yield body
    elif isinstance(body, (list, dict)):
        for part in body if isinstance(body, list) else [*body.keys(), *body.values()]:
            yield from _strings(part, depth + 1)


# lines


def checked_line(
    text: str, where: str, question: str, machine: str, protocols: Mapping[str, int], names: re.Pattern[str] | None
) -> dict[str, Any]:
    """A record or a retraction of ``machine`` in the file of ``question``; ``protocols``: of its experiments, the latest that is known."""
    line = parsed(text, where)
    try:
        same = isinstance(line, dict) and written(line) == text
    except (ValueError, RecursionError):
        same = False
    if not same:
        raise Refused(f"{where}: not as records are written (compact JSON, names in order, finite numbers)")
    if "retract" in line:
        check_fields(line, ("retract", "reason"), where)
        if not all(isinstance(v, str) and v.strip() for v in line.values()) or not _KEY.fullmatch(line["retract"]):
            raise Refused(f"{where}: a retraction has a key and a reason in words")
        impersonal(line, where, names)
        return dict(line)
    check_fields(line, sorted(FIELDS), where, ("failed", "arrays"))
    for name, value in line.items():
        if type(value) is not TYPES[name]:
            raise Refused(f"{where}: {name} is {str(value)[:40]!r}; expected {TYPES[name].__name__}")
    where = f"{where} (record {line['key'][:12]})"
    if line["question"] != question:
        raise Refused(f"{where}: a record of {line['question']!r} in the file of {question}")
    if line["key"] != (right := key(line["experiment"], line["setup"], line["seed"], line["protocol"])):
        raise Refused(f"{where}: its key does not match its setup (its key would be {right})")
    latest = protocols[choose(f"experiment in {where}", line["experiment"], protocols)]
    if not 1 <= line["protocol"] <= latest:
        raise Refused(f"{where}: protocol {line['protocol']} of {line['experiment']} is not known here; the ledger has {latest}")
    choose(f"profile in {where}", line["profile"], PROFILES)
    for name, value in line["metrics"].items():
        if not all(is_scalar(part) for part in leaves(value).values()):
            raise Refused(f"{where}: metric {name!r} is made of more than numbers, that 64 bits hold, and texts")
    arrays = line.get("arrays", ["–"])
    if not arrays or not all(isinstance(n, str) for n in arrays) or arrays != sorted(set(arrays)):
        raise Refused(f"{where}: arrays is {str(arrays)[:40]}; expected their names in order")
    _check_provenance(line["provenance"], machine, where)
    impersonal(line, where)
    impersonal([line["provenance"], line.get("failed")], where, names)  # where free text may stand; a setup may well say "adam"
    return dict(line)


def is_scalar(value: Any) -> bool:
    """A value that a metric may have: null, true or false, text, or a number that 64 bits hold."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    return abs(value) < 1 << 63 if whole else value is None or isinstance(value, (bool, float, str))


def _check_provenance(body: Mapping[str, Any], machine: str, where: str) -> None:
    check_fields(body, PROVENANCE, f"{where}: provenance", BESIDE)
    load = body.get("load", {})
    if not isinstance(load, dict) or not all(is_scalar(value) for value in load.values()):
        raise Refused(f"{where}: provenance.load is no mapping of numbers and words")
    if body["machine"] != machine:
        raise Refused(f"{where}: provenance.machine is {body['machine']!r} in the bundle of {machine!r}")
    try:
        if not _STARTED.fullmatch(body["started"]):
            raise ValueError
        datetime.fromisoformat(body["started"])
    except (TypeError, ValueError):
        raise Refused(f"{where}: provenance.started is {body['started']!r}; expected a time like 2026-11-22T15:32:24+00:00") from None
    if type(body["seconds"]) not in (int, float) or body["seconds"] < 0 or not isinstance(body["code"], str):
        raise Refused(f"{where}: provenance has odd seconds or code")


# arrays


def check_arrays(content: bytes, names: Iterable[str], where: str, limit: int) -> int:
    """Exactly these arrays, of numbers, loadable without pickle, in at most ``limit`` bytes; returns how many they take."""
    import numpy as np
    from numpy.lib import format as npy

    wanted = sorted(names)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as file:
            infos = file.infolist()
            if sorted(i.filename for i in infos) != sorted(f"{n}.npy" for n in wanted) or not all(_ARRAY.fullmatch(n) for n in wanted):
                raise Refused(f"{where}: holds {', '.join(i.filename for i in infos)[:80]}; its record names {', '.join(wanted)}")
            if (size := sum(info.file_size for info in infos)) > limit:
                raise Refused(f"{where}: unpacks to {size:,} bytes, {limit:,} are left of what a bundle may hold")
            for info in infos:
                with file.open(info) as array:
                    header = npy.read_array_header_1_0 if npy.read_magic(array) == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = header(array)
                    if dtype.hasobject or dtype.kind not in "biufc":
                        raise Refused(f"{where}: {info.filename} holds {dtype.name} objects; arrays hold numbers, no pickle is loaded")
                    if array.tell() + math.prod(shape) * dtype.itemsize != info.file_size or min(shape, default=0) < 0:
                        raise Refused(f"{where}: {info.filename} says it is {shape} of {dtype}, which does not fit its size")
        with np.load(io.BytesIO(content), allow_pickle=False) as loaded:
            for name in wanted:
                loaded[name]
    except Refused:
        raise
    except Exception as error:  # numpy reads a header as Python, and one that was made up breaks it in many ways
        raise Refused(f"{where}: not a whole file of arrays ({error})") from None
    return size


def same_arrays(a: bytes, b: bytes) -> bool:
    """Whether two files hold the same arrays, however they were compressed."""
    import numpy as np

    with np.load(io.BytesIO(a), allow_pickle=False) as one, np.load(io.BytesIO(b), allow_pickle=False) as other:
        if sorted(one.files) != sorted(other.files):
            return False
        return all(_bits(one[n]) == _bits(other[n]) for n in one.files)


def _bits(array: Any) -> tuple[Any, ...]:
    return array.dtype.str, array.shape, array.tobytes()
