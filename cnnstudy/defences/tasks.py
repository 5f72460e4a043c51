"""Defences that change the training: tasks for ``fit``.  A task: (model, (x, y)) -> {"loss", "logits"}."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.attacks.ball import UNIT
from cnnstudy.config import Refused
from cnnstudy.train import Task

Batch = tuple[Tensor, Tensor]


def noisy(sigma: float, seed: int = 0) -> Task:
    """Cross-entropy on images with Gaussian noise of ``sigma`` grey levels, cut to [0, 1]."""
    if not sigma >= 0:
        raise Refused(f"noise is {sigma} grey levels; it must be 0 or more")
    generator = torch.Generator().manual_seed(seed)

    def task(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x, y = batch
        noise = torch.randn(x.shape, generator=generator).to(x.device)
        logits = model((x + sigma * UNIT * noise).clamp(0, 1))
        return {"loss": F.cross_entropy(logits.float(), y), "logits": logits}

    return task


def penalized(eps: float) -> Task:
    """Cross-entropy plus ``eps`` / 255 times the L1 norm of each image's input gradient.

    To first order this is the loss on the worst image within ``eps`` (Simon-Gabriel et al. 2019, arXiv:1802.01421,
    section 2): adversarial training without an attack.  Needs a second backward pass.
    """
    if not eps >= 0:
        raise Refused(f"eps of the gradient penalty is {eps}; it must be 0 or more, in units of 1/255")

    def task(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x, y = batch
        x = x.detach().requires_grad_()
        logits = model(x)
        losses = F.cross_entropy(logits.float(), y, reduction="none")
        (slope,) = torch.autograd.grad(losses.sum(), x, create_graph=True)
        penalty = slope.float().abs().flatten(1).sum(1)
        return {"loss": (losses + eps * UNIT * penalty).mean(), "logits": logits}

    return task


def hot(temperature: float) -> Task:
    """Cross-entropy of the logits divided by ``temperature``, for the teacher (Papernot et al. 2016, arXiv:1511.04508).

    The loss is multiplied by the temperature, so that a step is as long as at temperature 1; the paper does not say.
    """
    _check(temperature)

    def task(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x, y = batch
        logits = model(x)
        return {"loss": temperature * F.cross_entropy(logits.float() / temperature, y), "logits": logits}

    return task


def distilled(teacher: nn.Module, temperature: float) -> Task:
    """Cross-entropy of the logits divided by ``temperature`` against the teacher's softened answers on the same images."""
    _check(temperature)
    teacher = teacher.eval()

    def task(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        x, _ = batch
        with torch.no_grad():
            wanted = F.softmax(teacher(x).float() / temperature, dim=1)
        logits = model(x)
        return {"loss": temperature * F.cross_entropy(logits.float() / temperature, wanted), "logits": logits}

    return task


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise Refused(f"temperature is {temperature}; it must be above 0")
