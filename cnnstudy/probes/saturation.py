"""Where a network's activations are flat: the share of pre-activations with almost no derivative, and units that are always there.

Flat means that the size of the derivative is below 5 % of its maximum; for ReLU that is every input that is not positive.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.probes.propagation import derivative
from cnnstudy.probes.taps import inputs

FLAT = 0.05
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.SiLU, nn.Hardswish, nn.GELU)


def activations(model: nn.Module) -> dict[str, nn.Module]:
    """The activation modules of a network by name, from input to output.  Raises Refused if there is none."""
    found: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if isinstance(module, ACTIVATIONS)}
    if not found:
        raise Refused(f"{type(model).__name__} has no activation that can be flat; known: {', '.join(a.__name__ for a in ACTIVATIONS)}")
    return found


def steepest(act: nn.Module) -> float:
    """The largest size of the derivative of ``act``, on a grid of 40,001 points over [-20, 20] in double precision."""
    return float(derivative(act, torch.linspace(-20, 20, 40_001, dtype=torch.float64)).abs().max())


@torch.no_grad()
def saturation(model: nn.Module, x: Tensor, batch: int = 100, train: bool = True, edges: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Flat shares of every activation of ``model`` on images ``x``: (N, 3, H, W), seen ``batch`` at a time.

    Arrays (layers,): ``flat``: share of all pre-activations that are flat; ``dead``: share of units (each place of each map) that are flat
    for all images; ``dead_channels``: share of maps flat everywhere for all images; ``derivative``: mean size of the derivative;
    ``derivative_product``: its product from the first layer to this one; ``mean, std``: of the pre-activations.  With ``edges`` also
    ``histogram`` (layers, len(edges) - 1): share of pre-activations in each bin, what lies outside counted in the outermost ones.

    ``train``: batch norm normalises by the batch, as in training, else by its running statistics.  Works on a copy of the model.
    """
    twin = copy.deepcopy(model).train(train)
    acts = activations(twin)
    top = {name: steepest(act) for name, act in acts.items()}
    always: dict[str, Tensor] = {}
    sums = {name: torch.zeros(5, dtype=torch.float64) for name in acts}  # values, flat ones, derivative, z, z^2
    counts = {name: np.zeros(len(edges) - 1 if edges is not None else 0) for name in acts}
    with inputs(acts) as seen:
        for part in x.split(batch):
            twin(part)
            for name, act in acts.items():
                z = seen[name]
                slope = derivative(act, z).abs()
                flat = slope < FLAT * top[name]
                always[name] = flat.all(0) & always[name] if name in always else flat.all(0)
                z, slope = z.double(), slope.double()
                sums[name] += torch.stack([torch.tensor(float(z.numel())), flat.sum(), slope.sum(), z.sum(), z.square().sum()]).cpu()
                if edges is not None:
                    inside = z.flatten().cpu().numpy().clip(edges[0], edges[-1])
                    counts[name] += np.histogram(inside, edges)[0]
    n, flat_sum, slope_sum, z_sum, z_squares = (np.array([float(sums[name][i]) for name in acts]) for i in range(5))
    found = {
        "flat": flat_sum / n,
        "dead": np.array([float(always[name].double().mean()) for name in acts]),
        "dead_channels": np.array([float(always[name].flatten(1).all(1).double().mean()) for name in acts]),
        "derivative": slope_sum / n,
        "derivative_product": np.cumprod(slope_sum / n),
        "mean": z_sum / n,
        "std": np.sqrt(np.maximum(z_squares / n - (z_sum / n) ** 2, 0)),
    }
    if edges is not None:
        found["histogram"] = np.stack([counts[name] for name in acts]) / n[:, None]
    return found
