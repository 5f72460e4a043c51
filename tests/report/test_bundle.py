"""Bundles: what is packed comes back whole; what was tampered with is refused for its own reason, and nothing is written."""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import LEDGER

from cnnstudy import runtime
from cnnstudy.config import Refused, key
from cnnstudy.report import bundle, evidence, history, intake

Members = dict[str, bytes]


def record(n: int, value: float, minute: int = 0, experiment: str = "squares", question: str = "q99", **more: Any) -> evidence.Record:
    setup = {"n": n}
    provenance = {
        "machine": "m-1", "device": "cpu", "threads": 1, "python": "3.11.7", "torch": "2.13.0", "commit": "0123456789ab", "dirty": False,
        "code": "c0de", "started": f"2026-11-22T15:{minute:02d}:00+00:00", "seconds": 0.5,
    }  # fmt: skip
    made = {
        "key": key(experiment, setup, 0), "question": question, "experiment": experiment, "setup": setup, "seed": 0, "protocol": 1,
        "profile": "quick", "metrics": {"square": value}, "provenance": provenance,
    }  # fmt: skip
    return made | more


@pytest.fixture(autouse=True)
def ledgers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data/claims").mkdir(parents=True)
    for question in ("q98", "q99"):
        (tmp_path / f"data/claims/{question}.yaml").write_text(LEDGER.replace("q99", question))
    monkeypatch.setattr("cnnstudy.report.claims.ROOT", tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "alices-laptop.example.org")
    monkeypatch.setattr("getpass.getuser", lambda: "alice")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Five records, one measured again, one retracted, with arrays; in two questions."""
    root = tmp_path / "records"
    evidence.append(record(1, 1), "m-1", root, {"curve": np.arange(3.0)})
    evidence.append(record(2, 5), "m-1", root)
    evidence.retract(record(2, 5)["key"], "a slip of the pen", "m-1", "q99", root)
    evidence.append(record(2, 4, minute=1), "m-1", root)
    evidence.append(record(1, 1, minute=2), "m-1", root, {"curve": np.arange(4.0), "map": np.ones((2, 2), np.float16)})
    evidence.append(record(7, 0.25, experiment="noise", question="q98"), "m-1", root)
    return root


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and not p.name.endswith(".lock")}


def members_of(content: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        return {name: file.read(name) for name in file.namelist()}


def resealed(members: Members) -> bytes:
    """Members with a manifest that fits them: what a careful forger would send."""
    manifest = json.loads(members["manifest.json"])
    others = {n: c for n, c in members.items() if n != "manifest.json"}
    manifest["members"] = {n: hashlib.sha256(c).hexdigest() for n, c in others.items()}
    return bundle.zipped(others | {"manifest.json": json.dumps(manifest).encode()})


def edited(content: bytes, change: Callable[[dict[str, Any]], None], name: str = "q99.jsonl", line: int = 0) -> bytes:
    """A bundle with one line changed, and its manifest made to fit."""
    members = members_of(content)
    lines = members[name].decode().splitlines()
    body = json.loads(lines[line])
    change(body)
    lines[line] = history.written(body)
    return resealed(members | {name: ("\n".join(lines) + "\n").encode()})


def refused(content: bytes | Path, words: str, root: Path) -> None:
    """A merge is refused in one line with these words, and nothing is written."""
    before = tree(root) if root.exists() else None
    with pytest.raises(Refused, match=words) as caught:
        bundle.merge(content, root)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert (tree(root) if root.exists() else None) == before


def invalid(content: bytes | Path, words: str, store: Path) -> None:
    """Refused everywhere, also where nothing is there to contradict."""
    refused(content, words, store.parent / "empty")
    with pytest.raises(Refused, match=words):
        bundle.check(content)


# what is packed comes back


def test_a_whole_history_comes_back_to_the_byte_and_twice_is_once(store: Path, tmp_path: Path) -> None:
    (store / "m-1" / "runs.jsonl").write_text('{"diary": "of alice"}\n')
    packed = bundle.pack("m-1", tmp_path / "m.zip", root=store)
    assert str(packed) == "5 records, 1 retraction, 1 file of arrays of m-1 (q98, q99)"
    other = tmp_path / "other"
    summary = bundle.merge(tmp_path / "m.zip", other)
    assert str(summary) == "m-1: 5 records, 1 retraction, 1 file of arrays added; 0 lines known already"
    (store / "m-1" / "runs.jsonl").unlink()
    whole = tree(store)
    assert tree(other) == whole and len(whole) == 4
    assert [r["metrics"] for r in evidence.read("m-1", "q99", other)] == [{"square": 4}, {"square": 1}]
    assert evidence.load_arrays(evidence.read("m-1", "q99", other)[1], "m-1", other)["map"].dtype == np.float16
    again = bundle.merge(tmp_path / "m.zip", other)
    assert (again.records, again.retractions, again.arrays, again.known, again.older) == (0, 0, 0, 6, 0)
    assert tree(other) == whole
    assert bundle.merge(tmp_path / "m.zip", store).known == 6 and tree(store) == whole  # one's own bundle adds nothing


def test_same_records_give_the_same_bytes(store: Path) -> None:
    first = bundle.pack_bytes("m-1", root=store)
    for path in store.rglob("*"):
        path.touch()
    assert bundle.pack_bytes("m-1", root=store) == first
    with zipfile.ZipFile(io.BytesIO(first)) as file:
        assert {info.date_time[0] for info in file.infolist()} == {1980}
        assert file.namelist() == sorted(file.namelist())


def test_some_questions_or_keys(store: Path, tmp_path: Path) -> None:
    assert list(bundle.check(bundle.pack_bytes("m-1", ["q98"], root=store)).lines) == ["q98"]
    one = bundle.check(bundle.pack_bytes("m-1", keys={record(2, 4)["key"]}, root=store))
    assert (one.records, one.retractions, len(one.arrays)) == (2, 1, 0)
    with pytest.raises(Refused, match="unknown question with records of m-1 'q97' .*valid: q98, q99"):
        bundle.pack_bytes("m-1", ["q97"], root=store)
    with pytest.raises(Refused, match="unknown machine 'm-2'.*valid: m-1"):
        bundle.pack_bytes("m-2", root=store)
    with pytest.raises(Refused, match="no record 0{12} of m-1"):
        bundle.pack_bytes("m-1", keys=["0" * 12, record(2, 4)["key"]], root=store)
    with pytest.raises(Refused, match="a folder that exists"):
        bundle.pack("m-1", tmp_path / "no" / "m.zip", root=store)


def test_records_of_workers_come_together_in_memory(tmp_path: Path) -> None:
    """Two working copies of one machine, as in a run on many: each sends what it measured, the caller has all of it once."""
    for worker, n in (("a", 1), ("b", 2)):
        evidence.append(record(n, n * n), "m-1", tmp_path / worker, {"curve": np.arange(float(n))})
        sent = bundle.pack_bytes("m-1", keys=[record(n, 0)["key"]], root=tmp_path / worker)
        for _ in range(2):  # an answer may arrive twice
            bundle.merge(sent, tmp_path / "caller")
    assert [r["setup"]["n"] for r in evidence.read("m-1", "q99", tmp_path / "caller")] == [1, 2]
    assert len((tmp_path / "caller/m-1/q99.jsonl").read_text().splitlines()) == 2


def test_what_is_no_record_any_more_stays_at_home(store: Path) -> None:
    evidence.append(record(3, 9, experiment="dropped"), "m-1", store)
    evidence.retract(record(3, 9, experiment="dropped")["key"], "of no use", "m-1", "q99", store)
    with open(store / "m-1" / "q99.jsonl", "a") as file:
        file.write('{"experiment":"squ')  # its writer was killed
    packed = bundle.check(bundle.pack_bytes("m-1", root=store))
    assert (packed.records, packed.retractions) == (5, 1)


def test_a_store_without_its_arrays_is_not_packed(store: Path) -> None:
    next((store / "m-1" / "arrays").iterdir()).unlink()
    with pytest.raises(Refused, match=r"m-1/arrays/.*npz is missing"):
        bundle.pack_bytes("m-1", root=store)
    (store / "m-1" / "machine.json").unlink()
    with pytest.raises(Refused, match=r"m-1/machine.json is missing"):
        bundle.pack_bytes("m-1", root=store)


# what is older, what is known


def test_an_older_record_does_not_count_instead_of_a_later_one(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    evidence.append(record(1, 1), "m-1", old, {"curve": np.zeros(2)})
    evidence.retract(record(1, 1)["key"], "too warm", "m-1", "q99", old)
    evidence.append(record(1, 2, minute=1), "m-1", new, {"curve": np.ones(2)})
    before = tree(new)
    summary = bundle.merge(bundle.pack_bytes("m-1", root=old), new)
    assert (summary.records, summary.retractions, summary.arrays, summary.older) == (0, 0, 0, 2) and tree(new) == before
    assert "2 older than what counts here, left out" in str(summary)
    bundle.merge(bundle.pack_bytes("m-1", root=new), old)  # the other way round it is added, and counts
    (counts,) = evidence.read("m-1", "q99", old)
    assert counts["metrics"] == {"square": 2} and evidence.load_arrays(counts, "m-1", old)["curve"].tolist() == [1, 1]


def test_a_retraction_alone_is_news(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    bundle.merge(bundle.pack_bytes("m-1", root=store), other)
    for _ in range(2):
        if len(evidence.read("m-1", "q98", store)):
            evidence.retract(record(7, 0, experiment="noise")["key"], "the fan had stopped", "m-1", "q98", store)
        summary = bundle.merge(bundle.pack_bytes("m-1", root=store), other)
    assert evidence.read("m-1", "q98", other) == [] and summary.known == 7
    assert len((other / "m-1/q98.jsonl").read_text().splitlines()) == 2


def test_a_merge_that_was_killed_is_finished_by_merging_again(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, other, written = bundle.pack_bytes("m-1", root=store), tmp_path / "other", []

    def dying(path: Path, *lines: Any) -> None:
        some = lines[: 3 - len(written)]
        written.extend(some)
        original(path, *some)
        if len(written) == 3:
            with open(path, "ab") as file:
                file.write(b'{"experiment":"half a li')
            raise KeyboardInterrupt

    original = evidence.write_line
    monkeypatch.setattr(evidence, "write_line", dying)
    with pytest.raises(KeyboardInterrupt):
        bundle.merge(content, other)
    monkeypatch.setattr(evidence, "write_line", original)
    assert bundle.merge(content, other).known == 3
    assert tree(other) == tree(store)


def _merge(root: str, content: bytes) -> None:
    claims_root = Path(root).parent / "data" / "claims"
    bundle.claims.claims_root = lambda: claims_root  # type: ignore[attr-defined]
    bundle.merge(content, Path(root))


def _append(root: str, start: int) -> None:
    for n in range(start, start + 40):
        evidence.append(record(n, n), "m-1", Path(root))


def test_safe_while_others_append_and_merge(store: Path) -> None:
    content, target = bundle.pack_bytes("m-1", root=store), store.parent / "target"
    context = multiprocessing.get_context("spawn")
    work = [context.Process(target=_merge, args=(str(target), content)) for _ in range(3)]
    work += [context.Process(target=_append, args=(str(target), start)) for start in (1000, 2000)]
    for one in work:
        one.start()
    for one in work:
        one.join()
    assert [one.exitcode for one in work] == [0] * 5
    lines = [line for q in ("q98", "q99") for line in (target / f"m-1/{q}.jsonl").read_text().splitlines()]
    assert len(lines) == 6 + 80 == len(set(lines))
    assert len(evidence.read("m-1", None, target)) == 3 + 80


# what contradicts


def test_an_altered_metric_is_refused_even_with_a_manifest_that_fits(store: Path) -> None:
    content = bundle.pack_bytes("m-1", root=store)
    forged = edited(content, lambda r: r["metrics"].update(square=123456), line=3)
    bundle.check(forged)  # by itself nothing is wrong with it
    refused(forged, r'record \w{12} of q99, begun 2026-11-22T15:01:00.*contradicts.*"square": 4.*there.*123456.*in the bundle', store)
    refused(edited(content, lambda r: r.update(profile="full"), line=3), 'contradicts .*profile is .*"quick".*"full"', store)


def test_one_contradiction_among_many_news_writes_nothing(store: Path) -> None:
    evidence.append(record(8, 64, experiment="noise", question="q98"), "m-1", store)
    content = bundle.pack_bytes("m-1", root=store)
    (store / "m-1/q98.jsonl").unlink()
    refused(edited(content, lambda r: r["metrics"].update(square=6), line=0), "contradicts", store)


def test_altered_arrays_of_a_known_record_are_refused(store: Path) -> None:
    members = members_of(bundle.pack_bytes("m-1", root=store))
    (name,) = [n for n in members if n.startswith("arrays/")]
    buffer = io.BytesIO()
    np.savez(buffer, curve=np.arange(4.0), map=np.ones((2, 2), np.float16))  # the same, compressed otherwise
    assert bundle.merge(resealed(members | {name: buffer.getvalue()}), store).known == 6
    buffer = io.BytesIO()
    np.savez(buffer, curve=np.arange(4.0) + 1e-9, map=np.ones((2, 2), np.float16))
    refused(resealed(members | {name: buffer.getvalue()}), "holds other arrays than the one here", store)


def test_a_bundle_that_contradicts_itself_is_refused(store: Path) -> None:
    content = bundle.pack_bytes("m-1", root=store)
    invalid(
        edited(content, lambda r: r["provenance"].update(started="2026-11-22T15:01:00+00:00"), line=1),
        "contradicts one that is there",
        store,
    )
    invalid(edited(content, lambda r: r.update(arrays=["../x"]), line=4), r"holds curve.npy, map.npy; its record names \.\./x", store)
    invalid(edited(content, lambda r: r.update(retract="0" * 12), line=2), "retracts 0{12}, of which it has no record", store)


def test_another_machine_of_the_same_name_is_refused(store: Path, tmp_path: Path) -> None:
    content = bundle.pack_bytes("m-1", root=store)
    describe = json.loads((store / "m-1/machine.json").read_text())
    (store / "m-1/machine.json").write_text(json.dumps(describe | {"cpu": "Babbage"}))
    refused(content, "another machine is called m-1 here: its cpu is 'Babbage'", store)
    (store / "m-1/machine.json").write_text(json.dumps(describe | {"memory_gib": 1}))
    assert bundle.merge(content, store).known == 6


# what was tampered with


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r["setup"].update(n=3), "q99.jsonl:1 .*: its key does not match its setup"),
        (lambda r: r.update(key=key("squares", {"n": 1}, 0, 2), protocol=2), "protocol 2 of squares is not known here; the ledger has 1"),
        (lambda r: r.update(key=key("squares", {"n": 1}, 0, 0), protocol=0), "protocol 0 of squares"),
        (
            lambda r: r.update(key=key("cubes", {"n": 1}, 0), experiment="cubes"),
            "unknown experiment in q99.jsonl:1.*'cubes'.*squares, noise",
        ),
        (lambda r: r.update(question="q98"), "a record of 'q98' in the file of q99"),
        (lambda r: r.update(profile="huge"), "unknown profile .*'huge'"),
        (lambda r: r.update(seed=True), "seed is 'True'; expected int"),
        (lambda r: r.update(seed="0"), "seed is '0'; expected int"),
        (lambda r: r.update(metrics=[1]), "metrics is .* expected dict"),
        (lambda r: r.update(metrics={"a": [[10**40]]}), "metric 'a' is made of more than"),
        (lambda r: r.update(metrics={"a": 10**40}), "metric 'a' is made of more than"),
        (lambda r: r.update(score=1), "q99.jsonl:1 has a field 'score', which is not shared"),
        (lambda r: r.pop("seed"), "q99.jsonl:1 lacks its 'seed'"),
        (lambda r: r.update(arrays=[]), "arrays is .*expected their names"),
        (lambda r: r["provenance"].update(machine="m-2"), "provenance.machine is 'm-2' in the bundle of 'm-1'"),
        (lambda r: r["provenance"].update(host="x"), "provenance has a field 'host', which is not shared"),
        (lambda r: r["provenance"].update(user="x"), "provenance has a field 'user', which is not shared"),
        (lambda r: r["provenance"].update(load={"others": [0.1]}), "provenance.load is no mapping"),
        (lambda r: r["provenance"].update(load=[0.1]), "provenance.load is no mapping"),
        (lambda r: r["provenance"].update(load={"by": "alice"}), r"names this host or its user \(alice\)"),
        (lambda r: r["provenance"].pop("code"), "provenance lacks its 'code'"),
        (lambda r: r["provenance"].update(started="yesterday"), "started is 'yesterday'; expected a time"),
        (lambda r: r["provenance"].update(started="2026-11-22T15:32:24+02:00"), "expected a time"),  # as text not in the order of time
        (lambda r: r["provenance"].update(started="2026-13-41T15:32:24+00:00"), "expected a time"),
        (lambda r: r["provenance"].update(seconds=-1), "odd seconds"),
        (lambda r: r["provenance"].update(device="gpu of Alice"), r"q99.jsonl:1.*names this host or its user \(Alice\)"),
        (lambda r: r.update(failed="no space left on alices-laptop"), r"names this host or its user \(alices-laptop\)"),
        (lambda r: r["metrics"].update(weights="read /home/bob/weights.pt"), "holds an absolute path"),
        (lambda r: r["metrics"].update({"C:\\Users\\bob": 1}), "holds an absolute path"),
        (lambda r: r.update(failed="cannot read ~bob/data/x"), "holds an absolute path"),
    ],
)
def test_a_line_that_was_tampered_with(store: Path, change: Callable[[dict[str, Any]], None], words: str) -> None:
    invalid(edited(bundle.pack_bytes("m-1", root=store), change), words, store)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}', "not as records are written"),
        ('{"retract":"000000000000","reason":"x","by":"alice"}', "not as records are written"),
        ('{"by":"x","reason":"x","retract":"000000000000"}', "has a field 'by'"),
        ('{"reason":" ","retract":"000000000000"}', "a key and a reason in words"),
        ('{"reason":"see /home/bob/notes/1","retract":"000000000000"}', "absolute path"),
        ('{"reason":"alice said so","retract":"000000000000"}', "names this host"),
        ('{"metrics":NaN}', "finite numbers"),
        ('{"metrics":', "q99.jsonl:7: not JSON"),
        ("", "q99.jsonl:7: not JSON"),
        ("[" * 100_000, "not JSON|nested"),
        ("[]", "not as records are written"),
    ],
)
def test_a_line_that_was_added(store: Path, text: str, words: str) -> None:
    members = members_of(bundle.pack_bytes("m-1", root=store))
    lines = members["q99.jsonl"] + (history.written(record(9, 81)) + "\n" + text + "\n").encode()
    invalid(resealed(members | {"q99.jsonl": lines}), words, store)


def test_a_line_that_is_nested_without_end(store: Path) -> None:
    content = bundle.pack_bytes("m-1", root=store)
    deep: dict[str, Any] = {}
    for _ in range(100):
        deep = {"a": deep}
    forged = edited(content, lambda r: r.update(setup=deep, key=key("squares", deep, 0)))
    invalid(forged, "bundle: something in it is nested too deeply", store)


def without(members: Members, name: str) -> Members:
    return {n: c for n, c in members.items() if n != name}


def manifest_with(m: Members, **more: Any) -> Members:
    return m | {"manifest.json": json.dumps(json.loads(m["manifest.json"]) | more).encode()}


def array_member(members: Members) -> str:
    return next(n for n in members if n.startswith("arrays/"))


def npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def forged_header(shape: str) -> bytes:
    """An npz whose one array says that it is far larger than it is."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in ("curve", "map"):
            text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
            file.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + b"\0" * 8)
    return buffer.getvalue()


