from __future__ import annotations

from pathlib import Path

import pytest

from cnnstudy.config import Refused, key
from cnnstudy.report import evidence, sentinels
from cnnstudy.report.claims import load, questions


def record(params: int) -> evidence.Record:
    question, experiment = next((q, n) for q in questions() for n, e in load(q).experiments.items() if e.kind == "exact")
    return {
        "key": key(experiment, {"n": 1}, 0), "question": question, "experiment": experiment, "setup": {"n": 1}, "seed": 0, "protocol": 1,
        "profile": "quick", "metrics": {"params": params, "norm": 0.1 * params}, "provenance": {"seconds": 0.0, "code": "c"},
    }  # fmt: skip


def test_agreement_difference_and_nothing_in_common(tmp_path: Path) -> None:
    book, same, other, empty = (tmp_path / name for name in ("book", "same", "other", "empty"))
    evidence.append(record(7), "reference", book)
    evidence.append(record(7), "mine", same)
    evidence.append(record(8), "mine", other)
    assert list(sentinels.differences(same, book)) == []
    (line,) = sentinels.differences(other, book)  # the real number differs too, and does not count
    assert "params is 8, the book has 7" in line
    with pytest.raises(Refused, match="nothing|no exact record"):
        list(sentinels.differences(empty, book))
