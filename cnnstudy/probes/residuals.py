"""The residual blocks of an ImageNet ResNet, one by one: which convolutions, how many channels, what they cost.

For networks as timm builds them: stages ``layer1`` to ``layer4`` of blocks with convolutions ``conv1, conv2, ...`` on the branch and,
where input and output differ, a projection ``downsample`` beside it.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.probes import layer_costs
from cnnstudy.probes.tape import network

COUNTS = ("weights", "macs", "activations")


def blocks(model: Any, resolution: int = 224) -> pd.DataFrame:
    """One row per residual block of a network or a config, in order.

    - ``name`` ("layer1.0"), ``stage`` (1 to 4), ``kind`` (the block's class), ``kernels`` ("1x1 3x3 1x1");
    - ``channels_in``, ``inner`` (out of the first convolution), ``channels_out``; ``size``: height of the map that it puts out;
    - ``projected``: the shortcut is a convolution, not the identity;
    - ``weights``, ``macs``, ``activations``: of all convolutions, the projection's with them; ``main_...``: of the branch alone;
    - ``params``: weights and the parameters of the norms.

    Raises Refused for a network without such blocks.
    """
    net = network(model, "meta", training=False)
    table = layer_costs.layers(net, resolution)
    table["block"] = [".".join(name.split(".")[:2]) if name.startswith("layer") else "" for name in table["name"]]
    table["branch"] = [name.split(".")[-1].startswith("conv") for name in table["name"]]
    inside = table[table["block"] != ""]
    if inside.empty or not inside["branch"].any():
        raise Refused(f"{type(net).__name__} has no residual blocks layer1.0, layer1.1, ...; valid: a ResNet as timm builds it")
    return pd.DataFrame([_row(net.get_submodule(str(name)), str(name), rows) for name, rows in inside.groupby("block", sort=False)])


def _row(block: nn.Module, name: str, rows: pd.DataFrame) -> dict[str, Any]:
    main = rows[rows["branch"]]
    first, last = main.iloc[0], main.iloc[-1]
    return {
        "name": name,
        "stage": int(name.removeprefix("layer").split(".")[0]),
        "kind": type(block).__name__,
        "kernels": " ".join(f"{k}x{k}" for k in main["kernel"]),
        "channels_in": int(first["channels_in"]),
        "inner": int(first["channels"]),
        "channels_out": int(last["channels"]),
        "size": int(last["size"]),
        "projected": len(rows) > len(main),
        **{what: int(rows[what].sum()) for what in COUNTS},
        **{f"main_{what}": int(main[what].sum()) for what in COUNTS},
        "params": sum(p.numel() for p in block.parameters()),
    }


def summary(model: Any, resolution: int = 224) -> dict[str, Any]:
    """The blocks as short lists, a value a block, and what they come to:

    ``reduces_share``, ``restores_share`` (share of blocks whose first convolution has fewer channels out than in; that put out as many
    as came in), ``first`` ("256-64": channels of the first convolution), ``mean_<count>`` per block for each count of :func:`blocks`.
    """
    table = blocks(model, resolution)
    counted = [*COUNTS, *(f"main_{what}" for what in COUNTS), "params"]
    return {
        "reduces_share": float((table["inner"] < table["channels_in"]).mean()),
        "restores_share": float((table["channels_out"] == table["channels_in"]).mean()),
        "first": [f"{a}-{b}" for a, b in zip(table["channels_in"], table["inner"], strict=True)],
        **{f"mean_{what}": float(table[what].mean()) for what in counted},
        **{str(column): table[column].tolist() for column in table},
    }
