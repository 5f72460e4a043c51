"""Adversarial training as a task for ``fit()``: train on images attacked on the network as it is at that step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cnnstudy.attacks.ball import LOSSES, AttackConfig, check, project, radius, uniform
from cnnstudy.config import Refused

Task = Callable[[nn.Module, tuple[Tensor, Tensor]], dict[str, Tensor]]


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """Batch norms use the batch's statistics, as in training, but their running averages do not see the attack."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False  # in training mode: batch statistics are used, buffers are left alone
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def adversarial(cfg: AttackConfig, mix: float = 0.0, label_smoothing: float = 0.0) -> Task:
    """A task that attacks each batch before it learns from it: task(model, (x, y)) -> {"loss", "logits"}.

    PGD-k (Madry et al. 2018) is ``AttackConfig(8, steps=7, step=0.25)``; the single step with random start (Wong et
    al. 2020), as good at the price of two ordinary steps, ``AttackConfig(8, steps=1, step=1.25)``.  The latter can
    overfit catastrophically: the caller must watch PGD accuracy and stop.  ``mix`` is the share of each batch that
    stays clean (Goodfellow et al. 2015, Kurakin et al. 2017 train on a half).  Uses eps, steps, step, loss,
    random_start and seed of ``cfg``.  Each task draws from its own generator, so two tasks made alike draw alike.

    Raises ``Refused`` for a ``mix`` outside [0, 1) and for batches that are not images in [0, 1].
    """
    if not (math.isfinite(mix) and 0 <= mix < 1):
        raise Refused(f"clean share of adversarial training is {mix}; it must lie in [0, 1)")
    loss, generator = LOSSES[cfg.loss], torch.Generator().manual_seed(cfg.seed)

    def task(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        x, y = batch
        check(x, y)
        clean = round(mix * len(x))
        image, labels, ball = x[clean:], y[clean:], radius(cfg.eps, x[clean:])
        point = image
        if cfg.random_start:
            point = project(image + ball * uniform(image, generator), image, ball)
        if cfg.eps > 0 and len(image):
            with _statistics_kept(model):
                for _ in range(cfg.steps):
                    point = point.detach().requires_grad_()
                    total = loss(model(point).float(), labels, cfg.temperature).sum()
                    (slope,) = torch.autograd.grad(total, point)  # of the image alone: no weight gradients
                    point = project(point.detach() + cfg.step * ball * slope.sign(), image, ball)
        logits = model(torch.cat([x[:clean], point.detach()]) if clean else point.detach())
        return {"loss": F.cross_entropy(logits.float(), y, label_smoothing=label_smoothing), "logits": logits}

    return task
