"""What concatenating costs: memory of DenseNets as written and recomputed, the largest batch that fits, where the saved bytes are.

Recomputing (Pleiss et al. 2017, arXiv:1707.06990): what a dense layer reads, its norm and its first convolution are not kept, but made
again in the backward pass.
"""

from __future__ import annotations

import copy
from typing import Any

import pandas as pd
from torch import nn

from cnnstudy.config import Refused, choose
from cnnstudy.probes import memory
from cnnstudy.probes.tape import network, training_tape

GIB = 2**30
FORMS = ("standard", "recomputing")
BATCH = 2  # batch norm needs two


def in_form(model: Any, form: str, device: str = "meta") -> nn.Module:
    """A network of timm's (module or config) on ``device`` in training mode; ``form`` "recomputing": its dense layers recompute."""
    net = copy.deepcopy(network(model, device, training=True))
    if choose("form", form, FORMS) == "recomputing":
        layers = [m for m in net.modules() if hasattr(m, "grad_checkpointing") and type(m).__name__ == "DenseLayer"]
        if not layers:
            raise Refused(f"{type(net).__name__} has no dense layers that could recompute; valid: timm's DenseNets")
        for layer in layers:
            layer.grad_checkpointing = True  # type: ignore[assignment]
    return net


def needs(model: Any, form: str = "standard", resolution: int = 224) -> dict[str, float]:
    """Bytes of training with momentum: ``fixed`` (weights, buffers, gradients, momentum, and what is kept whatever the batch).

    And for each image ``kept``: alive at the end of the forward pass, the images included; most alive at once in the step: ``peak_fixed``
    and ``peak``.  From one tape at batch 2: what grows with the batch has it as its first dimension, all else (statistics of norms) is
    fixed.
    """
    net = in_form(model, form)
    tape, known = training_tape(net, resolution, BATCH), memory.fixed(net)
    held = known["weights_bytes"] + known["buffers_bytes"] + known["gradients_bytes"] + known["optimizer_bytes"]["momentum"]
    at_end = [s for s in tape.storages if s.born < tape.forward and (s.died is None or s.died >= tape.forward)]
    peak = int(tape.timeline("input", "activation").argmax())
    at_peak = [s for s in tape.storages if s.kind != "gradient" and s.born <= peak and (s.died is None or s.died >= peak)]
    found: dict[str, float] = {"params": known["params"]}
    for name, extra, alive in (("kept", "fixed", at_end), ("peak", "peak_fixed", at_peak)):
        grows = sum(s.bytes for s in alive if s.shape and s.shape[0] == BATCH)
        found |= {name: grows / BATCH, extra: held + sum(s.bytes for s in alive) - grows}
    return found


def largest_batch(found: dict[str, float], gib: float, reserve: float = 0.1, what: str = "kept") -> int:
    """The largest batch that fits ``gib`` GiB less ``reserve`` of them, from :func:`needs`; 0 if not one image does.

    ``what``: "kept", what is saved at the end of the forward pass; "peak", the most that is alive at once.
    """
    fixed = found["fixed"] if choose("what", what, ("kept", "peak")) == "kept" else found["peak_fixed"]
    return max(0, int((gib * GIB * (1 - reserve) - fixed) // found[what]))


def saved_parts(model: Any, resolution: int = 224) -> pd.DataFrame:
    """What a DenseNet of timm's saves for the backward pass, for each image, by dense block and part.

    A row a block: ``block`` (1..; 0: all that is in no dense layer), ``layers``; bytes in ``joined`` (the concatenation that a layer reads)
    and ``activated`` (normalised and cut off at zero), ``inner`` (behind the 1x1: as made and activated), ``rest``.
    """
    rows = memory.saved(model, resolution)
    found: dict[int, dict[str, float]] = {}
    layers: dict[int, set[str]] = {}
    for row in rows.to_dict("records"):
        words = str(row["module"]).split(".")
        dense = len(words) > 2 and words[1].startswith("denseblock") and words[2].startswith("denselayer")
        block = int(words[1].removeprefix("denseblock")) if dense else 0
        if dense:
            layers.setdefault(block, set()).add(words[2])
        part = _part(words, str(row["op"])) if dense else "rest"
        entry = found.setdefault(block, dict.fromkeys(("joined", "activated", "inner", "rest"), 0.0))
        entry[part] += float(row["bytes_per_image"])
    if len(found) < 2:
        raise Refused("saved_parts needs a DenseNet of timm's; no dense layer was found")
    return pd.DataFrame([{"block": block, "layers": len(layers.get(block, ())), **found[block]} for block in sorted(found)])


def _part(words: list[str], op: str) -> str:
    if op == "cat":
        return "joined"
    last = words[3] if len(words) > 3 else ""
    return {"norm1": "activated", "conv1": "inner", "norm2": "inner"}.get(last, "rest")
