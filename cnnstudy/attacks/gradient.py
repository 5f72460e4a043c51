"""Gradient attacks: FGSM (Goodfellow et al. 2015) and PGD (Kurakin et al. 2017, Madry et al. 2018), l-infinity."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cnnstudy.attacks.ball import LOW_SHARE, AttackConfig, check, project, radius, uniform
from cnnstudy.attacks.target import Target


def fgsm(model: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig) -> Tensor:
    """One step of length eps along the sign of the gradient at the image, (N, C, H, W) in [0, 1].

    Uses ``eps``, ``loss``, ``temperature`` and ``precision`` of ``cfg``.
    """
    check(x, y)
    slope, _ = Target(model, x, y, cfg).gradient(x, y, low=cfg.precision == "bf16")
    ball = radius(cfg.eps, x)
    return project(x + ball * slope.sign(), x, ball)


def pgd(model: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig) -> Tensor:
    """Projected gradient ascent; (N, C, H, W) inside the ball and [0, 1].

    An image is left alone as soon as it is fooled; an image that no restart fools comes back as the last restart left
    it.  An image that was wrong before comes back unchanged.
    """
    check(x, y)
    return ascend(Target(model, x, y, cfg), x, y, radius(cfg.eps, x))[0]


def ascend(target: Target, x: Tensor, y: Tensor, ball: Tensor, start: Tensor | None = None, stop: bool = True) -> tuple[Tensor, Tensor]:
    """PGD in balls of each image's own radius; returns the points, like ``x``, and which are fooled, (N,) bool.

    ``ball``: (N, 1, 1, 1).  ``start``: where the first restart begins, in place of a random point.  ``stop``: leave an
    image out once it is fooled; otherwise go on raising the loss to the last step, and look only there.
    The random starts are drawn for all images, whichever are still in play, so that a longer search begins with the
    shorter one.
    """
    cfg = target.cfg
    generator = torch.Generator().manual_seed(cfg.seed)
    done = target.fooled(x, y) if stop else torch.zeros_like(y, dtype=torch.bool)
    points = x.clone()
    for restart in range(cfg.restarts):
        begin = start if start is not None and restart == 0 else x
        if begin is x and (cfg.random_start or restart > 0):
            begin = x + ball * uniform(x, generator)
        left = (~done).nonzero().squeeze(1)
        if not len(left):
            break
        found, hit = _climb(target, x[left], y[left], ball[left], begin[left], stop)
        points[left] = found
        done[left] = hit
    return points, done


def _climb(target: Target, x: Tensor, y: Tensor, ball: Tensor, point: Tensor, stop: bool) -> tuple[Tensor, Tensor]:
    """One restart of :func:`ascend` on images that all start unfooled."""
    cfg = target.cfg
    low_until = int(LOW_SHARE * cfg.steps) if cfg.precision == "bf16" else 0
    ends, done = torch.empty_like(x), torch.zeros_like(y, dtype=torch.bool)
    places = torch.arange(len(x), device=x.device)
    point = project(point, x, ball)
    for step in range(cfg.steps):
        slope, logits = target.gradient(point, y, low=step < low_until)
        if stop:
            maybe = (logits.argmax(1) != y).nonzero().squeeze(1)
            sure = maybe[target.fooled(point[maybe], y[maybe])]
            if len(sure):
                ends[places[sure]], done[places[sure]] = point[sure], True
                keep = torch.ones_like(y, dtype=torch.bool)
                keep[sure] = False
                places, x, y, ball, point, slope = (t[keep] for t in (places, x, y, ball, point, slope))
                if not len(places):
                    return ends, done
        point = project(point + cfg.step * ball * slope.sign(), x, ball)
    ends[places], done[places] = point, target.fooled(point, y)
    return ends, done
