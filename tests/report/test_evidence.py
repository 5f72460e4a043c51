from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cnnstudy.config import Refused, key
from cnnstudy.report import evidence


def record(n: int, experiment: str = "e", **more: object) -> evidence.Record:
    setup = {"n": n}
    return {
        "key": key(experiment, setup, 0), "question": "q99", "experiment": experiment, "setup": setup, "seed": 0, "protocol": 1,
        "profile": "quick", "metrics": {"value": n}, "provenance": {"seconds": 0.0, "code": "c"}, **more,
    }  # fmt: skip


def test_round_trip(tmp_path: Path) -> None:
    evidence.append(record(1), "m", tmp_path, {"curve": np.arange(3.0)})
    (found,) = evidence.read("m", "q99", tmp_path)
    assert found["metrics"] == {"value": 1}
    assert evidence.load_arrays(found, "m", tmp_path)["curve"].tolist() == [0, 1, 2]
    assert json.loads((tmp_path / "m" / "machine.json").read_text())["id"] == "m"


def _append_many(root: str, writer: int) -> None:
    for n in range(200):
        evidence.append(record(writer * 1000 + n), "m", Path(root))


def test_eight_processes_append_whole_lines(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(str(tmp_path), w)) for w in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = (tmp_path / "m" / "q99.jsonl").read_text().splitlines()
    assert len(lines) == 1600
    assert len({json.loads(line)["key"] for line in lines}) == 1600


def test_a_killed_writer_costs_at_most_its_line(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests/report'); import test_evidence as t\n"
        "from cnnstudy.report import evidence\n"
        "n = 0\n"
        "while True:\n"
        "    evidence.append(t.record(n), 'm', Path(sys.argv[1])); n += 1\n"
    )
    root = Path(__file__).parents[2]
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    path = tmp_path / "m" / "q99.jsonl"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (path.exists() and path.stat().st_size > 5000):
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    before = len(evidence.read("m", "q99", tmp_path))
    assert before > 5
    evidence.append(record(10**6), "m", tmp_path)
    assert len(evidence.read("m", "q99", tmp_path)) == before + 1


def test_a_torn_last_line_is_accepted_and_dropped_by_the_next_write(tmp_path: Path) -> None:
    evidence.append(record(1), "m", tmp_path)
    path = tmp_path / "m" / "q99.jsonl"
    path.write_bytes(path.read_bytes() + b'{"key": "torn')
    assert len(evidence.read("m", "q99", tmp_path)) == 1
    evidence.append(record(2), "m", tmp_path)
    assert [r["metrics"]["value"] for r in evidence.read("m", "q99", tmp_path)] == [1, 2]


def test_other_damage_is_named_by_file_and_line(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        evidence.append(record(n), "m", tmp_path)
    path = tmp_path / "m" / "q99.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:30], lines[2]]) + "\n")
    with pytest.raises(Refused, match=r"m/q99.jsonl:2: damaged record line"):
        evidence.read("m", "q99", tmp_path)


def test_a_key_that_does_not_match_its_setup_is_refused(tmp_path: Path) -> None:
    evidence.append(record(1), "m", tmp_path)
    path = tmp_path / "m" / "q99.jsonl"
    path.write_text(path.read_text().replace('"n":1', '"n":7'))
    with pytest.raises(Refused, match=r"m/q99.jsonl:1: key .* does not match its setup"):
        evidence.read("m", "q99", tmp_path)
    with pytest.raises(Refused, match="does not match"):
        evidence.append(record(1) | {"key": "0" * 12}, "m", tmp_path)


def test_a_record_without_a_field_is_refused(tmp_path: Path) -> None:
    broken = record(1)
    del broken["provenance"]
    with pytest.raises(Refused, match="lacks provenance"):
        evidence.append(broken, "m", tmp_path)


def test_retraction_and_measuring_again(tmp_path: Path) -> None:
    evidence.append(record(1), "m", tmp_path)
    evidence.append(record(2), "m", tmp_path)
    with pytest.raises(Refused, match="needs a reason"):
        evidence.retract(record(1)["key"], " ", "m", "q99", tmp_path)
    evidence.retract(record(1)["key"], "the fan had stopped", "m", "q99", tmp_path)
    assert [r["metrics"]["value"] for r in evidence.read("m", "q99", tmp_path)] == [2]
    with pytest.raises(Refused, match="no record"):
        evidence.retract(record(1)["key"], "again", "m", "q99", tmp_path)
    evidence.append(record(1, metrics={"value": 11}), "m", tmp_path)
    assert [r["metrics"]["value"] for r in evidence.read("m", "q99", tmp_path)] == [2, 11]
    assert len((tmp_path / "m" / "q99.jsonl").read_text().splitlines()) == 4  # nothing was deleted


def test_the_later_of_two_records_counts(tmp_path: Path) -> None:
    evidence.append(record(1), "m", tmp_path)
    evidence.append(record(1, metrics={"value": 5}), "m", tmp_path)
    assert [r["metrics"]["value"] for r in evidence.read("m", "q99", tmp_path)] == [5]


def test_found_whichever_question_measured_it(tmp_path: Path) -> None:
    evidence.append(record(1, question="q98"), "m", tmp_path)
    assert evidence.find([record(1)["key"]], "m", tmp_path)[record(1)["key"]]["question"] == "q98"


def test_reference_machines_come_first(tmp_path: Path) -> None:
    for machine in ("a", "b", "c"):
        evidence.append(record(1), machine, tmp_path)
    (tmp_path / "reference.json").write_text('{"machines": ["c", "gone"]}')
    assert evidence.reference(tmp_path) == ["c", "a", "b"]


def test_several_lines_are_one_write_and_one_fsync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"torn')
    evidence.write_line(path, {"b": 1, "a": 2}, {"c": 3})
    assert path.read_text() == '{"a":2,"b":1}\n{"c":3}\n' and len(synced) == 1
