"""Which input channels reach which output channels: by the graph, and by the Jacobian.

By the graph: a layer is a boolean matrix (outputs, inputs) that says which channel may depend on which; layers one after the other
are its boolean product.  By the Jacobian: the same question asked of a real network through autograd, in double precision.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.models.shuffle import MIX, Permute
from cnnstudy.probes.receptive import positive

# By the graph --------------------------------------------------------------------------------------------------------


def _divide(channels: int, groups: int) -> int:
    if groups < 1 or channels < 1 or channels % groups:
        raise Refused(f"{channels} channels do not divide into {groups} groups; valid: a divisor of the number of channels")
    return channels // groups


def grouped(channels_in: int, channels_out: int, groups: int = 1) -> np.ndarray:
    """Connections of a convolution with ``groups``: (out, in) of bool, block-diagonal.  1: dense; ``channels_in``: depthwise."""
    block = np.ones((_divide(channels_out, groups), _divide(channels_in, groups)), dtype=bool)
    return np.kron(np.eye(groups, dtype=bool), block)


def shuffle_order(channels: int, groups: int) -> np.ndarray:
    """Channel shuffle as a permutation: position i of the result holds channel ``order[i]``.  Reshape (g, n), transpose, flatten."""
    _divide(channels, groups)
    order: np.ndarray = np.arange(channels).reshape(groups, -1).T.ravel()
    return order


def permutation(order: Sequence[int] | np.ndarray) -> np.ndarray:
    """A permutation of channels as a boolean matrix (out, in)."""
    matrix = np.zeros((len(order), len(order)), dtype=bool)
    matrix[np.arange(len(order)), np.asarray(order)] = True
    return matrix


def chain(*layers: np.ndarray) -> np.ndarray:
    """Which input reaches which output of layers one after the other, the first given first: their boolean product."""
    if not layers:
        raise Refused("chain needs at least one layer")
    reached = layers[0].astype(bool)
    for layer in layers[1:]:
        if layer.shape[1] != reached.shape[0]:
            raise Refused(f"a layer with {layer.shape[1]} inputs can't follow one with {reached.shape[0]} outputs")
        reached = (layer.astype(np.int64) @ reached.astype(np.int64)) > 0
    return reached


def stack_reach(channels: int, groups: int, layers: int, between: str = "none", residual: bool = False, seed: int = 0) -> np.ndarray:
    """Reachability (out, in) through ``layers`` grouped 1x1 convolutions with ``between`` them "none", a "shuffle", or a "random"
    permutation (another for each); ``residual``: each layer's input is added to its output.  Depthwise layers change nothing."""
    choose("mixer", between, MIX)
    if layers < 1:
        raise Refused(f"{layers} layers; a stack has at least one")
    rng = np.random.default_rng(seed)
    reached = np.eye(channels, dtype=bool)
    for index in range(layers):
        if index and between != "none":
            order = shuffle_order(channels, groups) if between == "shuffle" else rng.permutation(channels)
            reached = reached[order]
        after = chain(reached, grouped(channels, channels, groups))
        reached = after | reached if residual else after
    return reached


def between_groups(reached: np.ndarray, groups: int) -> np.ndarray:
    """(groups out, groups in): share of a pair's channel-to-channel connections that exist, 0 to 1.  Above 0: the group is reached."""
    rows, columns = (_divide(n, groups) for n in reached.shape)
    share: np.ndarray = reached.reshape(groups, rows, groups, columns).mean((1, 3))
    return share


def sources(groups: int, per_group: int) -> dict[str, Any]:
    """After a shuffle of ``groups`` x ``per_group`` channels: how many source groups each group of the next layer receives.

    ``least``, ``most``; ``all``: every next group sees every group; ``equal``: and each equally often.
    """
    origin = shuffle_order(groups * per_group, groups) // per_group
    counts = np.stack([np.bincount(part, minlength=groups) for part in origin.reshape(groups, per_group)])
    seen = (counts > 0).sum(1)
    return {
        "least": int(seen.min()),
        "most": int(seen.max()),
        "all": bool(seen.min() == groups),
        "equal": bool((counts == counts[0, 0]).all()),
    }


# By the Jacobian -----------------------------------------------------------------------------------------------------


