"""Hooks for ``fit``: looking at gradients while a network learns, and stepping in."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.probes.gradients import signal, spatial_convs
from cnnstudy.train import Hook


class SignalLog(Hook):
    """Measures :func:`cnnstudy.probes.gradients.signal` after the epochs in ``at``; ``found[epoch]`` holds the results."""

    def __init__(self, x: Tensor, y: Tensor, at: Iterable[int]) -> None:
        self.x, self.y, self.at = x, y, set(at)
        self.found: dict[int, dict[str, float | np.ndarray]] = {}

    def on_epoch(self, model: nn.Module, epoch: int) -> None:
        if epoch in self.at:
            self.found[epoch] = signal(model, self.x, self.y)

    def summary(self) -> dict[str, object]:
        """Per quantity a list over the epochs looked at (``signal_epochs``); the profile over layers as an array (epochs, layers)."""
        epochs = sorted(self.found)
        found: dict[str, object] = {"signal_epochs": epochs}
        for name in ("relative_thirds", "cosine_first_third", "cosine_last_third", "log10_ratio"):
            found[name] = [self.found[e][name] for e in epochs]
        if 1 in self.found:
            found["log10_ratio_epoch1"] = self.found[1]["log10_ratio"]
        found["relative"] = np.stack([self.found[e]["relative"] for e in epochs])
        return found


class NormalizeGradients(Hook):
    """Rescales each weight tensor's gradient to ``share`` of the tensor's own norm, so that no layer's signal can
    vanish or explode (layer-wise normalisation as in LARS, You et al. 2017, arXiv:1708.03888, without its decay term).

    Tensors with one dimension (biases, norms) keep their gradients.
    """

    def __init__(self, share: float = 0.01) -> None:
        if share <= 0:
            raise Refused(f"share of the weight norm is {share}; it must be above 0")
        self.share = share

    @torch.no_grad()
    def on_backward(self, model: nn.Module, step: int) -> None:
        for weight in model.parameters():
            if weight.grad is not None and weight.ndim > 1:
                weight.grad.mul_(self.share * weight.norm() / weight.grad.norm().clamp_min(1e-30))


def freeze_first_third(model: nn.Module) -> nn.Module:
    """Stop training of the first third of the spatial convolutions and of all that precedes the first one still trained.

    Returns the same model.  Norms between frozen convolutions are frozen with them; their statistics still follow the data.
    """
    convs = spatial_convs(model)
    boundary = list(convs)[len(convs) // 3]
    for name, parameter in model.named_parameters():
        if name.startswith(boundary):
            return model
        parameter.requires_grad_(False)
    raise Refused(f"{type(model).__name__}: convolution {boundary} has no parameter to stop at")
