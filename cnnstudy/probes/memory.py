"""Where memory goes: weights, gradients, optimiser state, and activations, in training and in inference.  All in bytes.

Counted from the tape of one pass (``probes.tape``), by default on the meta device: exact, in milliseconds, without a
single number being computed.  What an allocator adds (rounding, fragmentation, workspaces of its kernels) is not in it;
``probes.allocator`` says how much that is.  Activations are counted as unique storages: a tensor that three layers keep takes
its memory once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from cnnstudy.config import Refused, choose
from cnnstudy.probes.layer_costs import expansions
from cnnstudy.probes.recompute import residual_blocks
from cnnstudy.probes.tape import Operation, Tape, inference_tape, network, training_tape

# Numbers that an optimiser keeps for each weight, and for each parameter tensor (Adam counts its steps, in float32).
OPTIMIZERS = {"sgd": (0, 0), "momentum": (1, 0), "adam": (2, 1)}
NEAR = 0.02  # of a peak: operations this close to it are named beside it


def _on(device: str) -> dict[str, str]:
    """The argument that names a real device; tapes of the meta device are kept."""
    return {} if device == "meta" else {"device": device}


def fixed(model: Any) -> dict[str, Any]:
    """What does not depend on the batch: bytes of ``weights``, ``buffers``, ``gradients``, and ``optimizer`` state by kind."""
    return dict(_fixed_of_config(model) if dataclasses.is_dataclass(model) else _fixed(model))


def _fixed(model: Any) -> dict[str, Any]:
    net = network(model, "meta", training=True)
    weights = [p for p in net.parameters()]
    trained = [p for p in weights if p.requires_grad]
    size = sum(p.numel() * p.element_size() for p in trained)
    return {
        "params": sum(p.numel() for p in trained),
        "weights_bytes": sum(p.numel() * p.element_size() for p in weights),
        "buffers_bytes": sum(b.numel() * b.element_size() for b in net.buffers()),
        "gradients_bytes": size,
        "optimizer_bytes": {name: each * size + 4 * once * len(trained) for name, (each, once) in OPTIMIZERS.items()},
    }


_fixed_of_config: Callable[[Any], dict[str, Any]] = lru_cache(maxsize=8)(_fixed)  # a config's network cannot change


def training(model: Any, resolution: int, batch: int = 2, device: str = "meta") -> dict[str, Any]:
    """Memory of one training step (forward, loss, backward) of a network or a config, for a whole ``batch``.

    - those of :func:`fixed`;
    - ``saved_bytes``: saved for the backward pass, the images included (``saved_input_bytes``), parameters left out;
    - ``kept_bytes``: everything alive at the end of the forward pass.  It equals ``saved_bytes`` up to loss and
      reference-held outputs, and is the one to use with activation checkpointing, which keeps inputs by itself;
    - ``peak_bytes``: most bytes alive at once in the whole step besides weights and optimiser state, that is activations,
      images, and gradients as far as they exist by then; ``peak_activation_bytes``: of activations and images alone;
    - of the latter, ``peak_index`` (operation), ``peak_at`` (module), ``peak_op``, ``peak_phase`` ("forward", "backward"),
      ``peak_place`` (position in that phase, 0 to 1), ``peak_over_kept`` (share by which it exceeds ``kept_bytes``);
    - ``timeline``: bytes of activations and images alive, ``gradient_timeline``: of parameter gradients, by operation
      (int64 arrays); ``forward_operations``: where the backward pass begins.
    """
    tape = training_tape(model, resolution, batch, **_on(device))
    timeline, gradients = tape.timeline("input", "activation"), tape.timeline("gradient")
    peak = int(timeline.argmax())
    forward = peak < tape.forward
    begin, length = (0, tape.forward) if forward else (tape.forward, len(timeline) - tape.forward)
    kept = sum(s.bytes for s in tape.storages if s.born < tape.forward and (s.died is None or s.died >= tape.forward))
    return {
        **fixed(model),
        "batch": batch,
        "saved_bytes": sum(s.bytes for s in tape.storages if s.saved),
        "saved_input_bytes": sum(s.bytes for s in tape.storages if s.saved and s.kind == "input"),
        "kept_bytes": kept,
        "peak_bytes": int((timeline + gradients).max()),
        "peak_activation_bytes": int(timeline[peak]),
        "peak_index": peak,
        "peak_at": tape.operations[peak].module,
        "peak_op": tape.operations[peak].op,
        "peak_phase": "forward" if forward else "backward",
        "peak_place": (peak - begin) / length,
        "peak_over_kept": float(timeline[peak] / kept - 1),
        "timeline": timeline,
        "gradient_timeline": gradients,
        "forward_operations": tape.forward,
    }


def saved(model: Any, resolution: int, batch: int = 2) -> pd.DataFrame:
    """The tensors that are saved for the backward pass, a row each, in the order in which they were made.

    ``module`` (that made it; dotted name, "" the network itself), ``op``, ``kind`` ("input", "activation", "index" of a
    pooling or "vector" of a norm's statistics, a gate, the head), ``channels``, ``size`` (height of the map, 1: a vector),
    ``bytes`` (of the whole batch) and ``bytes_per_image``.
    """
    rows = []
    for storage in training_tape(model, resolution, batch).storages:
        if storage.saved:
            is_map = len(storage.shape) == 4 and storage.shape[-1] > 1
            usual = "index" if storage.dtype == "int64" and is_map else storage.kind if is_map else "vector"
            rows.append(
                {
                    "module": storage.module,
                    "op": storage.op.rstrip("_"),
                    "kind": usual,
                    "channels": storage.shape[1] if len(storage.shape) > 1 else storage.shape[0] if storage.shape else 1,
                    "size": storage.shape[2] if is_map else 1,
                    "bytes": storage.bytes,
                    "bytes_per_image": storage.bytes / batch,
                }
            )
    return pd.DataFrame(rows, columns=["module", "op", "kind", "channels", "size", "bytes", "bytes_per_image"])


def expanded(model: Any, resolution: int) -> dict[str, Any]:
    """Of a network of inverted residuals: how much of its memory is in tensors of the blocks' expanded width.

    ``saved_share``: of the bytes saved for backward (images and all), in maps at the expanded width of a block that expands;
    ``narrow_share``: in all other activation maps; ``peak_eager``, ``peak_folded``: whether the largest map alive at the inference peak
    is such a one.  Raises Refused for a network without blocks that expand.
    """
    table = expansions(model)
    hidden = {row["block"]: row["hidden"] for row in table.to_dict("records") if row["ratio"] > 1}
    if not hidden:
        raise Refused("expanded needs a network with inverted residuals that expand, e.g. mobilenetv2_100, efficientnet_b0")

    def wide(module: str, channels: int) -> bool:
        return any(module.startswith(f"{block}.") and channels == width for block, width in hidden.items())

    rows = saved(model, resolution)
    inside = [wide(m, c) and k == "activation" for m, c, k in zip(rows["module"], rows["channels"], rows["kind"], strict=True)]
    whole, at = rows["bytes"].sum(), rows["bytes"][inside].sum()
    found = {"saved_share": float(at / whole), "narrow_share": float((rows["bytes"][rows["kind"] == "activation"].sum() - at) / whole)}
    tape = inference_tape(model, resolution, 1)
    for mode, one in (("eager", tape), ("folded", folded(tape))):
        largest = one.alive(int(one.timeline().argmax()))[0]
        found[f"peak_{mode}"] = wide(largest.module, largest.shape[1])
    return found


ACTIVATIONS = {"relu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "silu", "gelu", "tanh", "leaky_relu", "elu"}
WEIGHTED = {"convolution", "addmm", "mm"}


def folded(tape: Tape) -> Tape:
    """The inference tape as a deployment engine would run it.

    A batch norm behind a convolution or linear layer that nothing else reads becomes part of that layer; an activation
    function whose input nothing needs later writes over it; a tensor is released after its last use, whatever Python
    variable still names it, the images too; results that nothing reads (indices of a pooling) are not made.  Additions
    and products take memory as they do in the network's code.
    """
    readers: dict[int, list[int]] = {}
    for index, operation in enumerate(tape.operations):
        for number in {*operation.reads, *operation.writes}:
            readers.setdefault(number, []).append(index)
    root = list(range(len(tape.storages)))  # storages that share one piece of memory have one root
    last = [max(readers.get(number, [-1])) for number in root]
    for number, storage in enumerate(tape.storages):
        if storage.died is None and storage.kind != "input":
            last[number] = len(tape.operations) - 1  # the output
    gone = set()
    for index, operation in enumerate(tape.operations):
        if not operation.reads or not operation.writes or operation.writes[0] == operation.reads[0]:
            continue
        source, target = operation.reads[0], operation.writes[0]
        made_by = tape.storages[source].op
        alone = made_by in WEIGHTED and [i for i in readers[source] if i != tape.storages[source].born] == [index]
        fold = operation.op == "native_batch_norm" and alone
        free = last[root[source]] <= index and tape.storages[source].bytes == tape.storages[target].bytes
        if fold or (operation.op in ACTIVATIONS and free and tape.storages[source].kind != "input"):
            root[target] = root[source]
            last[root[source]] = max(last[root[source]], last[target])
        if fold:
            gone.add(index)
    new_index: dict[int, int] = {}
    kept: list[Operation] = []
    for index, operation in enumerate(tape.operations):
        new_index[index] = len(kept)  # a folded norm is part of the operation before it
        if index in gone:
            new_index[index] -= 1
        else:
            kept.append(operation)
    result = Tape(kept, [], len(kept))
    for number, storage in enumerate(tape.storages):
        unused = storage.died is not None and max(readers.get(number, [-1])) <= storage.born  # indices of a pooling, an engine makes none
        if root[number] == number and not unused:
            born = storage.born if storage.born < 0 else new_index[storage.born]
            result.storages.append(
                type(storage)(**{**storage.__dict__, "born": born, "died": new_index[max(last[number], storage.born, 0)]})
            )
    return result


def inference(model: Any, resolution: int, batch: int = 1, mode: str = "eager", device: str = "meta") -> dict[str, Any]:
    """Memory of one forward pass in evaluation mode without gradients, for a whole ``batch``; weights left out.

    ``mode``: "eager", as PyTorch releases tensors (a Python variable keeps its tensor); "folded", see :func:`folded`.

    - ``peak_bytes`` (images included), ``mean_bytes``, ``peak_over_mean``; ``weights_bytes``, ``buffers_bytes``;
    - ``peak_index``, ``peak_at`` (module), ``peak_op``; ``peak_shapes``: the maps alive there, e.g. ["96x112x112", ...];
    - ``peak_channels``: of the largest of them; ``near_peak``: modules that come within 2 % of the peak;
    - ``timeline`` (int64 array, by operation) and ``modules`` (list of as many names).
    """
    tape = inference_tape(model, resolution, batch, **_on(device))
    if choose("mode", mode, ("eager", "folded")) == "folded":
        tape = folded(tape)
    timeline = tape.timeline()
    peak = int(timeline.argmax())
    there = tape.alive(peak)
    parts = fixed(model)
    names = [operation.module for operation in tape.operations]
    return {
        "batch": batch,
        "weights_bytes": parts["weights_bytes"],
        "buffers_bytes": parts["buffers_bytes"],
        "peak_bytes": int(timeline[peak]),
        "mean_bytes": float(timeline.mean()),
        "peak_over_mean": float(timeline[peak] / timeline.mean()),
        "peak_index": peak,
        "peak_at": names[peak],
        "peak_op": tape.operations[peak].op,
        "peak_shapes": ["x".join(map(str, s.shape[1:])) for s in there if s.bytes >= NEAR * timeline[peak]],
        "peak_channels": there[0].shape[1],
        "near_peak": list(dict.fromkeys(n for n, b in zip(names, timeline, strict=True) if b >= (1 - NEAR) * timeline[peak])),
        "timeline": timeline,
        "modules": names,
    }


def by_block(model: Any, resolution: int, mode: str = "folded") -> dict[str, int]:
    """Most bytes alive in inference of one image while each residual block runs; other modules by the first part of their name.

    In the order of execution, e.g. {"conv_stem": ..., "blocks.0.0": ..., ..., "classifier": ...}; "": the network's own operations.
    """
    blocks = residual_blocks(network(model, "meta", training=False))
    run = inference(model, resolution, 1, mode)
    found: dict[str, int] = {}
    for name, alive in zip(run["modules"], run["timeline"].tolist(), strict=True):
        block = next((b for b in blocks if f"{name}.".startswith(f"{b}.")), name.split(".")[0])
        found[block] = max(found.get(block, 0), alive)
    return found


def by_batch(model: Any, resolution: int) -> dict[str, Any]:
    """How training memory grows with the batch: every count is ``<name>_fixed + batch * <name>_per_image``, exactly.

    For ``saved``, ``kept``, ``peak_activation``, all in bytes, beside those of :func:`fixed`.  From two tapes (batches 2 and 4).
    """
    two, four = (training(model, resolution, batch) for batch in (2, 4))
    result = fixed(model)
    for name in ("saved", "kept", "peak_activation"):
        slope = (four[f"{name}_bytes"] - two[f"{name}_bytes"]) / 2
        result |= {f"{name}_per_image": slope, f"{name}_fixed": two[f"{name}_bytes"] - 2 * slope}
    return result


def breakdown(model: Any, resolution: int, batch: int, optimizer: str = "momentum", training: bool = True) -> dict[str, float]:
    """Bytes of ``weights``, ``gradients``, ``optimizer``, ``activations`` (training: saved for backward; inference: peak, eager),
    their ``total``, and ``share``: weights and activations over the total.  ``optimizer``: sgd, momentum or adam."""
    if not training:
        run = inference(model, resolution, batch)
        parts = {"weights": run["weights_bytes"], "gradients": 0, "optimizer": 0, "activations": run["peak_bytes"]}
    else:
        known = by_batch(model, resolution)
        state = known["optimizer_bytes"][choose("optimizer", optimizer, OPTIMIZERS)]
        activations = known["saved_fixed"] + batch * known["saved_per_image"]
        parts = {"weights": known["weights_bytes"], "gradients": known["gradients_bytes"], "optimizer": state, "activations": activations}
    whole = sum(parts.values())
    return {**parts, "total": whole, "share": (parts["weights"] + parts["activations"]) / whole}


def overtakes(heavy: dict[str, Any], light: dict[str, Any], optimizer: str = "momentum", most: int = 4096) -> int | None:
    """Smallest batch at which the training memory of ``light`` exceeds that of ``heavy`` (two results of :func:`by_batch`).

    None: not up to ``most``.  Memory: weights, gradients, optimiser state, and what is saved for the backward pass.
    """

    def total(known: dict[str, Any], batch: int) -> float:
        constant = known["weights_bytes"] + known["gradients_bytes"] + known["optimizer_bytes"][optimizer]
        return float(constant + known["saved_fixed"] + batch * known["saved_per_image"])

    return next((b for b in range(1, most + 1) if total(light, b) > total(heavy, b)), None)


def spikes(timeline: Sequence[int] | np.ndarray, reach: int = 10, by: float = 0.2) -> dict[str, Any]:
    """Operations where live bytes exceed those ``reach`` operations before *and* after by at least ``by`` (a share).

    ``spikes``: their number; ``peak_is_spike``: the whole curve's peak is one of them.  At the ends the curve counts as 0.
    """
    if reach < 1 or by < 0 or not len(timeline):
        raise Refused(f"spikes needs a timeline, reach >= 1 and by >= 0; got {len(timeline)} operations, reach={reach}, by={by}")
    line = np.asarray(timeline, dtype=float)
    padded = np.pad(line, reach)
    before, after = padded[: len(line)], padded[2 * reach :]
    found = (line >= (1 + by) * before) & (line >= (1 + by) * after) & (line > 0)
    return {"spikes": int(found.sum()), "peak_is_spike": bool(found[int(line.argmax())])}
