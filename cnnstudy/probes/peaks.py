"""Where and when memory peaks: map size by map size in inference, and around the peak of a training step.  All in bytes.

Counted from the tapes that ``probes.memory`` counts from (float32, meta device, nothing computed).
"""

from __future__ import annotations

from typing import Any

from cnnstudy.config import choose
from cnnstudy.probes import memory
from cnnstudy.probes.layer_costs import expansions
from cnnstudy.probes.tape import inference_tape, training_tape


def live_by_size(model: Any, resolution: int, mode: str = "folded") -> dict[str, int]:
    """Most bytes alive, in inference of one image, while an operation writes a map of each size: {"112": ..., "56": ...}.

    The size is the height of the map; vectors (gates, the head) are left out.  ``mode``: see ``memory.inference``.
    """
    original = inference_tape(model, resolution, 1)
    tape = memory.folded(original) if choose("mode", mode, ("eager", "folded")) == "folded" else original
    found: dict[str, int] = {}
    for operation, alive in zip(tape.operations, tape.timeline().tolist(), strict=True):
        shape = original.storages[operation.writes[0]].shape  # operations keep their numbers when they are folded
        if len(shape) == 4 and shape[2] > 1:
            found[str(shape[2])] = max(found.get(str(shape[2]), 0), alive)
    return found


def training_peak(model: Any, resolution: int, batch: int = 2) -> dict[str, Any]:
    """The peak of activations in one training step, and whether it is a spike.

    - ``peak_bytes``, ``phase`` ("forward" or "backward"), ``place`` (0 to 1 in its phase), ``over_kept`` (share above what is alive
      at the end of the forward pass), ``peak_over_mean``, ``at`` (module);
    - ``spikes``, ``is_spike``: see ``memory.spikes``;
    - ``newest_expanded``: whether the tensor made by the operation at the peak has the expanded width of an inverted residual.
    """
    step = memory.training(model, resolution, batch)
    tape, peak = training_tape(model, resolution, batch), step["peak_index"]
    hidden = {row["block"]: row["hidden"] for row in expansions(model).to_dict("records") if row["ratio"] > 1}
    born = [s for s in tape.storages if s.born == peak and len(s.shape) == 4]
    wide = any(s.module.startswith(f"{block}.") and s.shape[1] == width for s in born for block, width in hidden.items())
    spikes = memory.spikes(step["timeline"])
    return {
        "peak_bytes": step["peak_activation_bytes"],
        "phase": step["peak_phase"],
        "place": step["peak_place"],
        "over_kept": step["peak_over_kept"],
        "peak_over_mean": float(step["timeline"].max() / step["timeline"].mean()),
        "at": step["peak_at"],
        "spikes": spikes["spikes"],
        "is_spike": spikes["peak_is_spike"],
        "newest_expanded": wide,
    }
