"""Where a network's MACs are, and which part of two networks' difference each part explains.

Everything is counted by ``probes.cost`` on the meta device; this file sums and compares.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from cnnstudy.config import choose
from cnnstudy.models.zoo import COMMON, ZooConfig, zoo
from cnnstudy.probes.cost import cost

TYPES = {"depthwise": "depthwise", "grouped": "grouped", "1x1": "1x1", "fc": "fc", "gate": "SE gate"}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@cache
def counted(cfg: ZooConfig) -> dict[str, Any]:
    """``probes.cost`` of a zoo network at its resolution, on the meta device; read only, it is kept for the process."""
    with torch.device("meta"):
        network = zoo(cfg)
    return cost(network, cfg.resolution)


def kind_of(layer_type: str) -> str:
    """A layer's operator for a chart: ``3x3``, ``1x1``, ``depthwise``, ``grouped``, ``fc``, ``SE gate``, else ``larger kernels``."""
    return TYPES.get(layer_type, "3x3" if layer_type == "3x3" else "larger kernels")


def headline(cfg: ZooConfig) -> dict[str, Any]:
    """The figures of one network that a table shows: at its own resolution, and (``..._224``) at the common one.

    ``macs``, ``flops`` (2 macs), ``params``, ``activations``, ``peak_bytes`` (fp32, batch 1), ``memory_mb`` (fp32 weights and
    peak, 10^6 bytes), ``operations`` (flops and elementwise), ``layers``; shares of the MACs ``share_by_operator``,
    ``share_by_size`` (map height) and ``share_by_channels`` (output channels); ``macs_by_stage`` and ``activations_by_stage``
    in order of execution.
    """
    own, common = counted(cfg), counted(ZooConfig(cfg.name, COMMON, cfg.edits))
    macs = own["macs"]
    operators: dict[str, int] = {}
    for name, count in own["macs_by_type"].items():
        operators[kind_of(name)] = operators.get(kind_of(name), 0) + count
    return {
        **{name: own[name] for name in ("macs", "flops", "params", "activations", "peak_bytes", "operations", "elementwise")},
        **{f"{name}_224": common[name] for name in ("macs", "flops", "activations", "operations")},
        "memory_mb": (4 * own["params"] + own["peak_bytes"]) / 1e6,
        "layers": own["weighted_layers_all"],
        "share_by_operator": {name: count / macs for name, count in operators.items()},
        "share_by_size": {str(size): count / macs for size, count in own["macs_by_size"].items()},
        "share_by_channels": {str(c): count / macs for c, count in own["macs_by_channels"].items()},
        "macs_by_stage": own["macs_by_stage"],
        "activations_by_stage": own["activations_by_stage"],
    }


def against(claimed: float, cfg: ZooConfig) -> dict[str, Any]:
    """A printed cost beside the count: relative errors as MACs, as FLOPs and as MACs at 224, and the factor there (>= 1)."""
    own, common = counted(cfg), counted(ZooConfig(cfg.name, COMMON, cfg.edits))
    ratio = claimed / common["macs"]
    return {
        "macs": own["macs"],
        "flops": own["flops"],
        "macs_224": common["macs"],
        "macs_error_share": abs(claimed / own["macs"] - 1),
        "flops_error_share": abs(claimed / own["flops"] - 1),
        "macs_224_error_share": abs(ratio - 1),
        "factor_at_224": max(ratio, 1 / ratio),
    }


def count_on(cfg: ZooConfig, batch: int, device: str, precision: str) -> dict[str, Any]:
    """Count one forward pass that really runs on ``device`` (``meta``: that runs nowhere) in ``precision``."""
    dtype = PRECISIONS[choose("precision", precision, PRECISIONS)]
    with torch.device("meta" if device == "meta" else "cpu"):
        network = zoo(cfg)
    done = cost(network, cfg.resolution, batch, device, dtype)
    return {"macs": done["macs"], "params": done["params"], "activations": done["activations"]}


def mobilenet_part(name: str, last: int) -> str:
    """Which part of a timm MobileNet a layer belongs to; ``last``: index of its last stage of blocks."""
    stage = name.split(".")
    if ".se." in f".{name}.":
        return "gates"
    if stage[0] in ("conv_stem", "classifier"):
        return {"conv_stem": "stem"}.get(stage[0], stage[0])
    if stage[0] == "conv_head" or stage[:2] == ["blocks", str(last)]:
        return "last_stage"
    return "first_block" if stage[:2] == ["blocks", "0"] else "body"


def mobilenet_parts(cfg: ZooConfig) -> dict[str, int]:
    """MACs of stem, first block, body, gates, last stage (after the last block at stride 32 that has a twin) and classifier."""
    layers = counted(cfg)["layers"]
    last = max(int(layer["name"].split(".")[1]) for layer in layers if layer["name"].startswith("blocks."))
    sums = dict.fromkeys(("stem", "first_block", "body", "gates", "last_stage", "classifier"), 0)
    for layer in layers:
        sums[mobilenet_part(layer["name"], last)] += layer["macs"]
    return sums


def saved(before: ZooConfig, after: ZooConfig) -> dict[str, Any]:
    """What ``after`` saves against ``before``, by part of a MobileNet: MACs, and the body's share of the difference.

    ``body_and_first_block_share`` counts the first block, whose input the stem decides, to the body.
    """
    a, b = mobilenet_parts(before), mobilenet_parts(after)
    parts: dict[str, Any] = {f"{part}_saved_macs": a[part] - b[part] for part in a}
    difference = sum(parts.values())
    return {
        **parts,
        "saved_macs": difference,
        "body_share": parts["body_saved_macs"] / difference,
        "body_and_first_block_share": (parts["body_saved_macs"] + parts["first_block_saved_macs"]) / difference,
    }


def basic_blocks(network: nn.Module) -> dict[str, Any]:
    """Number of residual blocks, the class's name, and how many 3x3 (and other) convolutions each has on its main path."""
    blocks = [m for m in network.modules() if type(m).__name__ in ("BasicBlock", "Bottleneck")]
    kernels = [[m.kernel_size for n, m in b.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n] for b in blocks]
    return {
        "blocks": len(blocks),
        "kind": ", ".join(sorted({type(b).__name__ for b in blocks})),
        "convs_3x3": [sum(k == (3, 3) for k in of_one) for of_one in kernels],
        "other_convs": sum(k != (3, 3) for of_one in kernels for k in of_one),
    }
