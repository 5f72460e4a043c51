"""The loss around a trained network: slices of the loss surface along random directions.

After Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets" (arXiv:1712.09913): a direction is drawn at random, and each of its
filters made as long as the network's own, because a network with batch norm can have long or short filters and be the same function.
Biases and the norms' scales and shifts stay where they are.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused

STEPS = tuple(i / 8 for i in range(-8, 9))  # at 1 the direction is added once: as long as the weights


def direction(model: nn.Module, seed: int) -> dict[str, Tensor]:
    """A random direction for the weights of convolutions and linear layers, by name of the parameter, in their shapes.

    Each filter (and each row of a linear layer) has the norm of the model's own.  The numbers are drawn on the CPU: alike on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            continue
        drawn = torch.randn(weight.shape, generator=generator).to(weight)
        per_filter = [weight.shape[0], *[1] * (weight.dim() - 1)]
        lengths = weight.detach().flatten(1).norm(dim=1) / drawn.flatten(1).norm(dim=1).clamp_min(1e-30)
        found[name] = drawn * lengths.view(per_filter)
    return found


@torch.no_grad()
def along(model: nn.Module, way: Mapping[str, Tensor], x: Tensor, y: Tensor, steps: Sequence[float] = STEPS) -> list[float]:
    """Mean cross-entropy on images ``x`` (N, 3, H, W), labels ``y`` (N,), at the weights plus each step times the direction ``way``.

    Evaluation mode, with the norms' stored statistics.  Works on a copy.  Raises Refused for a direction of other parameters.
    """
    twin = copy.deepcopy(model).eval()
    own = dict(twin.named_parameters())
    if unknown := sorted(set(way) - set(own)):
        raise Refused(f"the direction has {unknown[0]}, which this network has not")
    start = {name: own[name].clone() for name in way}
    losses = []
    for step in steps:
        for name, part in way.items():
            own[name].copy_(start[name] + step * part)
        losses.append(float(F.cross_entropy(twin(x), y)))
    return losses


def slices(model: nn.Module, x: Tensor, y: Tensor, directions: int = 2, steps: Sequence[float] = STEPS) -> dict[str, Any]:
    """The loss along several random directions.  ``steps``; ``loss``: a list per direction; ``rise``: mean loss at the two ends of all
    directions, less the loss at the network itself.  ``steps`` runs from -1 to 1 and holds 0."""
    if directions < 1 or 0.0 not in steps:
        raise Refused(f"directions {directions} must be at least 1, and steps must hold 0: the network itself")
    found = [along(model, direction(model, seed), x, y, steps) for seed in range(directions)]
    ends = np.mean([[one[0], one[-1]] for one in found])
    return {"steps": list(steps), "loss": found, "rise": float(ends - found[0][list(steps).index(0.0)])}
