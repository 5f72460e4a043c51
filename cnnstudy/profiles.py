"""Exact measurements that many pages share: what a network costs, and what memory it needs.

A trial of this module, with a setup of ``networks.at``, makes the same record whichever page asks for it, so that it is measured
once.  Pages pass the function itself to ``study.measure`` and use its name as the experiment's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cnnstudy.config import Refused, Setup
from cnnstudy.probes import layer_costs, memory
from cnnstudy.probes.cost import cost
from cnnstudy.probes.tape import network


def zoo_profile(setup: Setup, seed: int) -> dict[str, Any]:
    """Experiment "zoo_profile", exact: what one image costs, in parts.

    - ``params``, ``macs``, ``flops``, ``activations``, ``macs_per_param``, ``weighted_layers``, ``weighted_layers_all``;
    - parameters: ``conv_weights``, ``linear_weights``, ``biases``, ``norms``, and ``head_params`` (linear layers at the end);
    - sums, as short dicts, of ``macs``, ``weights`` and ``activations``: ``<sum>_by_role`` (stem, dense, pointwise, depthwise, grouped,
      projection, gate, head), ``<sum>_by_size`` (height of the map, "1": vectors), ``<sum>_by_stage``;
      ``macs_by_channels`` (output channels); ``macs_by_kernel`` and ``layers_by_kernel`` ("3", "1", ...; linear: "fc");
    - ``elements``: all elements written (norms, activations, additions and all); ``conv_elements``: by convolutions alone.
    """
    net = network(setup.model, "meta", training=False)
    resolution = setup.resolution
    whole, table, kinds = cost(net, resolution), layer_costs.layers(net, resolution), layer_costs.params_by_kind(net)
    table["kernel"] = np.where(table["type"] == "fc", "fc", table["kernel"].astype(str))
    by_op = layer_costs.elements_by_op(net, resolution)

    def sums(what: str, by: str) -> dict[str, int]:
        return {str(name): int(value) for name, value in table.groupby(by, sort=False)[what].sum().items()}

    head = table[table["role"] == "head"]
    found = {
        **{name: whole[name] for name in ("params", "macs", "flops", "activations", "weighted_layers", "weighted_layers_all")},
        "macs_per_param": whole["macs"] / whole["params"],
        **{name: kinds[name] for name in ("conv_weights", "linear_weights", "biases", "norms")},
        "head_params": int(head["weights"].sum() + head["biases"].sum()),
        "elements": sum(by_op.values()),
        "conv_elements": by_op.get("convolution", 0),
        "layers_by_kernel": {str(name): int(n) for name, n in table["kernel"].value_counts(sort=False).items()},
        "macs_by_kernel": sums("macs", "kernel"),
        "macs_by_channels": sums("macs", "channels"),
    }
    for by in ("role", "size", "stage"):
        found |= {f"{what}_by_{by}": sums(what, by) for what in ("macs", "weights", "activations")}
    return found


TRAINING_BATCH = 2  # what is kept grows in step with the batch; batch norm needs two


def zoo_memory(setup: Setup, seed: int) -> dict[str, Any]:
    """Experiment "zoo_memory", exact: the memory ledger of a network, float32.

    - ``weights_bytes``, ``gradients_bytes``, ``state_momentum_bytes``, ``state_adam_bytes``;
    - saved for the backward pass: ``saved_per_image``, ``saved_fixed`` (does not grow with the batch); ``saved_by_size`` and
      ``saved_by_kind`` (bytes per image, by height of the map, and activation, index, input, vector);
    - training at batch 2, activations and images: ``training_peak_bytes``, ``training_peak_phase``, ``training_peak_place`` (0 to 1
      in its phase), ``training_peak_at``, ``training_peak_over_kept``, ``training_spikes``, ``training_peak_is_spike``;
    - inference of one image, <mode> "eager" and "folded": ``<mode>_peak_bytes``, ``<mode>_peak_at``, ``<mode>_peak_shapes``,
      ``<mode>_peak_over_mean``, ``<mode>_spikes``, ``<mode>_peak_is_spike``, ``<mode>_by_block`` (most bytes alive while a block runs);
    - of inverted residuals (else None): ``expanded_saved_share``, ``narrow_saved_share``, ``eager_peak_expanded``,
      ``folded_peak_expanded``;
    - arrays beside the record: ``training_timeline``, ``eager_timeline``, ``folded_timeline`` (bytes by operation), of which the first
      ``forward_operations`` of training are the forward pass.
    """
    net, resolution = setup.model, setup.resolution  # a config: its tapes are kept
    grown = memory.by_batch(net, resolution)
    step = memory.training(net, resolution, TRAINING_BATCH)
    kept = memory.saved(net, resolution, TRAINING_BATCH)
    found: dict[str, Any] = {
        **{name: grown[name] for name in ("params", "weights_bytes", "buffers_bytes", "gradients_bytes", "saved_per_image", "saved_fixed")},
        **{f"state_{name}_bytes": grown["optimizer_bytes"][name] for name in ("momentum", "adam")},
        **{f"saved_by_{by}": {str(n): float(v) for n, v in kept.groupby(by)["bytes_per_image"].sum().items()} for by in ("size", "kind")},
        "training_peak_bytes": step["peak_activation_bytes"],
        **{f"training_{name}": step[name] for name in ("peak_phase", "peak_place", "peak_at", "peak_over_kept")},
        "forward_operations": step["forward_operations"],
        "training_timeline": step["timeline"],
        **{f"training_{name}": value for name, value in memory.spikes(step["timeline"]).items()},
    }
    for mode in ("eager", "folded"):
        run = memory.inference(net, resolution, 1, mode)
        found |= {f"{mode}_{name}": run[name] for name in ("peak_bytes", "peak_at", "peak_shapes", "peak_over_mean", "timeline")}
        found |= {f"{mode}_{name}": value for name, value in memory.spikes(run["timeline"]).items()}
        found[f"{mode}_by_block"] = memory.by_block(net, resolution, mode)
    try:
        wide = memory.expanded(net, resolution)
    except Refused:  # no inverted residuals
        wide = dict.fromkeys(("saved_share", "narrow_share", "peak_eager", "peak_folded"))
    found |= {"expanded_saved_share": wide["saved_share"], "narrow_saved_share": wide["narrow_share"]}
    return found | {"eager_peak_expanded": wide["peak_eager"], "folded_peak_expanded": wide["peak_folded"]}
