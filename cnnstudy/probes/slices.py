"""Which earlier layers' outputs a layer has before it, unprocessed: literal slices of what it reads, found by running the network.

A layer is what an architecture puts between two concatenations or sums: a dense layer (norm, 1x1, norm, 3x3), a transition, a
residual block, the stem, the classifier.  It reads what enters its first operation, norms included.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models.dense import Dense, DenseLayer
from cnnstudy.probes import taps
from cnnstudy.probes.tape import network


class Layer(NamedTuple):
    """``place``: the block that it belongs to ("" outside of blocks); what enters ``reads`` and leaves ``writes`` (names of modules)."""

    name: str
    place: str
    reads: str
    writes: str


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers from input to output of a DenseNet (timm's or ours) or of a network of blocks (timm's ResNets, ours, plain twins)."""
    names = dict(model.named_modules())
    if isinstance(model, Dense):
        found = [Layer("stem", "", "stem", "stem")]
        for i, stage in enumerate(model.stages):
            for name, part in stage.named_children():
                at = f"stages.{i}.{name}"
                found.append(Layer(at, str(i), at, f"{at}.branch") if isinstance(part, DenseLayer) else Layer(at, "", at, at))
        return [*found, Layer("head", "", "final", "head")]
    if "features.denseblock1" in names:
        found = [Layer("stem", "", "features.conv0", "features.pool0")]
        for name, part in names.items():
            if type(part).__name__ == "DenseLayer":
                found.append(Layer(name, name.split(".")[1], f"{name}.norm1", name))
            elif type(part).__name__ == "DenseTransition":
                found.append(Layer(name, "", f"{name}.norm", f"{name}.pool"))
        return [*found, Layer("head", "", "features.norm5", "classifier")]
    if "layer1.0" in names:
        blocks = [Layer(n, n.split(".")[0], n, n) for n in names if n.startswith("layer") and n.count(".") == 1]
        return [Layer("stem", "", "conv1", "maxpool"), *blocks, Layer("head", "", "global_pool", "fc")]
    if hasattr(model, "blocks") and "stages.0.0" in names and "final" in names:
        blocks = [Layer(n, n.split(".")[1], n, n) for n in names if n.startswith("stages.") and n.count(".") == 2]
        return [Layer("stem", "", "stem", "stem"), *blocks, Layer("head", "", "final", "head")]
    raise Refused(
        f"{type(model).__name__} has no layers that slices knows; valid: DenseNets, timm's ResNets, this package's residual families"
    )


def is_slice(part: Tensor, whole: Tensor) -> bool:
    """Does ``whole`` (N, C, H, W) hold all channels of ``part`` (N, c, H, W), one behind the other, to the bit?"""
    if part.dim() != 4 or whole.dim() != 4 or part.shape[0] != whole.shape[0] or part.shape[2:] != whole.shape[2:]:
        return False
    more = whole.shape[1] - part.shape[1]
    starts = (whole[:, : more + 1] == part[:, :1]).flatten(2).all(2).all(0).nonzero() if more >= 0 else torch.zeros(0, 1)
    return any(torch.equal(whole[:, int(i) : int(i) + part.shape[1]], part) for i in starts)


@torch.no_grad()
def connections(model: Any, resolution: int = 64, seed: int = 0) -> dict[str, Any]:
    """Run a network (a module or a config) once on two random images, and look what each layer finds before it.

    - ``names``, ``places`` of the layers, and for each ``channels``, ``size`` of the map that it reads and ``made``, channels it puts out;
    - ``direct``: bool (layers, layers), [later, earlier]: is the earlier one's output a literal slice of what the later one reads;
    - ``image``: for each layer, whether the image is.

    Weights and statistics of the norms are random, evaluation mode, so that no two maps are alike by chance.
    """
    generator = torch.Generator().manual_seed(seed)
    net = network(model, "cpu", training=False)  # a copy, or built anew
    for parameter in net.parameters():
        if parameter.dim() == 1:  # scales and shifts, so that a norm is never the identity
            parameter.uniform_(0.5, 1.5, generator=generator)
    layers, modules = layers_of(net), dict(net.named_modules())
    x = torch.rand(2, 3, resolution, resolution, generator=generator)
    reads = {str(i): modules[a.reads] for i, a in enumerate(layers)}
    writes = {str(i): modules[a.writes] for i, a in enumerate(layers)}
    with taps.inputs(reads) as read, taps.outputs(writes) as made:
        net(x)
    count = len(layers)
    seen = [read[str(i)] for i in range(count)]
    direct = np.zeros((count, count), dtype=bool)
    for later in range(count):
        for earlier in range(later):
            direct[later, earlier] = is_slice(made[str(earlier)], seen[later])
    return {
        "names": [a.name for a in layers],
        "places": [a.place for a in layers],
        "channels": [t.shape[1] for t in seen],
        "size": [t.shape[2] for t in seen],
        "made": [made[str(i)].shape[1] for i in range(count)],
        "direct": direct,
        "image": [is_slice(x, t) for t in seen],
    }


def summary(model: Any, resolution: int = 64) -> dict[str, Any]:
    """What :func:`connections` comes to.

    ``layers``, ``blocks``; ``pairs`` (earlier, later) and the ``share`` of them that are connected directly; ``within`` and ``across``: the
    same for pairs of layers of one block, and for pairs with a transition between them; ``connections``: how many there are within blocks,
    the block's own input counted as one source; ``widths_follow``: in every block of width k0 layer l reads k0 + k (l - 1) channels;
    ``input_kept``: every layer of a block has the block's input before it, unprocessed; ``image``: layers beyond the first that have
    the image; ``direct`` (array), ``channels``, ``size``, ``made`` (lists).
    """
    found = connections(model, resolution)
    direct, places, channels, made = (found[name] for name in ("direct", "places", "channels", "made"))
    count = len(places)
    earlier = np.tril(np.ones((count, count), dtype=bool), -1)
    inner = np.array([[a == b != "" for b in places] for a in places]) & earlier
    group = np.cumsum([i > 0 and place != places[i - 1] for i, place in enumerate(places)])
    blocks = [np.flatnonzero(group == g) for g in sorted(set(group)) if places[int(np.flatnonzero(group == g)[0])]]
    inputs = [(block, int(block[0]) - 1) for block in blocks]  # the layer in front of a block makes its input
    kept = [bool(direct[i, before]) for block, before in inputs for i in block]
    follow = [channels[i] == made[before] + sum(made[j] for j in block if j < i) for block, before in inputs for i in block]
    # a pair is across where neither one block nor its input and its reader hold both
    near = inner.copy()
    for block, before in inputs:
        after = int(block[-1]) + 1
        near[block, before] = True
        near[after, [before, *block]] = True
    across = earlier & ~near
    return {
        "layers": count, "blocks": len(blocks), "pairs": int(earlier.sum()), "share": float(direct[earlier].mean()),
        "within": float(direct[inner].mean()), "across": float(direct[across].mean()) if across.any() else None,
        "connections": int(direct[inner].sum()) + sum(kept), "input_kept": all(kept), "widths_follow": all(follow),
        "image": int(sum(found["image"][1:])), "direct": direct, "channels": channels, "size": found["size"], "made": made,
    }  # fmt: skip