def machine_with(members: Members, **more: Any) -> Members:
    return members | {"machine.json": json.dumps(json.loads(members["machine.json"]) | more).encode()}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: bundle.zipped(m | {"q99.jsonl": m["q99.jsonl"].replace(b'"square":4', b'"square":5')}), "q99.jsonl is not what mani"),
        (lambda m: bundle.zipped(without(m, "q99.jsonl") | {"q97.jsonl": m["q99.jsonl"]}), "q97.jsonl is not in manifest"),
        (lambda m: resealed(without(m, "q99.jsonl") | {"q97.jsonl": m["q99.jsonl"]}), "unknown question 'q97'"),
        (lambda m: resealed(without(m, "q99.jsonl") | {"q98.jsonl": m["q99.jsonl"]}), "a record of 'q99' in the file of q98"),
        (lambda m: bundle.zipped(m | {"q97.jsonl": b""}), "q97.jsonl is not in manifest.json"),
        (lambda m: resealed(without(m, "q98.jsonl")), "counts otherwise than there is: 4 records, 1 retraction, 1 file of arrays"),
        (lambda m: bundle.zipped(without(m, "manifest.json")), "it has no manifest.json"),
        (lambda m: bundle.zipped(without(m, "machine.json")), "it has no machine.json"),
        (lambda m: bundle.zipped(m | {"../x": b""}), "member '../x' leads out of the bundle"),
        (lambda m: bundle.zipped(m | {"/etc/x": b""}), "member '/etc/x' leads out"),
        (lambda m: bundle.zipped(m | {"arrays/../../x.npz": b""}), "leads out"),
        (lambda m: bundle.zipped(m | {"C:x": b""}), "leads out"),
        (lambda m: bundle.zipped(m | {"runs.jsonl": b""}), "member 'runs.jsonl' is of no bundle; valid: manifest.json"),
        (lambda m: bundle.zipped(m | {"arrays/x.npz": b""}), "is of no bundle"),
        (lambda m: bundle.zipped(manifest_with(m, format=2)), "format is 2; this version of cnnstudy reads format 1"),
        (lambda m: bundle.zipped(manifest_with(m, host="x")), "manifest.json has a field 'host'"),
        (lambda m: bundle.zipped(manifest_with(m, members=[])), "members, package or commit"),
        (lambda m: bundle.zipped(manifest_with(m, machine="../m")), "machine is '../m'; expected small letters"),
        (lambda m: bundle.zipped(manifest_with(m, machine="M-1")), "expected small letters"),
        (lambda m: bundle.zipped(manifest_with(m, machine="reference")), "expected small letters"),
        (lambda m: bundle.zipped(manifest_with(m, machine="m-2")), "machine.json describes 'm-1', manifest.json 'm-2'"),
        (lambda m: bundle.zipped(m | {"manifest.json": b"[]"}), "manifest.json is no mapping"),
        (lambda m: bundle.zipped(m | {"manifest.json": b"\xff"}), "manifest.json: not JSON"),
        (lambda m: resealed(machine_with(m, id="m-2")), "machine.json describes 'm-2'"),
        (lambda m: resealed(machine_with(m, hostname="x")), "machine.json has a field 'hostname', which is not shared; valid: id, cpu"),
        (lambda m: resealed(machine_with(m, cpu="the one under Alice's desk")), "machine.json: .*names this host or its user"),
        (lambda m: resealed(machine_with(m, os={"a": 1})), "machine.json holds more than"),
        (lambda m: resealed(without(m, array_member(m))), "npz is not there, and a record names it"),
        (lambda m: resealed(m | {f"arrays/{'0' * 12}.npz": npz(a=[1])}), "arrays/0{12}.npz belongs to no record"),
        (lambda m: resealed(m | {array_member(m): npz(curve=[1.0])}), "holds curve.npy; its record names curve, map"),
        (lambda m: resealed(m | {array_member(m): npz(curve=[1.0], map=[1], more=[1])}), "holds .*more.npy"),
        (lambda m: resealed(m | {array_member(m): npz(curve=[1.0], map=np.array([object()]))}), "holds object objects; .* no pickle"),
        (lambda m: resealed(m | {array_member(m): npz(curve=[1.0], map=["alice"])}), "arrays hold numbers"),
        (lambda m: resealed(m | {array_member(m): b"PK"}), "not a whole file of arrays"),
        (lambda m: resealed(m | {array_member(m): forged_header("(1000000000000,)")}), "says it is .* which does not fit its size"),
        (lambda m: resealed(m | {array_member(m): forged_header("(-1,)")}), "does not fit"),
        (lambda m: resealed(m | {array_member(m): forged_header("__import__('os')")}), "not a whole file of arrays"),
        (lambda m: resealed(m | {array_member(m): forged_header("(1")}), "not a whole file of arrays"),
        (lambda m: resealed(m | {array_member(m): forged_header("(1,), 7: 8")}), "not a whole file of arrays"),
        (lambda m: resealed(m | {array_member(m): forged_header("(1,), 'descr': ('<f8',)")}), "not a whole file of arrays"),
    ],
)  # fmt: skip
def test_a_bundle_that_was_tampered_with(store: Path, change: Callable[[Members], bytes], words: str) -> None:
    forged = change(members_of(bundle.pack_bytes("m-1", root=store)))
    invalid(forged, words, store)


