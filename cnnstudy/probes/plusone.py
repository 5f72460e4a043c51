"""What the "+ 1" in the derivative of ``y = F(x) + x`` promises, and what it does not: residual blocks by themselves, in double precision.

No ReLU after the sum: the most favourable form of the claim that a block's gradient is "at least 1".
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.models.resnet import Block, ResNetConfig
from cnnstudy.probes.jacobians import calibrated, jacobian

SIGNALS = 100  # random backward signals per block
ROUNDING = 1e-9  # many singular values are exactly 1, but for rounding


def block(seed: int, channels: int = 4, side: int = 6) -> tuple[Block, Tensor]:
    """A pre-activation block (norm, ReLU, 3x3 convolution, twice) with He's weights, and a point of the shape (1, channels, side, side).

    Batch norms hold the statistics of eight N(0, 1) inputs, the point is the first of them; evaluation mode.
    """
    torch.manual_seed(seed)
    fresh = Block(ResNetConfig(width=channels, preact=True), channels, channels, 1)
    for module in fresh.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    x = torch.randn(8, channels, side, side, dtype=torch.float64)
    made = calibrated(fresh, x)
    assert isinstance(made, Block)
    return made, x[:1]


def formula_error(seed: int, channels: int = 4, side: int = 6) -> dict[str, float]:
    """Largest entry of |J_y - (J_F + I)| for a random block, J_y and J_F by autograd; ``largest_entry`` of J_y beside it."""
    made, x = block(seed, channels, side)
    whole, branch = jacobian(made, x), jacobian(made.branch, x)
    return {"difference": float((whole - branch - torch.eye(len(whole)).to(whole)).abs().max()), "largest_entry": float(whole.abs().max())}


def random_blocks(draws: int, channels: int = 4, side: int = 6) -> dict[str, Any]:
    """Spectra of I + J_F of ``draws`` random blocks, and how long SIGNALS random backward signals leave each.

    ``below_1`` (by more than ROUNDING), ``below_half``: share of singular values; ``smallest``, ``largest``; ``median_smallest``: median
    over blocks of the smallest.  ``signals_below_1``, ``median_signal``: |g_in| / |g_out| of the random signals; ``worst_signal``: the
    least that the search found, through autograd (each block's left singular vector of its smallest value).  ``values``: 500 quantiles.
    """
    if draws < 1:
        raise Refused(f"draws {draws} must be at least 1")
    spectra, signals, worst = [], [], []
    for seed in range(draws):
        made, x = block(seed, channels, side)
        matrix = jacobian(made, x)
        u, values, _ = torch.linalg.svd(matrix)
        spectra.append(values.numpy())
        g = torch.randn(SIGNALS, len(u), dtype=torch.float64)
        signals.append(((g @ matrix).norm(dim=1) / g.norm(dim=1)).numpy())
        worst.append(_gain(made, x, u[:, -1]))
    every, gains = np.concatenate(spectra), np.concatenate(signals)
    return {
        "below_1": float((every < 1 - ROUNDING).mean()), "below_half": float((every < 0.5).mean()),
        "smallest": float(every.min()), "largest": float(every.max()), "median_smallest": float(np.median([s.min() for s in spectra])),
        "signals_below_1": float((gains < 1 - ROUNDING).mean()), "median_signal": float(np.median(gains)), "worst_signal": min(worst),
        "values": np.quantile(every, np.linspace(0, 1, 500)).astype(np.float32),
    }  # fmt: skip


def _gain(layer: nn.Module, x: Tensor, g: Tensor) -> float:
    """|g_in| / |g_out|, by autograd."""
    point = x.clone().requires_grad_()
    y = layer(point)
    (back,) = torch.autograd.grad(y, point, g.view_as(y))
    return float(back.norm() / g.norm())


def linear_block(slope: float, channels: int = 4, side: int = 4) -> dict[str, float]:
    """The block whose branch is F(x) = ``slope`` x, once with one number (``scalar``: 1 + F'(x)), once with maps.

    ``smallest``, ``largest``: singular values of I + J_F; ``signal``: |g_in| / |g_out| of a random backward signal.
    """
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    (scalar,) = torch.autograd.grad(slope * x + x, x)
    branch = nn.Conv2d(channels, channels, 1, bias=False).double()
    with torch.no_grad():
        branch.weight.copy_(slope * torch.eye(channels)[:, :, None, None])
    whole = _Sum(branch)
    point = torch.randn(1, channels, side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(jacobian(whole, point))
    g = torch.randn(point.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return {
        "scalar": float(scalar), "smallest": float(values[-1]), "largest": float(values[0]), "signal": _gain(whole, point, g),
    }  # fmt: skip


class _Sum(nn.Module):
    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + x
