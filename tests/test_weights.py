"""Weights are read from safetensors or tensor-only pickles; whatever else is offered is refused and not run."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cnnstudy.config import Refused
from cnnstudy.weights import read_weights

STATE = {"conv.weight": torch.arange(8.0).view(2, 2, 2), "conv.bias": torch.ones(2)}


class Hostile:
    """Unpickled, it would make a folder: that it does not is the test."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_both_kinds_give_the_same_tensors(tmp_path, name):
    path = tmp_path / name
    save_file(STATE, path) if path.suffix == ".safetensors" else torch.save(STATE, path)
    found = read_weights(path)
    assert found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.safetensors"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, write, name):
    path, mark = tmp_path / name, tmp_path / "it-ran"
    write({"weight": Hostile(mark)}, path)
    with pytest.raises(Refused, match=name) as caught:
        read_weights(path)
    assert "\n" not in str(caught.value) and not mark.exists()


@pytest.mark.parametrize(("value", "reason"), [({"a": {"b": torch.ones(1)}}, "flat dictionary"), ([1], "flat dictionary")])
def test_other_contents_are_refused(tmp_path, value, reason):
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(Refused, match=reason):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file_is_refused(tmp_path, name):
    path = tmp_path / name
    save_file(STATE, path) if path.suffix == ".safetensors" else torch.save(STATE, path)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(Refused, match=name):
        read_weights(path)


def test_missing_files_and_unknown_kinds_are_refused(tmp_path):
    with pytest.raises(Refused, match="no weights at"):
        read_weights(tmp_path / "w.pth")
    with pytest.raises(Refused, match=r"unknown kind of weights file '\.pkl'; valid: \.safetensors"):
        read_weights(tmp_path / "w.pkl")
