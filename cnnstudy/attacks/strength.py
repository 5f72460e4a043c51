"""How robust a network is: the worst of several attacks, the smallest perturbation, and transferred images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from cnnstudy.attacks.ball import UNIT, AttackConfig, check, project, radius
from cnnstudy.attacks.gradient import ascend
from cnnstudy.attacks.square import roam
from cnnstudy.attacks.target import Target
from cnnstudy.config import Refused

STAGES = ("none", "clean", "pgd-ce", "pgd-margin", "square")  # what broke an image, in the order in which it is tried


@dataclass(frozen=True)
class Outcome:
    """What the strong attack left standing.

    ``correct``  (N,) bool, still right after the worst of all attacks
    ``stage``    (N,) int64, index into ``STAGES`` of what broke the image
    ``images``   (N, C, H, W), the image that fools, or the last one tried
    """

    correct: Tensor
    stage: Tensor
    images: Tensor

    @property
    def accuracy(self) -> float:
        """Robust accuracy in 0..1."""
        return float(self.correct.float().mean())

    def shares(self) -> dict[str, float]:
        """Share of all images that each stage broke first, by its name; ``none`` is the robust accuracy."""
        return {name: float((self.stage == i).float().mean()) for i, name in enumerate(STAGES)}


def strong(model: nn.Module, x: Tensor, y: Tensor, eps: float, cfg: AttackConfig | None = None) -> Outcome:
    """Worst per image of PGD on the cross-entropy, PGD on the margin and Square, at ``eps`` / 255.

    ``cfg`` gives steps, restarts, queries, temperature, precision and seed (default: 50 steps, 3 restarts, 500
    queries); its ``eps`` and ``loss`` are not used.  Each attack is tried on what the ones before left standing, which
    gives the same images as trying all on all.  The ensemble follows Croce & Hein 2020: three kinds of attack fail
    for three different reasons.
    """
    check(x, y)
    cfg = replace(cfg, eps=eps) if cfg else AttackConfig(eps)
    return _assault(Target(model, x, y, cfg), x, y)


def _assault(target: Target, x: Tensor, y: Tensor) -> Outcome:
    """The stages of :func:`strong` on a prepared target, at its ``eps``."""
    cfg = target.cfg
    images, ball = x.clone(), radius(cfg.eps, x)
    stage = target.fooled(x, y).long() * STAGES.index("clean")
    for name in STAGES[2:]:
        left = (stage == 0).nonzero().squeeze(1)
        if not len(left) or cfg.eps == 0:
            break
        if name == "square":
            points, done = roam(target, x[left], y[left], ball[left])
        else:
            target.cfg = replace(cfg, loss=name.removeprefix("pgd-"))
            points, done = ascend(target, x[left], y[left], ball[left])
        images[left] = points
        stage[left[done]] = STAGES.index(name)
    target.cfg = cfg
    return Outcome(stage == 0, stage, images)


def robust(model: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig) -> Tensor:
    """Which images :func:`strong` at ``cfg.eps`` leaves right, (N,) bool."""
    return strong(model, x, y, cfg.eps, cfg).correct


def curve(model: nn.Module, x: Tensor, y: Tensor, epsilons: Sequence[float], cfg: AttackConfig | None = None) -> dict[float, Outcome]:
    """:func:`strong` at several radii, smallest first, by radius.

    An image that falls at one radius falls at every larger one (the larger ball contains the smaller), so it is not
    attacked again: robust accuracy cannot rise with eps, and the curve costs little more than its survivors.
    """
    check(x, y)
    if not epsilons:
        raise Refused("no eps to attack at; give at least one number >= 0, in units of 1/255")
    configs = [replace(cfg, eps=e) if cfg else AttackConfig(e) for e in sorted(set(epsilons))]
    target = Target(model, x, y, configs[0])
    stage, images, outcomes = torch.zeros_like(y), x.clone(), {}
    for target.cfg in configs:
        left = (stage == 0).nonzero().squeeze(1)
        if len(left):
            found = _assault(target, x[left], y[left])
            stage[left], images[left] = found.stage, found.images
        outcomes[target.cfg.eps] = Outcome(stage == 0, stage.clone(), images.clone())
    return outcomes


def minimal_perturbation(model: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig, rounds: int = 8) -> Tensor:
    """Smallest l-infinity perturbation found that fools, per image, (N,) in units of 1/255.

    ``cfg.eps`` is the largest radius tried: an image that stands there gets ``inf``; one that is wrong already gets 0.
    Bisection: each round attacks at the middle of the interval that is left, PGD on the margin, starting from the best
    image known shrunk to that radius, and keeps the *actual* size of what it finds, so the result is an upper bound
    that an image reaches.  The interval after ``rounds`` is at most eps / 2**rounds wide.
    """
    check(x, y)
    if rounds < 1:
        raise Refused(f"rounds of bisection are {rounds}; it must be at least 1")
    target = Target(model, x, y, replace(cfg, loss="margin"))
    size = torch.where(target.fooled(x, y), 0.0, math.inf).to(x.device)
    if cfg.eps == 0:
        return size
    best, low = x.clone(), torch.zeros_like(size)
    for turn in range(rounds + 1):
        first = turn == 0  # at the largest radius, from a random start: which images can be fooled at all
        left = (size.isinf() if first else (size > 0) & ~size.isinf()).nonzero().squeeze(1)
        if not len(left):
            continue
        tried = torch.full_like(size[left], cfg.eps) if first else (low[left] + size[left]) / 2
        ball = (tried * UNIT)[:, None, None, None]
        start = None if first else project(x[left] + (best[left] - x[left]) * (tried / size[left])[:, None, None, None], x[left], ball)
        points, done = ascend(target, x[left], y[left], ball, start)
        hit, miss = left[done], left[~done]
        best[hit] = points[done]
        reached = (points[done] - x[hit]).abs().flatten(1).amax(1) / UNIT
        size[hit] = torch.minimum(reached, tried[done])  # rounding must not push it past the radius
        if not first:
            low[miss] = tried[~done]
    return size


def robustness(
    model: nn.Module, x: Tensor, y: Tensor, epsilons: Sequence[float], cfg: AttackConfig, largest: float = 16.0
) -> dict[str, float | dict[str, float]]:
    """What a record says of one network; accuracies in 0..1, nested metrics by :func:`spell` of their eps.

    ``clean_acc``; ``median_eps``: median smallest perturbation in units of 1/255 over *all* images (0 where wrong
    already, at most ``largest``); ``kept``: share whose smallest perturbation is above eps (one PGD on the margin per
    radius: quick); ``robust_acc``: after the strong attack; ``by_square``: share that only the black box broke.
    No ``epsilons``: the quick part only, for every half, 1, 2, 4 and 8.
    """
    size = minimal_perturbation(model, x, y, replace(cfg, eps=largest, steps=20, restarts=1)).clamp(max=largest)
    outcomes = curve(model, x, y, epsilons, cfg) if epsilons else {}
    return {
        "clean_acc": float((size > 0).float().mean()),
        "median_eps": float(size.quantile(0.5)),
        "kept": {spell(e): float((size > e).float().mean()) for e in sorted({0.5, 1, 2, 4, 8, *epsilons})},
        "robust_acc": {spell(e): o.accuracy for e, o in outcomes.items()},
        "by_square": {spell(e): o.shares()["square"] for e, o in outcomes.items()},
    }


def spell(eps: float) -> str:
    """An eps as the name of a metric: 0.5 is ``0_5``, since a dot means nesting."""
    return f"{eps:g}".replace(".", "_")


def transfer(source: nn.Module, model: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig) -> Tensor:
    """Which images ``model`` still gets right when they were attacked on ``source`` alone, (N,) bool.

    PGD climbs to its last step (an image that only just fools the source seldom fools another network); every restart
    counts, and an image that ``model`` gets wrong unattacked counts as fooled.
    """
    check(x, y)
    crafted, judged = Target(source, x, y, cfg), Target(model, x, y, cfg)
    correct = ~judged.fooled(x, y)
    for restart in range(cfg.restarts if cfg.random_start else 1):
        crafted.cfg = replace(cfg, restarts=1, seed=cfg.seed + restart)
        points, _ = ascend(crafted, x, y, radius(cfg.eps, x), stop=False)
        correct &= ~judged.fooled(points, y)
    return correct