def test_links_doubles_bombs_and_torn_archives(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = bundle.pack_bytes("m-1", root=store)
    members = members_of(content)

    def with_member(name: str, body: bytes, mode: int = 0) -> bytes:
        buffer = io.BytesIO(bundle.zipped(without(members, "machine.json")))
        with zipfile.ZipFile(buffer, "a") as file:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, body, compress_type=zipfile.ZIP_DEFLATED)
        return buffer.getvalue()

    invalid(with_member("machine.json", b"/etc/passwd", stat.S_IFLNK | 0o777), "member 'machine.json' is a link or a device", store)
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = with_member("q99.jsonl", b"")
    invalid(twice, "two have one name", store)
    invalid(with_member("machine.json", b"\0" * (1 << 27)), "unpacks to 134,.* bytes; a bundle has at most", store)
    for end in (0, 1, 100, len(content) // 2, len(content) - 1):
        invalid(content[:end], "not a whole zip archive", store)
    (tmp_path / "m.zip").write_bytes(content[:-30])
    invalid(tmp_path / "m.zip", "m.zip: not a whole zip archive", store)
    invalid(tmp_path / "none.zip", "none.zip: there is no such file", store)
    invalid(tmp_path, "there is no such file", store)
    monkeypatch.setattr(bundle, "LIMIT", 100)
    (tmp_path / "m.zip").write_bytes(content)
    invalid(tmp_path / "m.zip", "it has .* bytes; a bundle has at most 100", store)


def test_arrays_that_unpack_to_more_than_a_bundle_may_hold(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = members_of(bundle.pack_bytes("m-1", root=store))
    small = resealed(members | {array_member(members): npz(curve=np.zeros(100_000), map=[1])})
    bundle.check(small)
    monkeypatch.setattr(bundle, "LIMIT", 100_000)
    invalid(small, "unpacks to 800,.* bytes, 100,000 are left", store)


def test_any_byte_that_is_hit_is_noticed(store: Path) -> None:
    """Of 300 random hits none raises anything but Refused, and none changes what is read."""
    content = bundle.pack_bytes("m-1", root=store)
    whole, chance, found = bundle.check(content), random.Random(0), 0
    for _ in range(300):
        hit = bytearray(content)
        hit[chance.randrange(len(hit))] ^= 1 << chance.randrange(8)
        try:
            assert bundle.check(bytes(hit)) == whole  # a byte of no meaning, e.g. a member's date
        except Refused:
            found += 1
    assert found > 200


# what names nobody passes


def test_names_that_many_have_and_setups_pass(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "localhost")
    monkeypatch.setattr("platform.node", lambda: "epyc")
    monkeypatch.setattr("getpass.getuser", lambda: "adam")
    monkeypatch.setattr(intake, "cpu_name", lambda: "AMD EPYC")
    setup = {"optimizer": "adam", "ratio": "a/b or (c/d)/e", "source": "https://example.org/x/y", "share": "1/2/3"}
    evidence.append(record(1, 1) | {"setup": setup, "key": key("squares", setup, 0)}, "m-1", store)
    evidence.retract(record(2, 4)["key"], "localhost was an AMD EPYC/Milan 50/50 mix", "m-1", "q99", store)
    assert bundle.check(bundle.pack_bytes("m-1", root=store)).retractions == 2


def test_the_load_while_something_was_timed_is_shared(store: Path) -> None:
    made = record(3, 9)
    made["provenance"]["load"] = {"samples": 12, "others": 0.013, "mhz": 2500, "disturbed": False, "gpu_slowed": "power cap"}
    evidence.append(made, "m-1", store)
    assert bundle.check(bundle.pack_bytes("m-1", ["q99"], root=store)).lines["q99"][-1] == made


def test_what_names_this_host_does_not_leave_it(store: Path) -> None:
    evidence.append(record(1, 0, minute=9, failed="alices-laptop ran hot"), "m-1", store)
    with pytest.raises(Refused, match=r"q99.jsonl:6 .*names this host or its user \(alices-laptop\)"):
        bundle.pack_bytes("m-1", root=store)
    assert bundle.check(bundle.pack_bytes("m-1", ["q98"], root=store)).records == 1


def test_the_fields_that_are_shared_are_those_that_are_recorded() -> None:
    """A new field of provenance is a decision: add it to ``intake.PROVENANCE`` if it names nobody."""
    assert set(runtime.provenance("c", "now", 1.0)) == set(intake.PROVENANCE)
    assert {*evidence.FIELDS, "failed", "arrays"} == set(intake.TYPES)


def test_a_list_for_each_epoch_travels_too(store: Path, tmp_path: Path) -> None:
    evidence.append(record(9, 1, metrics={"ratios_by_epoch": [[0.5, 1.0, None], [0.25, 2, 3]]}), "m-1", store)
    assert bundle.merge(bundle.pack_bytes("m-1", root=store), tmp_path / "other").records == 6
    huge = edited(bundle.pack_bytes("m-1", root=store), lambda line: line["metrics"].update(ratios_by_epoch=[[1 << 70]]), line=-1)
    invalid(huge, "ratios_by_epoch' is made of more than numbers", store)
