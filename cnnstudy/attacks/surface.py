"""How steep the network is around an image: what separates a smooth surface from a saturated softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.attacks.ball import UNIT, AttackConfig, check
from cnnstudy.attacks.target import Target


def steepness(model: nn.Module, x: Tensor, y: Tensor, temperature: float = 1.0) -> dict[str, Tensor]:
    """Input gradients per image, each (N,):

    ``loss_slope``     L1 norm of the gradient of the float32 cross-entropy of logits / ``temperature``, per grey level
    ``loss_zero``      bool: that gradient is exactly zero, so that no attack on this loss can move
    ``margin``         true logit minus the best wrong one (negative: the image is wrong)
    ``margin_slope``   L1 norm of the margin's gradient divided by its absolute value, per grey level: *scale free*,
                       multiplying the logits by a constant does not change it.  1 / margin_slope is the l-infinity
                       perturbation, in units of 1/255, that a linear network would need.

    The L1 norm is the dual of l-infinity: it says how much the value can change within a ball of radius 1/255.
    """
    check(x, y)
    losses = Target(model, x, y, AttackConfig(0, loss="ce", temperature=temperature))
    slope, _ = losses.gradient(x, y)
    margins = Target(model, x, y, AttackConfig(0, loss="margin"))
    lean, logits = margins.gradient(x, y)
    true = logits.gather(1, y[:, None]).squeeze(1)
    lead = true - logits.masked_fill(F.one_hot(y, logits.shape[1]).bool(), -torch.inf).amax(1)
    size = lean.flatten(1).abs().sum(1) * UNIT
    return {
        "loss_slope": slope.flatten(1).abs().sum(1) * UNIT,
        "loss_zero": (slope == 0).flatten(1).all(1),
        "margin": lead,
        "margin_slope": size / lead.abs().clamp_min(1e-12),
    }
