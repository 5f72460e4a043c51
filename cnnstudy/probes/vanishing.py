"""Small exact checks on vanishing gradients: derivatives of activations, decay with depth, the printed chain rule, a diagnosis scored."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy import stats
from cnnstudy.config import Refused, choose
from cnnstudy.models.chain import activation
from cnnstudy.probes.jacobians import jacobian
from cnnstudy.probes.propagation import derivative

REACH, STEPS = 20.0, 40_000
CLOSED = {  # derivative in closed form, and its supremum: s (1 - s) = 1/4 - (s - 1/2)^2, and 1 - t^2
    "sigmoid": (lambda x: 0.25 - (torch.sigmoid(x) - 0.5) ** 2, 0.25),
    "tanh": (lambda x: 1 - torch.tanh(x) ** 2, 1.0),
    "relu": (lambda x: (x > 0).double(), 1.0),
}
NATS = math.log(10)


def derivative_summary(name: str) -> dict[str, Any]:
    """The derivative of an activation by autograd in double precision, on a grid over [-20, 20] that contains 0, and close to 0.

    ``max_derivative`` and where (``at``); ``at_zero``; ``reaches_one``: some input has a derivative of 1 or more; ``above_09``: width of
    the inputs with a derivative above 0.9; ``closed_difference``: largest distance from the closed form; ``supremum`` of that.  Arrays:
    ``x, curve`` over [-6, 6].
    """
    closed, supremum = CLOSED[choose("function", name, CLOSED)]
    act = activation(name)
    grid = torch.linspace(-REACH, REACH, STEPS + 1, dtype=torch.float64)
    near = torch.linspace(-1e-4, 1e-4, 2001, dtype=torch.float64)
    x = torch.cat([grid, near])
    slope = derivative(act, x)
    shown = torch.linspace(-6, 6, 241, dtype=torch.float64)
    top = int(slope.argmax())
    return {
        "max_derivative": float(slope.max()), "at": float(x[top]), "at_zero": float(derivative(act, torch.zeros(1, dtype=torch.float64))),
        "reaches_one": bool((slope >= 1).any()), "above_09": float((slope[: len(grid)] > 0.9).double().mean()) * 2 * REACH,
        "closed_difference": float((slope - closed(x)).abs().max()), "supremum": supremum,
        "x": shown.numpy(), "curve": derivative(act, shown).numpy(),
    }  # fmt: skip


def decay(depths: Sequence[int], log10_ratios: Sequence[Sequence[float]], steepness: float = 0.1, fit: float = 0.9) -> dict[str, Any]:
    """Straight line through log(first / last gradient) against depth, over all draws: ``log10_ratios`` (draws, depths).

    ``slope, slope_low, slope_high`` in nats a layer, with the 95 % interval of least squares; ``factor``: e^slope; ``r2``;
    ``vanishes``: the interval lies below -steepness and r2 above ``fit``; ``explodes``: it lies above 0.
    """
    values = np.asarray(log10_ratios, np.float64) * NATS
    if values.ndim != 2 or values.shape[1] != len(depths) or values.size < 3 or len(set(depths)) < 2:
        raise Refused(f"a line needs draws x {len(depths)} different depths and three values; got {values.shape}")
    x, y = np.tile(np.asarray(depths, np.float64), len(values)), values.ravel()
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * y).sum()) / spread
    rest = y - y.mean() - slope * (x - x.mean())
    total = float(((y - y.mean()) ** 2).sum())
    half = stats._t(stats.LEVEL, len(x) - 2) * math.sqrt(float((rest**2).sum()) / (len(x) - 2) / spread)
    r2 = 1 - float((rest**2).sum()) / total if total else 0.0
    low, high = slope - half, slope + half
    return {
        "slope": slope, "slope_low": low, "slope_high": high, "factor": math.exp(slope), "r2": r2,
        "vanishes": high < -steepness and r2 > fit, "explodes": low > 0,
    }  # fmt: skip


def printed_chain(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    """The product dLoss/dL_n dL_n/dL_(n-1) ... dL_2/dL_1 of explicit Jacobians, beside dLoss/dW_1 from ``backward``.

    ``model``: a chain (``models.ChainConfig``) without norm; ``x``: (1, 3, H, W).  ``same_shape``; ``printed_size, weight_size``: numbers
    in each; ``printed_difference``: relative, 1 where the shapes differ; ``layer_difference``: of the printed product and autograd's
    dLoss/dL_1; ``completed_difference``: after the factor dL_1/dW_1 has been added.
    """
    twin = copy.deepcopy(model).double().train().requires_grad_(True)
    layers = list(twin.layers().values())  # type: ignore[operator]
    if len(x) != 1 or any(isinstance(m, nn.BatchNorm2d) for m in twin.modules()):
        raise Refused(f"explicit Jacobians are of one image without batch norm; got {len(x)} images")
    points = [layers[0](twin.normalize(x.double()))]  # type: ignore[operator]
    for layer in layers[1:]:
        points.append(layer(points[-1]))
    loss = F.cross_entropy(twin.head(twin.final(points[-1]).mean((2, 3))), y)  # type: ignore[operator]
    weight = layers[0].body.conv.weight  # type: ignore[union-attr]
    of_first, of_last, of_weight = torch.autograd.grad(loss, [points[0], points[-1], weight])
    product = of_last.flatten()
    for layer, point in zip(layers[:0:-1], points[-2::-1], strict=True):
        product = product @ jacobian(layer, point)
    inner = twin.normalize(x.double())  # type: ignore[operator]

    def first(w: Tensor) -> Tensor:
        return torch.func.functional_call(layers[0], {"body.conv.weight": w}, (inner,))

    completed = product @ jacobian(first, weight)
    same = product.shape == of_weight.flatten().shape
    return {
        "same_shape": same, "printed_size": product.numel(), "weight_size": of_weight.numel(),
        "printed_difference": _apart(product, of_weight.flatten()) if same else 1.0,
        "layer_difference": _apart(product, of_first.flatten()), "completed_difference": _apart(completed, of_weight.flatten()),
    }  # fmt: skip


def _apart(a: Tensor, b: Tensor) -> float:
    """Relative distance of two vectors."""
    return float((a - b).norm() / b.norm())


def confusion(predicted: Sequence[bool], observed: Sequence[bool]) -> Mapping[str, float]:
    """A diagnosis against what was seen: ``balanced_accuracy`` (mean of the share of sick and of healthy ones recognised) and counts.

    Raises Refused if there are no sick or no healthy ones: then nothing can be balanced.
    """
    pairs = list(zip(predicted, observed, strict=True))
    both, missed = (sum(1 for p, o in pairs if o and p == said) for said in (True, False))
    alarm, clear = (sum(1 for p, o in pairs if not o and p == said) for said in (True, False))
    if not both + missed or not alarm + clear:
        raise Refused(f"of {len(pairs)} networks {both + missed} are sick; a diagnosis needs sick and healthy ones")
    balanced = (both / (both + missed) + clear / (alarm + clear)) / 2
    return {"balanced_accuracy": balanced, "found": both, "missed": missed, "false_alarms": alarm, "cleared": clear, "networks": len(pairs)}
