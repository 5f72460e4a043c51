"""Two machines side by side: sentinels first, then verdicts, values and ratios."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import HEAD

from cnnstudy.config import Refused, key
from cnnstudy.report import compare, evidence
from cnnstudy.report.compare import Comparison

LEDGER = HEAD + """\
profiles:
  quick: {seeds: [0]}
  standard: {seeds: [0, 1, 2]}
  full: {seeds: [0, 1, 2]}
experiments:
  counts: {kind: exact, shows: Counts.}
  gradients: {kind: exact, shows: Gradients.}
  training: {kind: trained, shows: Accuracies.}
  glance: {kind: trained, needs: quick, shows: The accuracy of two seeds.}
  latency: {kind: hardware, shows: Times.}
claims:
  - id: q99.many
    statement: There are many.
    kind: value
    evidence: [exact]
    test: Confirmed if ten.
    conditions: {ten: {rule: equal, experiment: counts, metric: params, at: {n: 1}, value: 10}}
    confirmed: ten
    refuted: not ten
  - id: q99.learns
    statement: It learns.
    kind: value
    evidence: [trained]
    test: Confirmed if above 0.5.
    conditions: {above: {rule: above, experiment: training, metric: val_acc, at: {n: 1}, margin: 0.5}}
    confirmed: above
    refuted: not above
  - id: q99.learns-at-a-glance
    statement: Two seeds learn.
    kind: value
    evidence: [trained]
    test: Confirmed if above 0.5.
    conditions: {above: {rule: above, experiment: glance, metric: val_acc, at: {n: 1}, margin: 0.5, min_seeds: 2}}
    confirmed: above
    refuted: not above
  - id: q99.fast
    statement: It is fast.
    kind: value
    evidence: [hardware]
    test: Confirmed if below 10 ms.
    conditions: {below: {rule: below, experiment: latency, metric: latency_ms, at: {n: 1}, margin: 10}}
    confirmed: below
    refuted: not below
