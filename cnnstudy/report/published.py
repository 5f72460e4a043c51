"""Figures from papers and model zoos: ``data/published/*.csv``, typed, one citation per row.

They are quoted as published and never passed off as measured here.  ``confirmed`` is true only where the
figure was read in a source, which ``source`` names; ``data/published/README.md`` describes the tables.
"""

from __future__ import annotations

import csv
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from cnnstudy.config import Refused, choose
from cnnstudy.runtime import ROOT

PublishedRow = dict[str, Any]

# A column is "<type>" or "<type>?" (the cell may be empty and then reads as None).
_TAIL = {"citation": "str", "confirmed": "bool", "source": "str?", "note": "str?"}
_DATE = {"year": "int", "month": "int?"}

TABLES: dict[str, dict[str, str]] = {
    "imagenet": {
        "model": "str", "family": "str", "top1": "float", "params_m": "float?", "gmacs": "float?",
        "resolution": "int?", "recipe": "str", "train_data": "str", **_DATE, **_TAIL,
    },
    "sota": {
        "as_of": "str", "date": "str", "model": "str", "top1": "float", "evaluation": "str", "train_data": "str",
        "best": "bool", **_TAIL,
    },
    "deep": {
        "model": "str", "family": "str", "depth": "int", "dataset": "str", "test_error": "float?", "params_m": "float?",
        "skip": "str", "normalisation": "str", "trained": "bool", **_DATE, **_TAIL,
    },
    "adversarial_training": {
        "network": "str", "dataset": "str", "training": "str", "attack": "str", "eps_255": "float",
        "clean_acc": "float", "robust_acc": "float", **_DATE, **_TAIL,
    },
    "procedures": {
        "procedure": "str", "dataset": "str", "training_data": "str", "loss": "str", "starting_point": "str",
        "attack_in_loop": "str", **_DATE, **_TAIL,
    },
    "studies_2018": {
        "study": "str", "institutions": "str", "mit_authors": "str", "first_posted": "str", "venue": "str",
        "claim": "str", "reported": "str", "finding": "str", "architectures": "str?", **_TAIL,
    },
    "defensive_distillation": {
        "claim": "str", "attack": "str", "undistilled": "float?", "distilled": "float", "unit": "str",
        "dataset": "str?", **_DATE, **_TAIL,
    },
    "q17_mobilenets": {
        "model": "str", "family": "str", "form": "str", "alpha": "float", "resolution": "int", "top1": "float",
        "mmacs": "float", "params_m": "float", "recipe": "str", **_DATE, **_TAIL,
    },
    "q17_multipliers": {
        "network": "str", "family": "str", "alpha": "float", "published_by": "str", "named": "bool", **_DATE, **_TAIL,
    },
    "q17_width_knobs": {
        "work": "str", "kind": "str", "knob": "str", "one_factor": "bool", "for_smaller": "bool", "earlier": "bool",
        "what": "str", **_DATE, **_TAIL,
    },
    "q32_forerunners": {
        "work": "str", "kind": "str", "operation": "str", "same": "bool", "close": "bool", "earlier": "bool",
        "what": "str", **_DATE, **_TAIL,
    },
    "q24_literature": {"item": "str", "work": "str", "says": "bool", "what": "str", **_DATE, **_TAIL},
    "q23_resnexts": {
        "model": "str", "family": "str", "depth": "int", "cardinality": "int", "path_width": "int", "resolution": "int",
        "top1": "float", "recipe": "str", **_DATE, **_TAIL,
    },
    "q23_branches": {
        "work": "str", "kind": "str", "name_of_count": "str", "same_meaning": "bool", "grouped": "bool", "counted": "bool",
        "earlier": "bool", "what": "str", **_DATE, **_TAIL,
    },
    "architectures": {"family": "str", "name": "str", "kind": "str", **_DATE, "arxiv": "str?", **_TAIL},
    "citations": {
        "key": "str", "authors": "str", "title": "str", "year": "int", "venue": "str", "arxiv": "str?",
        "confirmed": "bool", "source": "str?",
    },
}  # fmt: skip


def _cell(text: str, kind: str, where: str) -> Any:
    """``text`` of one cell as its column's type; None for an empty cell of an optional column."""
    if not text:
        if kind.endswith("?"):
            return None
        raise Refused(f"{where} is empty; a {kind} is needed")
    kind = kind.rstrip("?")
    try:
        if kind == "bool":
            return {"true": True, "false": False}[text]
        if kind == "int":
            return int(text)
        if kind == "float":
            value = float(text)
            if math.isfinite(value):
                return value
            raise ValueError(text)
    except (KeyError, ValueError):
        valid = "true, false" if kind == "bool" else f"a finite {kind}"
        raise Refused(f"{where} is {text!r}; valid: {valid}") from None
    return text


def columns_of(name: str) -> dict[str, str]:
    """The columns of a table; ``q07_imagenet`` is a page's own table with the columns of ``imagenet``."""
    return TABLES[name if name in TABLES else choose("published table", re.sub(r"^q\d\d_", "", name), TABLES)]


@cache
def _read(path: Path, name: str) -> tuple[PublishedRow, ...]:
    columns = columns_of(name)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise Refused(f"published table {name!r} cannot be read at {path}: {error.strerror}") from None
    lines = csv.reader(text.splitlines(), strict=True)
    try:
        header = next(lines, [])
        if header != list(columns):
            raise Refused(f"{path.name} has columns {', '.join(header) or 'none'}; valid: {', '.join(columns)}")
        table = []
        for cells in lines:
            where = f"{path.name} line {lines.line_num}"
            if len(cells) != len(columns):
                raise Refused(f"{where} has {len(cells)} cells; valid: {len(columns)}")
            pairs = zip(columns.items(), cells, strict=True)
            table.append({c: _cell(cell, kind, f"{where}, column {c}") for (c, kind), cell in pairs})
    except csv.Error as error:
        raise Refused(f"{path.name} line {lines.line_num} is not CSV: {error}") from None
    return tuple(table)


def rows(name: str, root: Path | None = None) -> list[PublishedRow]:
    """The rows of one published table, in the file's order; the dicts are the caller's to change.

    Units: accuracies and errors in percent, ``params_m`` in millions, ``gmacs`` in 10^9 multiply-adds,
    ``eps_255`` in 1/255, ``resolution`` in pixels.  Raises Refused for an unknown table, wrong columns or a bad cell.
    """
    columns_of(name)
    return [dict(row) for row in _read((root or ROOT / "data" / "published") / f"{name}.csv", name)]
