"""Literal slices, found by running: against what is known of each architecture by construction."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.models import DenseConfig, ResNetConfig, StackConfig, build
from cnnstudy.models.zoo import native
from cnnstudy.probes.slices import connections, is_slice, layers_of, summary


def test_a_slice_is_found_wherever_it_starts_and_only_to_the_bit() -> None:
    torch.manual_seed(0)
    whole = torch.rand(2, 7, 3, 3)
    assert all(is_slice(whole[:, a : a + 2].clone(), whole) for a in range(6))
    part = whole[:, 2:5].clone()
    part[1, 2, 2, 2] += 1e-6
    assert not is_slice(part, whole)  # its first channel alone agrees
    assert not is_slice(whole, part) and not is_slice(whole[:, [0, 2]], whole) and not is_slice(whole[:1], whole)


@pytest.mark.parametrize("window", [0, 1, 2])
def test_small_dense_networks(window: int) -> None:
    """Two layers a block: by the rule of the architecture, which output stands in which input."""
    found = connections(DenseConfig(16, 4, window=window), 32)
    assert found["names"] == ["stem"] + [f"stages.{i}.{n}" for i in range(3) for n in ("layer1", "layer2", "transition")][:-1] + ["head"]
    count, wanted = 10, set()
    for start in (1, 4, 7):  # first layer of each block; one before it is the block's input
        sources = [start - 1, start, start + 1]
        for age_limit, reader in ((1, start), (2, start + 1), (3, start + 2)):
            wanted |= {(reader, s) for s in sources[:age_limit][-window:]} if window else {(reader, s) for s in sources[:age_limit]}
    assert {(int(a), int(b)) for a, b in zip(*np.nonzero(found["direct"]), strict=True)} == wanted
    assert found["direct"].shape == (count, count) and found["image"] == [False] * 10  # even the stem sees a normalised one


def test_densenet121_by_arithmetic() -> None:
    found = summary(native("densenet121"), 32)
    layers = (6, 12, 24, 16)
    assert found["connections"] == sum(n * (n + 1) // 2 for n in layers) and found["blocks"] == 4
    assert found["widths_follow"] and found["input_kept"] and found["within"] == 1 and found["across"] == 0 and found["image"] == 0
    assert found["layers"] == 1 + sum(layers) + 3 + 1 and connections(native("densenet121"), 32)["image"][0]
    inside = sum(n * (n - 1) // 2 + n for n in layers)  # and what closes a block reads all of it and its input
    assert found["share"] == pytest.approx((inside + sum(n + 1 for n in layers)) / found["pairs"])


def test_blocks_see_only_the_one_before_them() -> None:
    for cfg in (ResNetConfig(20), ResNetConfig(20, skip=False), native("resnet18")):
        found = summary(cfg, 32)
        assert np.array_equal(found["direct"], np.eye(len(found["direct"]), k=-1, dtype=bool))
        assert found["share"] == pytest.approx(2 / found["layers"])


def test_a_network_it_does_not_know_is_refused() -> None:
    with pytest.raises(Refused, match="Stacks has no layers"):
        layers_of(build(StackConfig()))
