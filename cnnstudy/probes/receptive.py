"""The receptive field: which input pixels a unit can see (theoretical), and which it really listens to (effective).

Theoretical, closed form: with kernel k, stride s, padding p and dilation d, a layer turns (size r, jump j, start a) into
``r + d (k - 1) j``, ``j s`` and ``a + (d (k - 1) / 2 - p) j``.  *Size*: side of the field in pixels; *jump*: pixels between the
fields of neighbouring units; *start*: centre of the first unit's field.  Effective: Luo et al. 2016, arXiv:1701.04128.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import curve_fit
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker
from torch.utils.weak import WeakIdKeyDictionary

from cnnstudy.config import Refused
from cnnstudy.probes import taps
from cnnstudy.probes.tape import images, network

Field = tuple[float, float, float]  # of the first unit: first and last pixel of its field; jump


def _each(values: int | Sequence[int], count: int, what: str) -> list[int]:
    spread = [values] * count if isinstance(values, int) else list(values)
    if len(spread) != count:
        raise Refused(f"{len(spread)} {what} for {count} kernels; give one for each, or a single number")
    return spread


def stack(
    kernels: Sequence[int],
    strides: int | Sequence[int] = 1,
    paddings: int | Sequence[int] | None = None,
    dilations: int | Sequence[int] = 1,
) -> list[dict[str, float]]:
    """Closed form for layers one after the other (convolutions or poolings): ``size``, ``jump``, ``start`` after each.

    ``paddings`` None: half the dilated kernel, so that maps keep their size at stride 1.

    >>> stack([3, 3, 3])[-1]["size"], stack([7])[-1]["size"]
    (7, 7)
    """
    count = len(kernels)
    dilated = _each(dilations, count, "dilations")
    half = [d * (k - 1) // 2 for k, d in zip(kernels, dilated, strict=True)]
    padded = half if paddings is None else _each(paddings, count, "paddings")
    rows: list[dict[str, float]] = []
    size, jump, start = 1, 1, 0.0
    for k, s, p, d in zip(kernels, _each(strides, count, "strides"), padded, dilated, strict=True):
        start += (d * (k - 1) / 2 - p) * jump
        size += d * (k - 1) * jump
        jump *= s
        rows.append({"size": size, "jump": jump, "start": start})
    return rows


# A whole network -----------------------------------------------------------------------------------------------------


class _Fields(TorchDispatchMode):
    """Carries the field of a unit through every operation; where paths meet, the union of their fields.  None: everything."""

    def __init__(self, tracker: ModuleTracker, gates: bool) -> None:
        super().__init__()
        self.tracker, self.gates = tracker, gates
        self.fields: Any = WeakIdKeyDictionary()
        self.of_module: dict[str, Field | None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = func.overloadpacket.__name__.rstrip("_")
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t in self.fields]
        out = func(*args, **(kwargs or {}))
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if given and results:
            known = [self.fields[t] for t in given]
            field = self._after(op, args, known, given[0], results[0])
            for tensor in results:
                self.fields[tensor] = field
            for name in self.tracker.parents - {"Global"}:
                self.of_module.pop(name, None)
                self.of_module[name] = field  # the last operation of a module makes its output
        return out

    def _after(self, op: str, args: Any, known: list[Field | None], given: Tensor, out: Tensor) -> Field | None:
        fields = [field for field in known if field is not None]
        gate = op == "mul" and fields and not self.gates  # a map times a vector that was pooled from it
        if not fields or (len(fields) < len(known) and not gate):
            return None
        low, high, jump = min(f[0] for f in fields), max(f[1] for f in fields), max(f[2] for f in fields)
        if op == "convolution":
            kernel, stride, padding, dilation = args[1].shape[2], args[3][0], args[4][0], args[5][0]
        elif op.startswith(("max_pool2d", "avg_pool2d")):
            rest = [list(a) for a in args[2:] if isinstance(a, Sequence)]
            kernel, stride = args[1][0], rest[0][0] if rest and rest[0] else args[1][0]
            padding = rest[1][0] if len(rest) > 1 else 0
            dilation = rest[2][0] if op.startswith("max") and len(rest) > 2 else 1
        elif op == "constant_pad_nd":
            kernel, stride, padding, dilation = 1, 1, (args[1][2] if len(args[1]) > 2 else 0), 1
        elif op == "slice" and out.dim() == 4:  # x[:, :, ::2, ::2]
            kernel, stride, padding, dilation = 1, (args[4] if len(args) > 4 and args[1] == 2 else 1), 0, 1
        elif given.dim() >= 4 and (out.dim() < 4 or out.shape[-2:] != given.shape[-2:]):
            return None  # global pooling, flattening
        else:
            return (low, high, jump)
        return (low - padding * jump, high + (dilation * (kernel - 1) - padding) * jump, jump * stride)


def of_network(model: Any, resolution: int = 224, gates: bool = False) -> pd.DataFrame:
    """The theoretical field at the output of every module of a network or a config, in the order in which modules finish.

    Columns ``module`` ("": the network itself), ``size``, ``jump``, ``start``, and ``whole``: the module sees the whole image, by
    global pooling or full connection; its numbers are then NaN.  ``size`` may exceed the image.  Where paths meet the field is
    their union.  ``gates``: whether squeeze-and-excite gates, which pool over the whole map, count; else only the maps do.
    """
    net = network(model, "meta", training=False)
    x = images(net, resolution, 1, "meta")
    with ModuleTracker() as tracker, torch.no_grad(), _Fields(tracker, gates) as watch:
        watch.fields[x] = (0.0, 0.0, 1.0)
        try:
            net(x)
        except RuntimeError as error:
            raise Refused(f"{type(net).__name__} can't take images of {resolution} x {resolution}: {str(error).splitlines()[0]}") from error
    rows = []
    for name, field in watch.of_module.items():
        low, high, jump = field or (math.nan,) * 3
        inner = name.removeprefix(type(net).__name__).removeprefix(".")
        rows.append({"module": inner, "size": high - low + 1, "jump": jump, "start": (low + high) / 2, "whole": field is None})
    return pd.DataFrame(rows)


# By gradient ---------------------------------------------------------------------------------------------------------


def positive(model: nn.Module) -> nn.Module:
    """A copy in which nothing cancels: every weight 1 / fan-in, norms and activations identities, means for maxima; float64.

    Its gradient is positive exactly where a path exists, whatever the weights are.
    """
    twin = copy.deepcopy(model).double().eval().requires_grad_(False)
    for name, module in list(twin.named_modules()):
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.reset_parameters()
        elif isinstance(module, nn.Conv2d | nn.Linear) and weight is not None:
            weight.fill_(1 / weight[0].numel())
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.MaxPool2d):
            mean = nn.AvgPool2d(module.kernel_size, module.stride, module.padding, module.ceil_mode)
            dilated = module.dilation not in (1, (1, 1))
            if dilated:
                raise Refused(f"{name}: a dilated max pooling has no mean pooling like it")
            twin.set_submodule(name, mean)
        elif type(module).__module__.endswith((".activation", ".activations", ".activations_me")):
            twin.set_submodule(name, nn.Identity())
    return twin


def _centre_gradient(model: nn.Module, x: Tensor, layer: str, seed: int | None) -> Tensor:
    """Gradient (N, C, H, W) with respect to ``x`` of the centre unit of a map: a random direction in channels, or (None) their sum."""
    modules = dict(model.named_modules())
    if layer not in modules:
        raise Refused(f"no module {layer!r} in this {type(model).__name__}; valid: {', '.join(list(modules)[1:6])}, ...")
    x = x.detach().requires_grad_()
    with torch.enable_grad(), taps.outputs({"map": modules[layer]}) as seen:
        model(x)
    out = seen["map"]
    if out.dim() != 4 or out.requires_grad is False:
        raise Refused(f"{layer or type(model).__name__} gives {tuple(out.shape)}; valid: a layer with a map that depends on the input")
    unit = out[:, :, out.shape[2] // 2, out.shape[3] // 2]
    generator = torch.Generator().manual_seed(seed or 0)
    ones = torch.ones(unit.shape, dtype=unit.dtype)
    direction = ones if seed is None else torch.randn(unit.shape, generator=generator).to(unit.dtype)
    (gradient,) = torch.autograd.grad((unit * direction.to(unit.device)).sum(), x)
    return gradient


def support(model: nn.Module, resolution: int, layer: str = "") -> dict[str, int]:
    """Brute force: the input pixels that can change the centre unit of a layer's map ("" : the output), whatever the weights.

    ``top``, ``left``, ``height``, ``width`` of their box, in pixels, and ``pixels``, their number (less than the box: there are holes).
    Where the field is larger than the image, the image bounds it.
    """
    twin = positive(model)
    x = images(twin, resolution, 1, "cpu").double() + 1
    reached = _centre_gradient(twin, x, layer, None)[0].abs().sum(0) > 0
    rows, columns = (torch.nonzero(reached.any(axis)).flatten().tolist() for axis in (1, 0))
    return {
        "top": rows[0],
        "left": columns[0],
        "height": rows[-1] - rows[0] + 1,
        "width": columns[-1] - columns[0] + 1,
        "pixels": int(reached.sum()),
    }


def effective(model: nn.Module, x: Tensor, layer: str = "", seed: int = 0) -> np.ndarray:
    """The effective field of the centre unit of a layer's map ("": the output): an energy per input pixel, summing to 1.

    ``x``: images (N, C, H, W), best random ones; mean over them of the squared gradient, summed over input channels, of a
    random direction among the output channels.  Batch norms use their running statistics.  Returns (H, W), float64.
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    energy = _centre_gradient(twin, x, layer, seed).double().square().sum(1).mean(0)
    return (energy / energy.sum()).cpu().numpy()


