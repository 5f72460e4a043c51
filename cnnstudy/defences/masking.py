"""Is a defence real, or does it only hide the gradient?  Naive against adaptive attacks (Athalye et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from cnnstudy.attacks import AttackConfig, curve, fgsm, pgd, square, steepness, strong, transfer
from cnnstudy.attacks.strength import spell
from cnnstudy.attacks.target import frozen

LARGE = 64.0  # grey levels: a quarter of the range, where no network can be right for good reasons


def standing(model: nn.Module, points: Tensor, y: Tensor) -> Tensor:
    """Which of the attacked images the network still gets right, (N,) bool."""
    exact = frozen(model)
    with torch.no_grad():
        return torch.cat([exact(part).argmax(1) for part in points.split(256)]) == y


def naive(model: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig) -> Tensor:
    """Right after FGSM and one run of PGD on the float32 cross-entropy as it stands, at temperature 1, (N,) bool."""
    plain = replace(cfg, loss="ce", temperature=1.0, restarts=1, random_start=False, precision="fp32")
    return standing(model, fgsm(model, x, y, plain), y) & standing(model, pgd(model, x, y, plain), y)


def unmask(
    model: nn.Module, plain: nn.Module, x: Tensor, y: Tensor, epsilons: Sequence[float], cfg: AttackConfig
) -> dict[str, float | dict[str, float]]:
    """Robust accuracies (0..1) of a distilled ``model``, by eps: under the naive attack, the adaptive one, and the worst of both.

    Adaptive: the strong attack with ``cfg.temperature`` and what transfers from ``plain``, the network that was not distilled.
    Beside it medians over the images: ``loss_slope`` at temperature 1, ``margin_slope``, and ``loss_zero``, the share of
    images whose gradient is exactly zero.
    """
    hidden, seen, worst, moved = {}, {}, {}, {}
    for eps, outcome in curve(model, x, y, epsilons, cfg).items():
        at = replace(cfg, eps=eps)
        blind, foreign = naive(model, x, y, at), transfer(plain, model, x, y, replace(at, restarts=1, temperature=1.0))
        adaptive = outcome.correct & foreign
        name = spell(eps)
        hidden[name], moved[name] = _share(blind), _share(foreign)
        seen[name], worst[name] = _share(adaptive), _share(adaptive & blind)
    found = steepness(model, x, y)
    slopes = {"loss_slope": float(found["loss_slope"].median()), "margin_slope": float(found["margin_slope"].median())}
    return {"naive": hidden, "adaptive": seen, "worst": worst, "transfer": moved, "loss_zero": _share(found["loss_zero"]), **slopes}


def masking_checks(model: nn.Module, other: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig) -> dict[str, float | dict[str, float]]:
    """Robust accuracies (0..1) that must come out in a certain order if no gradient is masked.

    ``steps``: PGD of 1, 10, 50, 200 steps from one start (more must not be weaker); ``fgsm``; ``square`` alone (must
    not beat PGD); ``transfer`` from ``other``; ``strong``; ``limit``: the strong attack at 64 / 255 (must reach 0).
    """
    one = replace(cfg, restarts=1)
    by_steps = {}
    for steps in (1, 10, 50, 200):
        how = replace(one, steps=steps, step=max(0.1, 1 / steps))
        by_steps[str(steps)] = _share(standing(model, pgd(model, x, y, how), y))
    return {
        "clean": _share(standing(model, x, y)), "fgsm": _share(standing(model, fgsm(model, x, y, cfg), y)), "by_steps": by_steps,
        "square": _share(standing(model, square(model, x, y, cfg), y)), "transfer": _share(transfer(other, model, x, y, one)),
        "strong": strong(model, x, y, cfg.eps, cfg).accuracy, "limit": strong(model, x, y, LARGE, cfg).accuracy,
    }  # fmt: skip


def saturation(gap: float, temperature: float) -> dict[str, float]:
    """Two logits whose gap has grown from ``gap`` to ``gap * temperature``: gradients with respect to the true logit, float32.

    ``loss`` of the cross-entropy, which the softmax's saturation shrinks; ``margin`` of the logit margin divided by its
    value, times ``gap``: the growth of the logits cancels, whatever the temperature.
    """
    scale = torch.tensor(1.0, requires_grad=True)  # moves the true logit as an input would: in proportion to the gap
    logits = torch.stack([scale * gap * temperature, torch.zeros(())])
    (loss,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits[None], torch.tensor([0])), scale, retain_graph=True)
    (lean,) = torch.autograd.grad(logits[0] - logits[1], scale)
    return {"loss": abs(float(loss)), "margin": float(lean / (logits[0] - logits[1]).detach())}


def _share(right: Tensor) -> float:
    return float(right.float().mean())
