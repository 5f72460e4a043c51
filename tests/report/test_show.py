from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from cnnstudy.config import Refused
from cnnstudy.report import show


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[dict[str, Any], dict[str, Any]]]]:
    outputs: list[tuple[dict[str, Any], dict[str, Any]]] = []
    monkeypatch.setattr(show, "_emit", lambda data, metadata=None: outputs.append((dict(data), dict(metadata or {}))))
    yield outputs
    plt.close("all")


def test_a_number_with_commas_is_not_glued_as_text() -> None:
    with pytest.raises(Refused, match=r"images='10,000'.*list of numbers.*`images:,`"):
        show.glue(images="10,000")
    show.glue(images="10,000 images", settings="8, 16 and 24", plain="0.50")


def test_a_figure_carries_alt_caption_and_name_and_is_the_same_twice(shown: list) -> None:
    for _ in range(2):
        fig, ax = plt.subplots()
        ax.plot([1, 2])
        show.figure(fig, "fig-q99-line", alt="A line rises.", caption="A line. n = 1.")
    (one, about), (two, _) = shown
    assert one["image/png"] == two["image/png"] and one["text/plain"] == "A line rises."
    assert about["image/png"] == {"alt": "A line rises.", "caption": "A line. n = 1.", "name": "fig-q99-line"}


def test_a_figure_without_words_is_refused() -> None:
    with pytest.raises(Refused, match="must not be empty"):
        show.figure(plt.figure(), "fig-x", alt=" ", caption="c")
    plt.close("all")


def test_a_table_in_three_forms(shown: list) -> None:
    frame = pd.DataFrame({"a_b": [1.234, None], "c": ["x|y", "<b>"]}, index=pd.Index(["r*1", "r2"], name="row"))
    show.table(frame, "tbl-x", "Caption.", {"a_b": "{:.1f}"})
    data = shown[0][0]
    assert data["text/markdown"].splitlines()[:2] == ["```{list-table} Caption.", ":name: tbl-x"]
    assert (
        "r\\*1" in data["text/markdown"]
        and "x\\|y" in data["text/markdown"]
        and "  - 1.2" in data["text/markdown"]
        and "  - –" in data["text/markdown"]
    )
    assert "&lt;b&gt;" in data["text/html"] and "<b>" not in data["text/html"]
    with pytest.raises(Refused, match="no column 'z'.*a_b, c"):
        show.table(frame, "tbl-x", "Caption.", {"z": "{}"})


def test_glue_is_what_the_site_reads(shown: list) -> None:
    show.glue(gap=0.5, word="mixed")
    assert [d for d, _ in shown] == [
        {"application/papermill.record/text/plain": "0.5"},
        {"application/papermill.record/text/plain": "mixed"},
    ]
    assert shown[0][1]["scrapbook"] == {"name": "gap", "mime_prefix": "application/papermill.record/"}


def test_power() -> None:
    assert [show.power(x) for x in (6.2, -3.4, 18.0)] == ["10⁶", "10⁻³", "10¹⁸"]


def test_source_tells_n_profile_and_machine() -> None:
    frame = pd.DataFrame({"seed": [0, 1, 0, 1], "machine": "m", "profile": "standard"})
    assert show.source(frame) == "4 measurements, 2 seeds each; measured on m, profile standard."
    assert show.source(frame.iloc[:3]) == "3 measurements, up to 2 seeds each; measured on m, profile standard."
    assert show.source(frame.iloc[:1]) == "1 measurement; measured on m, profile standard."
    assert show.source(frame.iloc[:0]) == "No record yet."


def test_only_what_quick_alone_has_recorded_is_a_rehearsal() -> None:
    frame = pd.DataFrame({"profile": ["quick", "standard"]})
    assert show.rehearsal(frame.iloc[:1]).startswith(show.REHEARSAL)
    assert show.rehearsal(frame) == show.rehearsal(frame.iloc[:0]) == ""


def a_study(kind: str) -> Any:
    """Just enough of a study for the run card and the evidence: one experiment with three records."""
    frame = pd.DataFrame({"n": [1, 2, 3], "ms": [1.0, 2.0, 3.0], "seed": 0, "machine": "m", "profile": "quick", "failed": None})
    spec = SimpleNamespace(kind=kind, table=None)
    coverage = SimpleNamespace(profile="quick", machine="m", recorded=3, expected=4, seconds=9.0, failed=0)
    return SimpleNamespace(
        ledger=SimpleNamespace(experiments={"speed": spec}), frame=lambda name: frame.assign(key=["k1", "k2", "k3"]),
        coverage=lambda name: coverage, progress=lambda profile: (3, 4),
    )  # fmt: skip


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the store says of each record's load."""
    given: dict[str, Any] = {
        "k1": {"others": 0.1, "disturbed": False, "throttled": False},
        "k2": {"disturbed": True, "throttled": True},
        "k3": None,
    }
    monkeypatch.setattr(
        "cnnstudy.report.evidence.find", lambda keys, machine: {k: {"provenance": {"load": given[k]} if given[k] else {}} for k in keys}
    )
    return given


def test_timed_records_are_marked_where_they_are_shown(shown: list, loads: dict[str, Any]) -> None:
    show.evidence(a_study("hardware"))
    page = shown[0][0]["text/html"]
    assert page.index(">load<") < page.index("<td>quiet</td>") < page.index("<td>disturbed, throttled</td>") < page.index("not sampled")
    show.run_card(a_study("hardware"))
    card = shown[1][0]
    assert "While timing: 1 of 3 disturbed, throttled, 1 of 3 not sampled" in card["text/plain"]
    assert card["text/html"].count("1 of 3 disturbed, throttled, 1 of 3 not sampled") == 2  # in the summary and at its experiment


def test_a_quiet_run_card_says_so_in_one_word(shown: list, loads: dict[str, Any]) -> None:
    loads |= dict.fromkeys(loads, loads["k1"])
    show.run_card(a_study("hardware"))
    assert shown[0][0]["text/plain"].endswith("; While timing: quiet")
    loads |= dict.fromkeys(loads, None)
    show.run_card(a_study("hardware"))
    assert shown[1][0]["text/plain"].endswith("; While timing: not sampled")


def test_pages_without_timing_are_as_they_were(shown: list, loads: dict[str, Any]) -> None:
    show.run_card(a_study("exact"))
    show.evidence(a_study("exact"))
    assert all("timing" not in d["text/html"] and "sampled" not in d["text/html"] for d, _ in shown)