def effective_over_seeds(make: Callable[[int], nn.Module], shape: Sequence[int], seeds: Iterable[int], layer: str = "") -> np.ndarray:
    """Mean effective field over random initialisations: ``make(seed)`` builds a network; images are normal, one a seed.

    ``shape``: (C, H, W) of the images.
    """
    maps = []
    for seed in seeds:
        torch.manual_seed(seed)
        net = make(seed)
        x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
        maps.append(effective(net, x.to(next(net.parameters()).device), layer, seed))
    if not maps:
        raise Refused("effective_over_seeds needs at least one seed")
    mean: np.ndarray = np.mean(maps, axis=0)
    return mean


MASS = 0.95
TWO_SIGMA = 1 - 0.9545  # of the largest gradient: Luo et al.'s edge of the effective field


def _gaussian(at: np.ndarray, height: float, sigma: float) -> np.ndarray:
    return np.asarray(height * np.exp(-(at**2) / (2 * sigma**2)))


def measures(energy: np.ndarray, theoretical: float | None = None) -> dict[str, float | None]:
    """How wide an effective field is.  ``energy``: (H, W); ``theoretical``: side of the theoretical field in pixels.

    - ``radius95``: radius of the disc around its centre of mass that holds 95 % of the energy;
    - ``sigma``: standard deviation in pixels (mean of both directions); ``sigma_fit``: width of the Gaussian fitted to the energy
      summed over each direction, ``fit_r2``: share of its variance that the Gaussian explains;
    - ``central_share``: of the energy, in the 3 x 3 pixels around the centre of mass;
    - ``side``: root of the number of pixels whose gradient (root of the energy) is at least 4.55 % of the largest;
      ``area_share``: that number over the area of the theoretical field, None without one.
    """
    if energy.ndim != 2 or not np.isfinite(energy).all() or energy.min() < 0 or energy.sum() <= 0:
        raise Refused(f"an effective field is a map (H, W) of energies, at least one above 0; got shape {energy.shape}")
    share = energy / energy.sum()
    places = np.arange(share.shape[0]), np.arange(share.shape[1])
    margins = share.sum(1), share.sum(0)
    centre = [float((m * p).sum()) for m, p in zip(margins, places, strict=True)]
    variance = np.mean([(m * (p - c) ** 2).sum() for m, p, c in zip(margins, places, centre, strict=True)])
    distance = np.hypot(places[0][:, None] - centre[0], places[1][None, :] - centre[1]).ravel()
    order = np.argsort(distance, kind="stable")
    inside = np.searchsorted(np.cumsum(share.ravel()[order]), MASS * (1 - 1e-12))
    sigma = math.sqrt(float(variance))
    at = np.concatenate([p - c for p, c in zip(places, centre, strict=True)])
    profile = np.concatenate(margins)
    fitted, r2 = None, None
    if sigma > 0:
        (height, width), _ = curve_fit(_gaussian, at, profile, p0=(profile.max(), sigma))
        missed = profile - _gaussian(at, height, width)
        fitted, r2 = abs(float(width)), 1 - float(missed.var() / profile.var())
    row, column = (round(c) for c in centre)
    large = int((np.sqrt(energy) >= TWO_SIGMA * math.sqrt(energy.max())).sum())
    return {
        "radius95": float(distance[order][min(int(inside), len(order) - 1)]),
        "sigma": sigma,
        "sigma_fit": fitted,
        "fit_r2": r2,
        "central_share": float(share[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].sum()),
        "side": math.sqrt(large),
        "area_share": None if theoretical is None else large / theoretical**2,
    }
