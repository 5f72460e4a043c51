"""Depthwise separable convolutions against the dense ones that they stand for: cost, composition, and how near one comes to the other.

A separable layer is a depthwise k x k convolution (one filter a channel) and a pointwise 1 x 1 convolution after it.  Written as one
dense kernel it is ``W[o, i] = p[o, i] * d[i]``: for each input channel a matrix (outputs, k * k) of rank 1.  Hence the nearest
separable layer to a dense one is known exactly: each of these matrices is cut to rank 1 by its singular values (Eckart and Young),
and r separable layers side by side, added, reach rank r (Guo et al. 2018, arXiv:1808.05517).
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from cnnstudy.config import Refused
from cnnstudy.layers import conv
from cnnstudy.probes.cost import cost
from cnnstudy.probes.layer_costs import layers as layer_table

# What a pair costs ---------------------------------------------------------------------------------------------------


def _count(layers: nn.Module, channels: int, size: int, outputs: int) -> tuple[int, float]:
    """Weights, and MACs per position of an output map of ``outputs`` pixels, counted by torch on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layers(torch.empty(1, channels, size, size, device="meta"))
    return sum(p.numel() for p in layers.parameters()), counter.get_total_flops() / 2 / outputs


def against_dense(kernel: int, c_in: int, c_out: int, stride: int = 1, size: int = 8) -> dict[str, float]:
    """A dense convolution and its separable form, built and counted, beside the formulas; no bias.

    - ``dense_weights``, ``dense_macs``, ``separable_weights``, ``separable_macs``: MACs per output position, so that dense ones should
      equal ``k^2 c_in c_out`` and separable ones ``k^2 c_in + c_in c_out``; ``dense_error``, ``separable_error``: the larger of the two
      absolute differences from that;
    - ``reduction`` (MACs, dense over separable), ``ratio_error``: the larger relative deviation of separable over dense from
      ``1 / c_out + 1 / k^2``, in weights and in MACs;
    - ``reduction_norm``, ``ratio_error_norm``: of the parameters with batch norm behind every convolution (two a channel);
    - ``late_stride_macs``: per output position where the 1 x 1 has the stride and the depthwise works on the full map.
    """
    if min(kernel, c_in, c_out, stride) < 1 or size % stride or kernel % 2 == 0:
        raise Refused(
            f"kernel {kernel} (odd), c_in {c_in}, c_out {c_out}, stride {stride} must be at least 1, and stride a divisor of size {size}"
        )
    with torch.device("meta"):
        dense = conv(c_in, c_out, kernel, stride)
        pair = nn.Sequential(conv(c_in, c_in, kernel, stride, groups=c_in), conv(c_in, c_out, 1))
        late = nn.Sequential(conv(c_in, c_in, kernel, groups=c_in), conv(c_in, c_out, 1, stride))
    outputs = (size // stride) ** 2
    dense_weights, dense_macs = _count(dense, c_in, size, outputs)
    weights, macs = _count(pair, c_in, size, outputs)
    formula, by_hand = 1 / c_out + 1 / kernel**2, {"dense": kernel**2 * c_in * c_out, "separable": kernel**2 * c_in + c_in * c_out}
    norm = (weights + 2 * c_in + 2 * c_out) / (dense_weights + 2 * c_out)
    return {
        "dense_weights": dense_weights,
        "dense_macs": dense_macs,
        "separable_weights": weights,
        "separable_macs": macs,
        "dense_error": max(abs(dense_weights - by_hand["dense"]), abs(dense_macs - by_hand["dense"])),
        "separable_error": max(abs(weights - by_hand["separable"]), abs(macs - by_hand["separable"])),
        "reduction": dense_macs / macs,
        "ratio_error": max(abs(part / formula - 1) for part in (weights / dense_weights, macs / dense_macs)),
        "reduction_norm": 1 / norm,
        "ratio_error_norm": abs(norm / formula - 1),
        "late_stride_macs": _count(late, c_in, size, outputs)[1],
    }


def least_width(reduction: float, kernel: int = 3) -> int:
    """The smallest number of output channels at which a separable layer is ``reduction`` times cheaper: 1/c_out + 1/k^2 <= 1/reduction.

    Raises Refused for a reduction that no width reaches: its limit is k^2.
    """
    area = kernel**2
    if not 0 < reduction < area:
        raise Refused(f"a reduction of {reduction} is out of reach; with {kernel} x {kernel} kernels it lies between 0 and {area}")
    width = 1
    while area * width < reduction * (area + width):  # c_out k^2 / (k^2 + c_out) < reduction, in whole numbers where it is one
        width += 1
    return width


def whole_and_body(model: Any, resolution: int) -> dict[str, Any]:
    """A network as a whole (``macs``, ``params``), without its first layer and its classifier (``body_macs``, ``body_params``), and
    layer by layer in order of execution: lists ``layer_role``, ``layer_size``, ``layer_channels_in``, ``layer_channels``,
    ``layer_macs``, ``layer_weights`` (without norms).  ``body_params`` counts batch norm's two parameters a channel.
    """
    whole, table = cost(model, resolution), layer_table(model, resolution)
    ends = table[table["role"].isin(["stem", "head"])]
    norm = 2 * int(ends.loc[ends["role"] == "stem", "channels"].sum())
    listed = table[["role", "size", "channels_in", "channels", "macs", "weights"]].to_dict("list")
    return {
        "macs": whole["macs"],
        "params": whole["params"],
        "body_macs": whole["macs"] - int(ends["macs"].sum()),
        "body_params": whole["params"] - int(ends["weights"].sum() + ends["biases"].sum()) - norm,
        **{f"layer_{name}": values for name, values in listed.items()},
    }


# One as the other ----------------------------------------------------------------------------------------------------


def composed(depthwise: Tensor, pointwise: Tensor) -> Tensor:
    """The dense kernel (O, C, k, k) of a depthwise (C, 1, k, k) and a pointwise (O, C, 1, 1) one: ``p[o, i] * d[i]``."""
    return pointwise * depthwise.transpose(0, 1)


def composition_error(c_in: int, c_out: int, kernel: int, stride: int = 1, size: int = 9) -> float:
    """Largest difference between a random separable layer and its dense kernel, relative to the largest output, in float64.

    Draws from torch's global generator.
    """
    depthwise = torch.randn(c_in, 1, kernel, kernel, dtype=torch.float64)
    pointwise = torch.randn(c_out, c_in, 1, 1, dtype=torch.float64)
    x = torch.randn(2, c_in, size, size, dtype=torch.float64)
    inner = nn.functional.conv2d(x, depthwise, stride=stride, padding=kernel // 2, groups=c_in)
    apart = nn.functional.conv2d(inner, pointwise)
    whole = nn.functional.conv2d(x, composed(depthwise, pointwise), stride=stride, padding=kernel // 2)
    return float((apart - whole).abs().max() / whole.abs().max())


def _matrices(weight: Tensor) -> Tensor:
    """A dense kernel (O, C, k, k) as one matrix an input channel: (C, O, k * k), in float64."""
    return weight.detach().double().flatten(2).transpose(0, 1)


def rank_errors(weight: Tensor) -> np.ndarray:
    """Relative Frobenius error of the nearest sum of r separable layers to a dense kernel (O, C, k, k), for r = 1 ... min(O, k * k)."""
    energy = torch.linalg.svdvals(_matrices(weight)).square().sum(0)
    left = (energy.sum() - energy.cumsum(0)).clamp(min=0)
    errors: np.ndarray = (left / energy.sum()).sqrt().cpu().numpy()
    return errors


def cut(weight: Tensor, rank: int) -> Tensor:
    """The nearest kernel to ``weight`` that ``rank`` separable layers side by side can hold: (O, C, k, k)."""
    if rank < 1:
        raise Refused(f"rank {rank} must be at least 1")
    u, s, v = torch.linalg.svd(_matrices(weight), full_matrices=False)
    near = (u[..., :rank] * s[:, None, :rank]) @ v[:, :rank]
    return near.transpose(0, 1).reshape(weight.shape).to(weight)


def _dense_layers(model: nn.Module, kernel: int) -> list[tuple[str, nn.Conv2d]]:
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (kernel, kernel)]
    return [(name, module) for name, module in found if module.groups == 1]


def approximations(model: nn.Module, kernel: int = 3, seed: int = 0) -> dict[str, Any]:
    """How near separable layers come to every dense k x k layer of a network, and to Gaussian kernels of equal shapes.

    ``layers`` (names), ``rank1`` and ``gauss1`` (relative error of the nearest separable layer, by layer), ``median``, ``gauss_median``;
    arrays ``error``, ``gauss``: (layers, k * k), by number of separable layers.  ``seed``: of the Gaussian kernels.
    """
    layers = _dense_layers(model, kernel)
    if not layers:
        raise Refused(f"{type(model).__name__} has no dense {kernel} x {kernel} convolution")
    generator = torch.Generator().manual_seed(seed)
    ranks = kernel * kernel
    real, gauss = np.zeros((len(layers), ranks)), np.zeros((len(layers), ranks))
    for i, (_, module) in enumerate(layers):
        ours, theirs = rank_errors(module.weight), rank_errors(torch.randn(module.weight.shape, generator=generator))
        real[i, : len(ours)], gauss[i, : len(theirs)] = ours, theirs
    return {
        "layers": [name for name, _ in layers],
        "rank1": real[:, 0].tolist(),
        "gauss1": gauss[:, 0].tolist(),
        "median": float(np.median(real[:, 0])),
        "gauss_median": float(np.median(gauss[:, 0])),
        "error": real,
        "gauss": gauss,
    }


def separated(model: nn.Module, rank: int, kernel: int = 3) -> nn.Module:
    """A copy of ``model`` in which every dense k x k layer holds the nearest kernel that ``rank`` separable layers can."""
    done = copy.deepcopy(model)
    with torch.no_grad():
        for _, module in _dense_layers(done, kernel):
            module.weight.copy_(cut(module.weight, rank))
    return done