citations: []
"""
SEEDS = (0, 1, 2)
Change = Callable[[dict[str, Any]], Any]


def record(experiment: str, metrics: Mapping[str, Any], n: int = 1, seed: int = 0, code: str = "c0de", **more: Any) -> evidence.Record:
    setup = {"n": n}
    return {
        "key": key(experiment, setup, seed), "question": "q99", "experiment": experiment, "setup": setup, "seed": seed, "protocol": 1,
        "profile": "standard", "metrics": dict(metrics), "provenance": {"code": code, "torch": "2.13.0"}, **more,
    }  # fmt: skip


def plan() -> str:
    setups, all_seeds = [{"n": 1}, {"n": 2}], [[0, list(SEEDS)], [1, list(SEEDS)]]
    one = [[0, [0]], [1, [0]]]
    seeds = {"counts": one, "gradients": all_seeds, "training": all_seeds, "glance": [[0, [0, 1]], [1, [0]]], "latency": one}
    body = {name: {"setups": setups, "profiles": dict.fromkeys(("quick", "standard", "full"), rows)} for name, rows in seeds.items()}
    return json.dumps({"question": "q99", "experiments": body})


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("claims/q99.yaml", LEDGER), ("plans/q99.json", plan())):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_text(text)
    for module in ("claims", "plan", "verdicts", "compare"):
        monkeypatch.setattr(f"cnnstudy.report.{module}.ROOT", tmp_path)
    monkeypatch.setattr(compare, "machine_id", lambda: "mine")
    root = tmp_path / "data" / "records"
    monkeypatch.setenv("CNNSTUDY_RECORDS", str(root))
    return root


GRADIENTS, ACCURACIES = (0.1, 0.5, 0.3), (0.70, 0.74, 0.72)


def machine(store: Path, name: str, change: Change = lambda r: None, only: tuple[str, ...] = ()) -> None:
    """Records of all four experiments; ``change`` alters each before it is stored."""
    records = [record("counts", {"params": 10 * n, "share": n / 3, "kind": "Basic", "same": True, "by": {"a": 1}}, n) for n in (1, 2)]
    records += [record("gradients", {"norm": v * n}, n, seed) for n in (1, 2) for seed, v in zip(SEEDS, GRADIENTS, strict=True)]
    records += [record("training", {"val_acc": v, "loss": 1 - v}, n, s) for n in (1, 2) for s, v in zip(SEEDS, ACCURACIES, strict=True)]
    records += [record("latency", {"latency_ms": 4.0 * n, "params": 10}, n) for n in (1, 2)]
    for r in records:
        change(r)
        if not only or r["experiment"] in only:
            evidence.append(r, name, store)


def on(experiment: str, **metrics: Any) -> Change:
    """Set or, with a function, change metrics of the records of an experiment."""

    def change(r: dict[str, Any]) -> None:
        if r["experiment"] == experiment:
            for name, value in metrics.items():
                r["metrics"][name] = value(r["metrics"].get(name), r) if callable(value) else value

    return change


def rows(found: Comparison, what: str) -> dict[str, dict[str, Any]]:
    return {r["name"]: r for r in found.rows if r["what"] == what}


# sentinels


def test_alike(store: Path) -> None:
    machine(store, "book")
    machine(store, "mine")
    found = compare.compare()
    assert found.exit_code == 0 and (found.exact, found.moved) == (8, 0)
    assert found.text().splitlines() == [
        "a: reference (book)",
        "b: this (mine)",
        "exact: 8 measurements in common, all alike",
        "verdicts: 3 agree, 0 differ, 0 undecided on one side, 0 new (by b alone), 0 by a alone",
        "trained: 1 of 1 estimates in a's 95 % interval",
        "trained: 6 of 6 values where a's seeds let expect 95 of 100",
    ]
    assert found.noteworthy() == []
    assert all(tuple(r) == compare.FIELDS for r in found.rows)
    json.dumps(found.rows, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "metric", "a", "b"),
    [
        (on("counts", params=lambda v, r: v + 1), "params", 10, 11),
        (on("counts", kind="Bottleneck"), "kind", "Basic", "Bottleneck"),
        (on("counts", same=False), "same", True, False),
        (on("counts", by={"a": 2}), "by.a", 1, 2),
        (on("counts", by={"b": 1}), "by.b", "(absent)", 1),
        (on("counts", params=None), "params", 10, None),
        (on("counts", params=True), "params", 10, True),
        (on("counts", share=lambda v, r: 1.2 * v), "share", 1 / 3, 0.4),  # a real number, of one seed: by more than rounding amplifies
        (on("counts", share=None), "share", 1 / 3, None),
        (on("gradients", norm=lambda v, r: v + 50), "norm", 0.1, 50.1),  # beyond what another seed would give
        (lambda r: r.update(failed="loss became nan") if r["experiment"] == "counts" else None, "failed", None, "loss became nan"),
    ],
)
def test_what_is_exact_must_agree_and_nothing_else_is_compared(store: Path, change: Change, metric: str, a: Any, b: Any) -> None:
    machine(store, "book")
    machine(store, "mine", change)
    found = compare.compare()
    assert found.exit_code == 1
    assert {r["what"] for r in found.rows} == {"exact"} and found.rows == [r for r in found.rows if r["result"] == "differs"]
    (first,) = [r for r in found.rows if r["name"].endswith(f" {metric}")][:1]
    assert (first["a"], first["b"]) == (pytest.approx(a), pytest.approx(b))
    lines = found.text().splitlines()
    assert (
        lines[2].startswith("EXACT RESULTS DIFFER in ")
        and "of 8 measurements" in lines[2]
        and "an install or the code is wrong" in lines[2]
    )
    assert "same code" in first["note"] and "The code is the same" in lines[3]
    assert lines[4].startswith("Nothing else was compared") and len(lines) == 5
    assert found.noteworthy()[0]["what"] == "exact"


def test_other_code_explains_a_difference(store: Path) -> None:
    def later(r: dict[str, Any]) -> None:
        r["provenance"] |= {"code": "beef", "torch": "2.12.0"}
        on("counts", params=11)(r)

    machine(store, "book")
    machine(store, "mine", later)
    found = compare.compare()
    assert found.exit_code == 1 and found.rows[0]["note"] == "other code (c0de / beef); torch 2.13.0 / 2.12.0"
    assert "All of these were made by other code" in found.text() and "run --stale" in found.text()


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        (on("counts", share=lambda v, r: v * (1 + 1e-7)), 0),  # the order of additions
        (on("counts", share=lambda v, r: v * 1.01), 2),  # one seed: rounding that a network amplified, told but not alarming
        (on("gradients", norm=lambda v, r: v * 1.9), 6),  # chaos: as far as another seed
        (on("gradients", norm=lambda v, r: None if r["seed"] == 2 else v), 0),  # overflowed on one side alone
    ],
)
def test_rounding_is_no_wrong_install(store: Path, change: Change, moved: int) -> None:
    machine(store, "book")
    machine(store, "mine", change)
    found = compare.compare()
    assert (found.exit_code, found.moved) == (0, moved)
    assert ("rounding moved" in found.text()) == bool(moved)


def test_what_no_seed_moves_is_held_to_rounding(store: Path) -> None:
    """All seeds alike: the number does not hang on chance, so three of them are no excuse."""
    machine(store, "book", on("gradients", norm=1.0))
    machine(store, "near", on("gradients", norm=1.01))
    machine(store, "far", on("gradients", norm=1.1))
    assert [compare.compare("book", name).exit_code for name in ("near", "far")] == [0, 1]


def test_nothing_exact_in_common_vouches_for_nothing(store: Path) -> None:
    machine(store, "book")
    machine(store, "mine", only=("training",))
    found = compare.compare()
    assert found.exit_code == 0 and "exact: no measurement in common, so nothing vouches for the install" in found.text()


# the rest


def test_verdicts_that_agree_differ_and_are_new(store: Path) -> None:
    machine(store, "book", only=("counts", "training"))
    machine(store, "mine", on("training", val_acc=lambda v, r: v - 0.4), only=("training", "latency"))
    found = rows(compare.compare(), "verdict")
    assert {name: (r["result"], r["a"], r["b"]) for name, r in found.items()} == {
        "q99.many": ("only a", "confirmed", "untested"),
        "q99.learns": ("differ", "confirmed", "refuted"),
        "q99.learns-at-a-glance": ("untested", "untested", "untested"),
        "q99.fast": ("only b", "untested", "confirmed"),
    }
    assert found["q99.learns"]["note"].startswith("a: ") and " b: " in found["q99.learns"]["note"]
    assert "0 agree, 1 differ, 0 undecided on one side, 1 new (by b alone), 1 by a alone" in compare.compare().text()
    noisy = on("training", val_acc=lambda v, r: v + 0.6 * (r["seed"] - 1))
    machine(store, "noisy", noisy)
    assert rows(compare.compare("book", "noisy"), "verdict")["q99.learns"]["result"] == "open"


def test_estimates_and_values_inside_what_the_seeds_let_expect(store: Path) -> None:
    machine(store, "book")
    machine(store, "mine", on("training", val_acc=lambda v, r: v + (0.03 if r["setup"]["n"] == 1 else 0.2 if r["seed"] == 0 else 0)))
    found = compare.compare()
    (estimate,) = rows(found, "condition").values()
    # mean 0.72, standard deviation 0.02, t(2) = 4.30: the mean within 0.05, one more value within 0.10
    assert (estimate["low"], estimate["high"]) == (pytest.approx(0.670, abs=1e-3), pytest.approx(0.770, abs=1e-3))
    assert estimate["result"] == "inside" and estimate["b"] == pytest.approx(0.75)
    (value,) = rows(found, "value").values()  # the loss is judged by no condition
    assert (value["name"], value["n"], value["inside"], value["outside"]) == ("q99 training val_acc", 6, 5, 1)
    assert "5 of 6 inside, farthest apart 0.2" in value["note"] and value in [r for r in found.rows if r["result"] == "outside"]
    assert "trained: 5 of 6 values" in found.text()
    machine(store, "far", on("training", val_acc=lambda v, r: v + 0.06))
    (estimate,) = rows(compare.compare("book", "far"), "condition").values()
    assert estimate["result"] == "outside"


def test_one_seed_or_two_alike_have_no_interval(store: Path) -> None:
    for name in ("book", "mine"):
        for n, seed in ((1, 0), (1, 1), (2, 0)):
            evidence.append(record("glance", {"val_acc": 0.7 if name == "book" else 0.1}, n, seed), name, store)
    found = compare.compare()
    assert rows(found, "value")["q99 glance val_acc"]["result"] == "no interval"
    assert rows(found, "condition")["q99.learns-at-a-glance above"]["result"] == "no interval"
    assert found.text().splitlines()[-2:] == [
        "trained: 1 condition without an interval",
        "trained: 3 values without an interval",
    ]


def test_a_training_that_failed_on_one_side_is_told(store: Path) -> None:
    machine(store, "book")
    machine(store, "mine", lambda r: r.update(metrics={}, failed="loss became nan") if r["key"] == key("training", {"n": 1}, 1) else None)
    assert [(r["result"], r["note"]) for r in compare.compare().rows if r["what"] == "value"][-1] == ("failed on b", "loss became nan")


def test_times_are_ratios_and_never_equal(store: Path) -> None:
    machine(store, "book")
    machine(store, "mine", on("latency", latency_ms=lambda v, r: v / (2 if r["setup"]["n"] == 1 else 4)))
    found = compare.compare()
    assert found.exit_code == 0
    (ratio,) = rows(found, "hardware").values()  # the number of parameters is none
    assert (ratio["name"], ratio["result"], ratio["a"], ratio["low"], ratio["high"]) == ("q99 latency latency_ms", "x 3", 3.0, 2.0, 4.0)
    assert ratio["n"] == 2 and "hardware: 1 metric as ratios a / b" in found.text()


# who is compared


def test_names_of_sides(store: Path) -> None:
    assert (
        compare.pair([]) == ("reference", "this") and compare.pair(["x"]) == ("reference", "x") and compare.pair(["x", "y"]) == ("x", "y")
    )
    with pytest.raises(Refused, match="compare takes two machines, not 3: a, b, c"):
        compare.pair(["a", "b", "c"])
    machine(store, "book")
    with pytest.raises(Refused, match=r"this machine \(mine\) has no records; measure some with"):
        compare.compare()
    machine(store, "mine")
    machine(store, "old", only=("counts",))
    (store / "reference.json").write_text('{"machines": ["old", "book"]}')
    assert [str(side) for side in (compare.compare("book", "mine").a, compare.compare("mine", "reference").b)] == [
        "book",
        "reference (old, book)",
    ]
    with pytest.raises(Refused, match="unknown machine 'enigma'.*valid: reference, this, book, mine, old"):
        compare.compare("enigma")
    for a, b in (("this", "this"), ("mine", "this"), ("reference", "reference")):
        with pytest.raises(Refused, match="are the same records"):
            compare.compare(a, b)
    with pytest.raises(Refused, match="unknown question 'q98'"):
        compare.compare(questions=["q98"])


def test_the_best_machine_of_the_book_speaks_for_it(store: Path) -> None:
    machine(store, "worse", on("counts", share=lambda v, r: v * 1.02))
    machine(store, "better")
    machine(store, "mine", on("counts", share=lambda v, r: v * 1.02))
    (store / "reference.json").write_text('{"machines": ["better"]}')
    assert compare.compare().moved == 2
    (store / "reference.json").write_text('{"machines": ["worse"]}')
    assert compare.compare().moved == 0


def test_a_trial_elsewhere_against_the_book(store: Path, tmp_path: Path) -> None:
    """CNNSTUDY_RECORDS names a trial's records; "reference" is still the book, even where both are of one machine."""
    machine(store, "mine")
    machine(tmp_path / "trial", "mine", on("counts", params=lambda v, r: v + 1))
    found = compare.compare(root=tmp_path / "trial")
    assert found.exit_code == 1 and found.a.machines == ("mine",)
    with pytest.raises(Refused, match="are the same records"):
        compare.compare()
