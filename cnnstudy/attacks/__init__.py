"""Attacks in the l-infinity ball: inside the ball, inside [0, 1], and no weaker for being fast.

``ball``      AttackConfig, the losses, the refusal of bad input
``target``    the network as an attack sees it: folded, frozen, channels last; the network as given judges
``gradient``  fgsm, pgd                  ``square``    square: black box, logits only
``strength``  strong, robust, curve, minimal_perturbation, robustness, transfer
``surface``   steepness, displacement, smallest       ``training``  adversarial: a task for fit()

Images are float32 (N, C, H, W) in [0, 1]; eps is in units of 1/255; the model passed in is left as it was found.
"""

from __future__ import annotations

from cnnstudy.attacks.ball import AttackConfig
from cnnstudy.attacks.gradient import fgsm, pgd
from cnnstudy.attacks.square import square
from cnnstudy.attacks.strength import (
    STAGES,
    Outcome,
    curve,
    minimal_perturbation,
    robust,
    robustness,
    strong,
    transfer,
)
from cnnstudy.attacks.surface import displacement, smallest, steepness
from cnnstudy.attacks.training import adversarial

__all__ = [
    "STAGES", "AttackConfig", "Outcome", "adversarial", "curve", "displacement", "fgsm", "minimal_perturbation", "pgd", "robust",
    "robustness",
    "smallest", "square", "steepness", "strong", "transfer",
]  # fmt: skip