def grouped_stack(channels: int, groups: int, layers: int, between: str = "none", depthwise: bool = True, seed: int = 0) -> nn.Module:
    """The stack of :func:`stack_reach` as a network: grouped 1x1 convolutions, ReLUs, depthwise 3x3 convolutions, and the mixer."""
    choose("mixer", between, MIX)
    rng = np.random.default_rng(seed)
    parts: list[nn.Module] = []
    for index in range(layers):
        if index:
            mixer = MIX[between](channels, groups)
            if isinstance(mixer, Permute):
                mixer.order.copy_(torch.as_tensor(rng.permutation(channels)))  # the graph's, not one of its own
            parts.append(mixer)
        parts += [nn.Conv2d(channels, channels, 1, groups=groups), nn.ReLU()]
        if depthwise and index < layers - 1:
            parts.append(nn.Conv2d(channels, channels, 3, padding=1, groups=channels))
    return nn.Sequential(*parts)


def channel_jacobian(module: nn.Module, channels: int, size: int = 7, draws: int = 4, seed: int = 0) -> dict[str, Any]:
    """How the centre pixel of each output channel depends on each input channel: at ``draws`` random inputs, in float64.

    The module maps (1, channels, size, size) to a map (1, out, H, W), in evaluation mode; it is left as it was found.

    - ``norm``: (out, in) float64: root of the mean over draws of the squared gradient, summed over input pixels; exactly 0 where
      the output does not depend on the input channel, or all ReLUs between them sleep (see :func:`reachable`);
    - ``reaches``: (out, in) bool: norm above 0;  ``share``: of pairs that are reached;
    - ``height``, ``width``: of the box of input pixels that any output depends on; ``pixels``: most pixels of one pair;
    - ``same_pixel_only``: no output depends on another pixel than its own.
    """
    if size < 1 or draws < 1 or channels < 1:
        raise Refused(f"channel_jacobian needs channels, size and draws >= 1; got {channels}, {size} and {draws}")
    net = copy.deepcopy(module).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)

    def centre(x: Tensor) -> Tensor:
        out = net(x[None])
        if out.dim() != 4:
            raise Refused(f"{type(module).__name__} gives {tuple(out.shape)}; valid: a module that gives a map (N, C, H, W)")
        return out[0, :, out.shape[2] // 2, out.shape[3] // 2]

    squared = torch.zeros(())
    for _ in range(draws):
        x = torch.randn(channels, size, size, dtype=torch.float64, generator=generator)
        squared = squared + torch.autograd.functional.jacobian(centre, x, vectorize=False).square()
    norm = squared.sum((2, 3)).div(draws).sqrt().numpy()
    touched = squared > 0
    anywhere = touched.flatten(0, 1).any(0)
    rows, columns = (torch.nonzero(anywhere.any(axis)).flatten().tolist() or [0] for axis in (1, 0))
    return {
        "norm": norm,
        "reaches": norm > 0,
        "share": float((norm > 0).mean()),
        "height": rows[-1] - rows[0] + 1,
        "width": columns[-1] - columns[0] + 1,
        "pixels": int(touched.sum((2, 3)).max()),
        "same_pixel_only": int(anywhere.sum()) <= 1,
    }


def reachable(module: nn.Module, channels: int, size: int = 7) -> np.ndarray:
    """(out, in) bool, exact: which input channel can change which output channel at all, whatever the weights.

    The Jacobian of a copy in which nothing cancels and no ReLU sleeps (:func:`receptive.positive`).
    """
    reached: np.ndarray = channel_jacobian(positive(module), channels, size, draws=1)["reaches"]
    return reached


def linearity_error(module: nn.Module, channels: int, size: int = 7, seed: int = 0) -> float:
    """Largest difference of ``f(a x + b y)`` and ``a f(x) + b f(y)``, relative to the largest output, in float64."""
    net = copy.deepcopy(module).double().eval().requires_grad_(False)
    x, y = torch.randn(2, 1, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    a, b = 1.7, -0.6
    with torch.no_grad():
        together, apart = net(a * x + b * y), a * net(x) + b * net(y)
    return float((together - apart).abs().max() / together.abs().max())
