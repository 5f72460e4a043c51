"""Blocks: their arithmetic by hand, their equivalences, and that timing them returns what was asked for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from cnnstudy import blocks
from cnnstudy.blocks import BlockConfig, arithmetic
from cnnstudy.config import Refused, Setup, canonical

AREA = 14 * 14


def of(kind: str, **changes: Any) -> dict[str, Any]:
    return arithmetic(BlockConfig(kind, **{"size": 14, **changes}))


def test_convolutions_by_hand() -> None:
    c, d, k = 16, 32, 3
    dense = of("dense", channels_in=c, channels_out=d)
    assert (dense["macs"], dense["conv_weights"]) == (k * k * c * d * AREA, k * k * c * d)
    assert dense["bytes"] == dense["least_bytes"] == 4 * (k * k * c * d + c * AREA + d * AREA)
    assert dense["intensity"] == dense["macs"] / dense["bytes"]
    pair = of("separable", channels_in=c, channels_out=d)
    assert pair["macs"] == (k * k * c + c * d) * AREA
    assert pair["bytes"] == 4 * (k * k * c + c * d + 3 * c * AREA + d * AREA)  # the depthwise map is written and read again
    assert pair["least_bytes"] == 4 * (k * k * c + c * d + c * AREA + d * AREA)
    depthwise = of("depthwise", channels_in=c, channels_out=c)
    assert depthwise["macs"] == k * k * c * AREA and depthwise["activations"] == c * AREA
    strided = of("dense", channels_in=c, channels_out=d, stride=2)
    assert strided["macs"] == dense["macs"] // 4


@pytest.mark.parametrize(("kind", "groups"), list(itertools.product(("dense", "pointwise"), (1, 2, 4, 8))))
def test_groups_divide_macs_exactly(kind: str, groups: int) -> None:
    one, many = of(kind), of(kind, groups=groups)
    assert one["macs"] == groups * many["macs"] and one["conv_weights"] == groups * many["conv_weights"]
    assert many["activations"] == one["activations"]


@pytest.mark.parametrize("c", [16, 64, 256])
def test_stacks_against_single_filters(c: int) -> None:
    """49 C^2 weights for one 7x7, 27 C^2 for three 3x3 (Simonyan & Zisserman 2015)."""
    assert of("dense", channels_in=c, channels_out=c, kernel=7)["conv_weights"] == 49 * c * c
    stack = of("stack", channels_in=c, channels_out=c, depth=3)
    assert stack["conv_weights"] == 27 * c * c and stack["activations"] == 3 * c * AREA
    strided = of("stack", channels_in=c, channels_out=c, depth=3, stride=2)  # the first layer strides, the others stay
    assert strided["activations"] == 3 * c * AREA // 4


def test_residual_blocks_by_hand() -> None:
    """1,179,648 weights for a basic block of 256 channels, 69,632 for a bottleneck 256-64-64-256."""
    both = {"channels_in": 256, "channels_out": 256}
    assert of("basic", **both)["conv_weights"] == 1_179_648
    bottleneck = of("bottleneck", **both)
    assert bottleneck["conv_weights"] == 69_632 and bottleneck["macs"] == 69_632 * AREA
    assert of("basic", **both, norm=True)["params"] == 1_179_648 + 2 * 2 * 256
    assert of("bottleneck", **both, norm=True)["params"] == 69_632 + 2 * (64 + 64 + 256)


def test_paths_are_the_grouped_block() -> None:
    cfg = BlockConfig("bottleneck", 64, 64, groups=8, inner=32, size=7)
    grouped, paths = arithmetic(cfg), arithmetic(BlockConfig("paths", 64, 64, groups=8, inner=32, size=7))
    assert grouped["macs"] == paths["macs"] and grouped["conv_weights"] == paths["conv_weights"]
    assert paths["bytes"] > 2 * grouped["bytes"]  # each path reads the whole input and writes the whole output
    one = arithmetic(BlockConfig("path", 64, 64, groups=8, inner=32, size=7))
    assert 8 * one["macs"] == paths["macs"]


def test_a_shuffle_only_moves() -> None:
    found = of("shuffle", groups=4)
    assert (found["macs"], found["params"], found["intensity"]) == (0, 0, 0)
    assert found["bytes"] == found["least_bytes"] == 2 * 4 * 64 * AREA


def test_batch_multiplies_maps_not_weights() -> None:
    cfg = BlockConfig("dense", size=14)
    one, eight = arithmetic(cfg), arithmetic(cfg, 8)
    assert eight["macs"] == 8 * one["macs"] and eight["weight_bytes"] == one["weight_bytes"]
    assert eight["bytes"] - eight["weight_bytes"] == 8 * (one["bytes"] - one["weight_bytes"])
    assert eight["intensity"] > one["intensity"]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("kind", list(blocks.OPS))
def test_every_block_runs(kind: str, norm: bool) -> None:
    groups = 4 if kind in ("shuffle", "bottleneck", "paths", "path") else 1
    cfg = BlockConfig(kind, 16, 16, groups=groups, size=6, norm=norm)
    block = blocks.build(cfg)
    assert block(torch.randn(2, 16, 6, 6)).shape == (2, 16, 6, 6)
    found = arithmetic(cfg)
    assert found["params"] == sum(p.numel() for p in block.parameters())
    assert found["least_bytes"] <= found["bytes"]
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in block.modules()) == (norm and kind not in ("shuffle", "se"))


@pytest.mark.parametrize("engine", ["eager", "onnxruntime", "train"])
def test_latency_is_a_trial(engine: str) -> None:
    base = Setup(block=BlockConfig(channels_in=8, channels_out=8, size=6), batch=2, engine=engine, threads=1, runs=3)
    setups = [base.replace({"block.op": op}) for op in ("dense", "separable", "shuffle")]
    assert canonical(base)["block"]["kind"] == "Block"
    found = blocks.latency(setups, 0)
    assert [f["macs"] for f in found] == [arithmetic(s.block, 2)["macs"] for s in setups]
    for one in found:
        assert one["low_ms"] <= one["latency_ms"] <= one["high_ms"] and len(one["samples_ms"]) == 3
        assert (one["gmacs_per_second"] is None) == (engine == "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"op": "mlp"}, "unknown block 'mlp'"),
        ({"op": "depthwise", "channels_out": 32}, "as many channels out as in"),
        ({"groups": 3}, "3 groups don't divide 64 channels"),
        ({"kernel": 4}, "must be odd"),
        ({"size": 0}, "size 0"),
        ({"op": "bottleneck", "groups": 32, "inner": 40}, "32 groups don't divide 40"),
    ],
)
def test_refusals(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Refused, match=message):
        BlockConfig(**changes)
