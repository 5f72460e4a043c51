from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pytest

from cnnstudy.config import Refused, Setup, canonical, choose, flatten, grid, key


@dataclass(frozen=True)
class NetConfig:
    depth: int = 20
    lr: float = 0.1
    widths: tuple[int, ...] = (16, 32)
    skip: bool = True


@dataclass(frozen=True)
class LaterConfig:
    depth: int = 20
    dropout: float = dataclasses.field(default=0.0, metadata={"neutral": 0.0})


def test_defaults_are_part_of_the_form() -> None:
    assert canonical(Setup(model=NetConfig())) == {"model": {"kind": "Net", "depth": 20, "lr": 0.1, "widths": [16, 32], "skip": True}}


def test_int_and_float_of_one_value_agree() -> None:
    one, other = Setup(model=NetConfig(lr=2)), Setup(model=NetConfig(lr=2.0))
    assert key("e", one, 0) == key("e", other, 0)
    assert key("e", one, 0) != key("e", Setup(model=NetConfig(lr=2.5)), 0)


def test_true_and_one_differ() -> None:
    assert key("e", Setup(x=True), 0) != key("e", Setup(x=1), 0)


def test_key_depends_on_each_part() -> None:
    setup = Setup(model=NetConfig())
    keys = {key("e", setup, 0), key("f", setup, 0), key("e", setup, 1), key("e", setup, 0, 2), key("e", Setup(model=NetConfig(depth=8)), 0)}
    assert len(keys) == 5
    assert all(len(k) == 12 for k in keys)


def test_key_is_what_it_was() -> None:
    """Records outlive code: this key must never change."""
    assert key("depth_sweep", {"model": {"kind": "Net", "depth": 20}}, 0) == "e7d349be77ee"


def test_field_added_later_keeps_old_keys() -> None:
    assert canonical(LaterConfig()) == {"kind": "Later", "depth": 20}
    assert canonical(LaterConfig(dropout=0.5)) == {"kind": "Later", "depth": 20, "dropout": 0.5}


@pytest.mark.parametrize(
    ("value", "word"),
    [((1, 2), "tuple"), (np.float64(1.0), "float64"), (float("nan"), "nan"), (float("inf"), "inf"), ({"a": 1}, "dict")],
)
def test_what_has_no_form_is_refused(value: object, word: str) -> None:
    with pytest.raises(Refused, match=word):
        Setup(x=value)


@pytest.mark.parametrize(("field", "value"), [("depth", 2.5), ("depth", "20"), ("skip", 1), ("lr", True), ("widths", 3)])
def test_a_wrong_type_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(Refused, match=f"model.{field}"):
        Setup(model=NetConfig(**{field: value}))  # type: ignore[arg-type]


def test_replace_refuses_unknown_paths_with_the_valid_ones() -> None:
    setup = Setup(model=NetConfig(), images=10)
    with pytest.raises(Refused, match="valid: images, model|valid: model, images"):
        setup.replace({"modell.depth": 3})
    with pytest.raises(Refused, match="did you mean depth"):
        setup.replace({"model.dept": 3})
    with pytest.raises(Refused, match="not a config"):
        setup.replace({"images.depth": 3})


def test_a_setup_is_immutable() -> None:
    with pytest.raises(AttributeError):
        Setup(x=1).x = 2


def test_grid_first_axis_slowest_and_paths_together() -> None:
    setups = grid(Setup(model=NetConfig(), n=0), {"model.depth": [8, 20], ("n", "model.lr"): [(1, 0.1), (2, 0.2)]})
    assert [(s.model.depth, s.n, s.model.lr) for s in setups] == [(8, 1, 0.1), (8, 2, 0.2), (20, 1, 0.1), (20, 2, 0.2)]


def test_lists_from_json_become_tuples() -> None:
    assert Setup(model=NetConfig()).replace({"model.widths": [8]}).model.widths == (8,)


def test_flatten_keeps_lists() -> None:
    assert flatten({"a": {"b": {"c": 1}}, "d": [1, 2]}) == {"a.b.c": 1, "d": [1, 2]}


def test_choose_names_the_valid_ones() -> None:
    with pytest.raises(Refused, match="unknown profile 'qick' .did you mean quick.*valid: quick, full"):
        choose("profile", "qick", ["quick", "full"])
