"""What a residual network is made of: blocks per stage, kernels, channels, map sizes.  All of it is counted.

For networks with stages ``layer1`` to ``layer4`` of residual blocks with convolutions ``conv1, conv2, ...``, as timm builds
ResNets.  Networks on the meta device will do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.probes import taps

STAGES = ("layer1", "layer2", "layer3", "layer4")


def _stages(model: nn.Module) -> dict[str, list[nn.Module]]:
    if not all(isinstance(getattr(model, stage, None), nn.Sequential) for stage in STAGES):
        raise Refused(f"{type(model).__name__} has no stages {', '.join(STAGES)}; valid: a ResNet as timm builds it")
    return {stage: list(getattr(model, stage)) for stage in STAGES}


def _convs(block: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a block's branch in their order; the projection shortcut is not among them."""
    return [module for name, module in block.named_children() if name.startswith("conv") and isinstance(module, nn.Conv2d)]


def _spatial(block: nn.Module) -> nn.Conv2d:
    """The first convolution of a block that sees more than one pixel."""
    return next(conv for conv in _convs(block) if conv.kernel_size != (1, 1))


def _share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def anatomy(model: nn.Module, resolution: int = 224) -> dict[str, Any]:
    """The blocks of ``model``, which is left as it was found.

    - ``blocks``: number per stage, ``{"1": 3, "2": 4, "3": 6, "4": 3}``;
    - ``kernels`` and ``channels``: per block, e.g. "1x1 3x3 1x1" and "256-64-64-256" (in, then out of each convolution);
    - ``reduces_share``, ``restores_share``: share of blocks whose first convolution has fewer channels out than in, and
      whose last one has as many out as came in;
    - ``narrow_share``, ``smaller_map_share``: share of blocks whose first 3x3 has fewer channels at its input than the
      block has, and less height there.

    Raises Refused for a network without the stages of a ResNet.
    """
    stages = _stages(model)
    blocks = [block for stage in stages.values() for block in stage]
    convs = [_convs(block) for block in blocks]
    where = next(model.parameters()).device
    watched = {f"{i} {part}": m for i, b in enumerate(blocks) for part, m in (("block", b), ("3x3", _spatial(b)))}
    was = model.training
    model.eval()
    with torch.no_grad(), taps.inputs(watched) as seen:
        model(torch.zeros(1, 3, resolution, resolution, device=where))
    model.train(was)
    shapes = [(seen[f"{i} block"].shape, seen[f"{i} 3x3"].shape) for i in range(len(blocks))]
    return {
        "blocks": {stage.removeprefix("layer"): len(members) for stage, members in stages.items()},
        "kernels": [" ".join("x".join(str(k) for k in c.kernel_size) for c in one) for one in convs],
        "channels": ["-".join(str(n) for n in (one[0].in_channels, *(c.out_channels for c in one))) for one in convs],
        "reduces_share": _share([one[0].out_channels < one[0].in_channels for one in convs]),
        "restores_share": _share([one[-1].out_channels == one[0].in_channels for one in convs]),
        "narrow_share": _share([inside[1] < outside[1] for outside, inside in shapes]),
        "smaller_map_share": _share([inside[2] < outside[2] for outside, inside in shapes]),
    }


def without_blocks(deep: nn.Module, shallow: nn.Module, stage: int, removed: int) -> dict[str, bool | int]:
    """Are ``deep`` without the last ``removed`` blocks of a stage (1 to 4) and ``shallow`` alike?

    ``same_shapes``: every weight has the same name and shape; ``same_elsewhere``: the other stages have equally many
    blocks; ``differing``: weights that are in one only or differ in shape; ``left``: blocks left in the stage.
    Raises Refused for a stage that does not have so many blocks.
    """
    many = {name: len(members) for name, members in _stages(deep).items()}
    name = f"layer{stage}"
    if name not in many or not 0 <= removed <= many[name]:
        raise Refused(f"cannot remove {removed} blocks from stage {stage}; valid: stages 1 to 4 with {list(many.values())} blocks")
    left = many[name] - removed
    gone = tuple(f"{name}.{i}." for i in range(left, many[name]))
    ours = {n: tuple(p.shape) for n, p in deep.named_parameters() if not n.startswith(gone)}
    theirs = {n: tuple(p.shape) for n, p in shallow.named_parameters()}
    differing = ours.items() ^ theirs.items()
    other = {n: len(members) for n, members in _stages(shallow).items()}
    return {
        "same_shapes": not differing,
        "same_elsewhere": all(other[n] == many[n] for n in many if n != name),
        "differing": len({n for n, _ in differing}),
        "left": left,
    }
