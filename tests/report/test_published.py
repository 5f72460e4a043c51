"""The published figures: schema, plausible values, no duplicates, every citation listed, every model's family known."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cnnstudy.config import Refused
from cnnstudy.report.published import TABLES, columns_of, rows
from cnnstudy.runtime import ROOT

FOLDER = ROOT / "data" / "published"
FILES = sorted(path.stem for path in FOLDER.glob("*.csv"))
DATA_TABLES = [name for name in FILES if name != "citations"]
IDENTITY = {
    "imagenet": ("model", "recipe", "resolution"),
    "sota": ("as_of", "model", "evaluation"),
    "deep": ("model", "dataset"),
    "adversarial_training": ("network", "dataset", "training", "attack", "citation"),
    "procedures": ("procedure",),
    "studies_2018": ("study", "claim"),
    "defensive_distillation": ("claim", "attack"),
    "q17_mobilenets": ("model", "recipe", "resolution"),
    "q17_multipliers": ("network", "alpha", "published_by"),
    "q17_width_knobs": ("work",),
    "q32_forerunners": ("work",),
    "q24_literature": ("item", "work"),
    "q23_resnexts": ("model", "recipe", "resolution"),
    "q23_branches": ("work",),
    "architectures": ("family",),
    "citations": ("key",),
}


def of(name: str, **want: Any) -> list[dict[str, Any]]:
    return [r for r in rows(name) if all(r[k] == v for k, v in want.items())]


def test_every_file_is_a_table_and_every_table_a_file() -> None:
    assert set(TABLES) <= set(FILES)
    assert all(columns_of(name) for name in FILES)  # q07_imagenet has the columns of imagenet


@pytest.mark.parametrize("name", FILES)
def test_rows_are_not_duplicated(name: str) -> None:
    identity = IDENTITY.get(name) or IDENTITY[re.sub(r"^q\d\d_", "", name)]
    counts = Counter(tuple(r[c] for c in identity) for r in rows(name))
    assert counts and not [key for key, n in counts.items() if n > 1]


@pytest.mark.parametrize("name", DATA_TABLES)
def test_citations_are_listed_and_confirmed_rows_name_their_source(name: str) -> None:
    keys = {r["key"] for r in rows("citations")}
    for row in rows(name):
        assert row["citation"] in keys, row
        assert row["source"] or not row["confirmed"], row


def test_every_listed_citation_is_used_and_well_formed() -> None:
    used = {r["citation"] for name in DATA_TABLES for r in rows(name)}
    for row in rows("citations"):
        assert row["key"] in used and re.fullmatch(r"[a-z]+\d{4}[a-z0-9]*", row["key"]), row["key"]
        assert row["arxiv"] is None or re.fullmatch(r"\d{4}\.\d{4,5}", row["arxiv"]), row
        assert 2012 <= row["year"] <= 2026


@pytest.mark.parametrize("name", ["imagenet", "deep"])
def test_families_have_a_publication_year(name: str) -> None:
    born = {r["family"]: (r["year"], r["month"] or 0) for r in rows("architectures")}
    for row in rows(name):
        assert row["family"] in born, row
        assert (row["year"], row["month"] or 12) >= born[row["family"]], f"published before its architecture: {row}"


@pytest.mark.parametrize("name", [n for n in DATA_TABLES if "year" in columns_of(n)])
def test_dates_are_plausible(name: str) -> None:
    for row in rows(name):
        assert 2012 <= row["year"] <= 2026 and (row["month"] is None or 1 <= row["month"] <= 12), row


def test_architecture_dates_agree_with_their_arxiv_ids() -> None:
    for row in rows("architectures"):
        if row["arxiv"]:
            assert (row["year"] % 100, row["month"]) == (int(row["arxiv"][:2]), int(row["arxiv"][2:4])), row


def test_imagenet_values_are_plausible() -> None:
    for row in rows("imagenet"):
        assert 40 < row["top1"] < 95, row
        assert row["params_m"] is None or 0.5 < row["params_m"] < 1000, row
        assert row["gmacs"] is None or 0.01 < row["gmacs"] < 500, row
        assert row["resolution"] is None or 96 <= row["resolution"] <= 800, row
        assert row["train_data"].split("+")[-1] == "in1k", row


def test_one_model_has_about_one_size() -> None:
    """Sources count classifiers and statistics differently, but never by more than a sixth."""
    sizes: dict[str, list[float]] = {}
    for row in rows("imagenet"):
        if row["params_m"]:
            sizes.setdefault(row["model"], []).append(row["params_m"])
    loose = {"mobilenetv2_140", "mobilenetv3_small_100", "mobilenetv3_small_075", "inception_v3"}
    assert not {m: s for m, s in sizes.items() if max(s) > 7 / 6 * min(s) and m not in loose}


def test_anchor_figures() -> None:
    """Values that several pages lean on."""
    v1 = {"resnet18": 69.758, "resnet34": 73.314, "resnet50": 76.130, "resnet101": 77.374, "resnet152": 78.312,
          "mobilenetv2_100": 71.878, "efficientnet_b0": 77.692, "vgg16": 71.592}  # fmt: skip
    for model, top1 in v1.items():
        assert [r["top1"] for r in of("imagenet", model=model, recipe="tv-v1")] == [top1]
    assert [r["top1"] for r in of("imagenet", model="efficientnet_b7", recipe="paper")] == [84.3]
    (madry,) = of("adversarial_training", network="ResNet wide x10", training="pgd-7", attack="pgd-20")
    assert (madry["clean_acc"], madry["robust_acc"]) == (87.3, 45.8)
    assert [r["test_error"] for r in of("deep", model="ResNet-1202")] == [7.93]


def test_resnet_50_and_101_share_at_least_three_recipes() -> None:
    def recipes(model: str) -> set[tuple[str, int]]:
        return {(r["recipe"], r["resolution"]) for r in of("imagenet", model=model) if r["confirmed"]}

    assert len(recipes("resnet50") & recipes("resnet101")) >= 3


def test_the_b7_band_has_macs_before_and_after_mid_2019() -> None:
    band = [r for r in of("imagenet", train_data="in1k") if abs(r["top1"] - 84.3) <= 0.5 and r["gmacs"]]
    early = [r for r in band if (r["year"], r["month"] or 12) <= (2019, 6)]
    assert len(early) >= 2 and len(band) - len(early) >= 50


def test_sota_has_the_three_dates_with_a_best_and_a_resnet152() -> None:
    for as_of in ("2015-12-31", "2019-06-30", "2026-11-22"):
        here = of("sota", as_of=as_of)
        assert any(r["best"] for r in here) and any(r["model"].startswith("ResNet-152") for r in here), as_of
    assert all(re.fullmatch(r"\d{4}-\d{2}-\d{2}", r["date"]) for r in rows("sota"))
    assert {r["as_of"] for r in rows("sota")} == {"2015-12-31", "2019-06-30", "2026-11-22"}


def test_values_of_the_small_tables_are_plausible() -> None:
    assert all(r["test_error"] is None or 0 < r["test_error"] < 100 for r in rows("deep"))
    assert {r["skip"] for r in rows("deep")} <= {"none", "identity", "gated"}
    for row in rows("adversarial_training"):
        assert 0 <= row["robust_acc"] <= 100 and 50 < row["clean_acc"] <= 100 and 0 < row["eps_255"] <= 16, row
    assert {r["training_data"] for r in rows("procedures")} <= {"mix", "attacked only"}
    assert {r["reported"] for r in rows("studies_2018")} <= {"yes", "partly", "no"}


def test_tables_are_sorted() -> None:
    assert [r["key"] for r in rows("citations")] == sorted(r["key"] for r in rows("citations"))
    order = [(r["family"], r["model"], r["recipe"], r["resolution"] or 0) for r in rows("imagenet")]
    assert order == sorted(order)


def test_rows_are_copies() -> None:
    rows("sota")[0]["model"] = "changed"
    assert rows("sota")[0]["model"] != "changed"


def test_unknown_table_is_refused_with_the_valid_names() -> None:
    with pytest.raises(Refused, match=r"unknown published table 'imagenett'.*imagenet.*citations"):
        rows("imagenett")


HEADER = ",".join(TABLES["procedures"])
GOOD = "Madry,cifar10,attacked only,ce,scratch,pgd,2017,6,madry2018towards,true,a paper,"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"procedures\.csv has columns a, b; valid: procedure, "),
        ("", r"has columns none"),
        (f"{HEADER}\nMadry,cifar10\n", r"line 2 has 2 cells; valid: 12"),
        (f"{HEADER}\n{GOOD.replace('2017', 'soon')}\n", r"line 2, column year is 'soon'; valid: a finite int"),
        (f"{HEADER}\n{GOOD.replace('true', 'yes')}\n", r"column confirmed is 'yes'; valid: true, false"),
        (f"{HEADER}\n{GOOD.replace('madry2018towards', '')}\n", r"column citation is empty"),
        (f'{HEADER}\n"unclosed\n', r"is not CSV"),
    ],
)
def test_damaged_tables_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "procedures.csv").write_text(text, encoding="utf-8")
    with pytest.raises(Refused, match=message) as refused:
        rows("procedures", tmp_path)
    assert "\n" not in str(refused.value)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"'sota' cannot be read"):
        rows("sota", tmp_path)
