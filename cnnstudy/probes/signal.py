"""The loss gradient on its way back through a network's blocks: what each block hands to the one before it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.probes.taps import outputs


def block_gradients(model: nn.Module, x: Tensor, y: Tensor) -> list[np.ndarray]:
    """For each stage the L2 norm of the loss gradient at each of its blocks' outputs, from input to output.

    ``x``: (N, C, H, W), ``y``: (N,); mean cross-entropy, training mode.  A stage is a child of ``model.stages``, a block a child of a
    stage.  Works on a copy: mode, gradients and running statistics stay as they were.
    """
    twin = copy.deepcopy(model).train().requires_grad_(True)
    stages: Any = getattr(twin, "stages", ())
    if not len(stages):
        raise Refused(f"{type(model).__name__} has no stages of blocks to look at")
    blocks = {f"{i}.{j}": block for i, stage in enumerate(stages) for j, block in enumerate(stage)}
    with outputs(blocks) as seen:
        loss = F.cross_entropy(twin(x).float(), y)
    norms = [float(g.double().norm()) for g in torch.autograd.grad(loss, [seen[name] for name in blocks])]
    of = {name: norm for name, norm in zip(blocks, norms, strict=True)}
    return [np.array([of[f"{i}.{j}"] for j in range(len(stage))]) for i, stage in enumerate(stages)]


def stage_ratios(profile: list[np.ndarray]) -> list[float]:
    """For each stage the gradient at the first block's output over that at the last's; 1e38 stands for what is not finite."""
    return [float(np.nan_to_num(stage[0] / max(stage[-1], 1e-45), nan=1e38, posinf=1e38)) for stage in profile]
