"""Can a stack of layers learn to hand on its input?  A regression: reproduce feature maps, with and without shortcuts.

The question behind residual learning (He et al. 2016, arXiv:1512.03385, section 3.1: "the solvers might have difficulties in approximating
identity mappings by multiple nonlinear layers").  A unit is the ResNet's block or its plain twin, so both kinds have identical layers.  The
maps to reproduce are non-negative, so that the plain stack has an exact solution: kernels with a 1 in their centre, batch norms that
undo themselves.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.data import CifarConfig, load
from cnnstudy.layers import conv, init_weights, scale_branch
from cnnstudy.models.resnet import Block, ResNetConfig
from cnnstudy.runtime import device, seed_all
from cnnstudy.train import Diverged, onecycle

RATES = {"adam": (0.001, 0.003, 0.01), "sgd": (0.03, 0.1, 0.3)}
POINTS = 20  # the error is looked at so many times on the way
WATCHED = 200  # held-out maps of the curve; the error at the end is of all


@dataclass(frozen=True)
class UnitsConfig:
    """``units`` of two 3x3 convolutions each, (N, channels, H, W) -> the same; ``norm`` "batch" or "none" (then with biases).

    ``residual``: relu(x + F(x)), otherwise relu(F(x)).  ``zero_last``: the last norm's scale (or last convolution) of F starts at 0.
    """

    units: int = 1
    residual: bool = True
    norm: str = "batch"
    zero_last: bool = False
    channels: int = 16

    def __post_init__(self) -> None:
        if self.units < 1 or self.channels < 1:
            raise Refused(f"units {self.units} and channels {self.channels} must be at least 1")
        choose("norm", self.norm, ("batch", "none"))
        if self.zero_last and not self.residual:
            raise Refused("zero_last without shortcuts: a plain stack that starts at 0 hands on nothing; valid: residual")


@dataclass(frozen=True)
class RegressionConfig:
    """How a stack is trained: mean squared error, ``steps`` of ``batch`` maps, one cycle (up for a quarter, then down to 0).

    ``optimizer``: "adam" (decoupled weight decay where there is one) or "sgd" (momentum 0.9).  ``rates``: tried for ``pilot_steps`` each,
    always with seed 0, and compared on maps that are used for nothing else; () are the optimiser's three in RATES.  ``images``: CIFAR
    training images behind the maps to learn from; ``held_out``: test images behind those of the error.
    """

    optimizer: str = "adam"
    steps: int = 2000
    batch: int = 32
    weight_decay: float = 0.0
    rates: tuple[float, ...] = ()
    pilot_steps: int = 500
    images: int = 4000
    held_out: int = 1000

    def __post_init__(self) -> None:
        object.__setattr__(self, "rates", tuple(self.rates))  # JSON has lists
        choose("optimizer", self.optimizer, RATES)
        for name in ("steps", "batch", "pilot_steps"):
            if getattr(self, name) < 1:
                raise Refused(f"{name} {getattr(self, name)} must be at least 1")
        if self.weight_decay < 0 or any(rate <= 0 for rate in self.rates):
            raise Refused(f"weight_decay {self.weight_decay} must not be negative, rates {list(self.rates)} must be above 0")


class Units(nn.Sequential):
    """The stack of a config, He's weights; ``blocks()`` from input to output."""

    def __init__(self, cfg: UnitsConfig) -> None:
        block = ResNetConfig(skip=cfg.residual, norm=cfg.norm)
        super().__init__(*(Block(block, cfg.channels, cfg.channels, 1) for _ in range(cfg.units)))
        init_weights(self, "he")
        if cfg.zero_last:
            for unit in self.blocks():
                scale_branch(unit.branch, "zero_branch", cfg.units)

    def blocks(self) -> list[Block]:
        return [unit for unit in self if isinstance(unit, Block)]


@lru_cache(maxsize=4)
def maps(images: int, held_out: int, channels: int, seed: int, where: str) -> tuple[Tensor, Tensor, Tensor]:
    """Stem features of CIFAR images: to learn from, to choose a rate by (as many as are held out, training images), held out (test images).

    (N, channels, 16, 16): a 3x3 convolution with stride 2 and He's weights (drawn from ``seed``), each channel normalised over the training
    images (mean 0, variance 1), ReLU.  Channels_last.
    """
    data = load(CifarConfig(train=images + held_out, test=held_out), where)
    generator = torch.Generator().manual_seed(seed)
    stem = conv(3, channels, 3, 2)
    weight = torch.randn(stem.weight.shape, generator=generator) * math.sqrt(2 / 27)
    stem.weight = nn.Parameter(weight.to(where), requires_grad=False)
    before = [torch.cat([stem(part) for part in x.split(500)]) for x in (data.x_train, data.x_test)]
    mean, std = before[0].mean((0, 2, 3), keepdim=True), before[0].std((0, 2, 3), keepdim=True)
    train, test = (((x - mean) / std).relu().contiguous(memory_format=torch.channels_last) for x in before)
    return train[:images], train[images:], test


def error(net: nn.Module, x: Tensor) -> float:
    """Mean squared error in evaluation mode over the variance of ``x`` (of each channel, averaged); the mode is put back."""
    was = net.training
    net.eval()
    with torch.no_grad():
        squared = sum(float(F.mse_loss(net(part), part, reduction="sum")) for part in x.split(500)) / x.numel()
    net.train(was)
    return squared / float(x.var((0, 2, 3), correction=0).mean())


def learn(units: UnitsConfig, how: RegressionConfig, seed: int) -> dict[str, Any]:
    """Train a stack at the best of its rates; what became of it.

    ``error``: on held-out maps, mean squared error over variance; ``lr``; ``pilot``: the error by rate; ``error_by_step``: before, and at
    ``step``, on the first held-out maps.  Per unit: ``branch_ratio``, at the start ``branch_ratio_start`` (:func:`branch_ratios`);
    ``last_scale`` and ``shift``, root mean squares of the last batch norm's scale and shift (none without norms).  Per convolution:
    ``conv_norms``, the norm over that at the start (where that was 0: the norm itself); ``largest_conv_norm``, ``smallest_conv_norm``.

    Raises Diverged where no rate works.
    """
    tried = pilot(units, how)
    lr = min(tried, key=lambda rate: tried[rate])
    if not math.isfinite(tried[lr]):
        raise Diverged(0, math.nan)
    train, _, held = maps(how.images, how.held_out, units.channels, seed, str(device()))
    seed_all(seed)
    net = Units(units).to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    start, first = _norms(net), branch_ratios(net, held[:WATCHED])
    curve = [(0, error(net, held[:WATCHED]))]
    for step in _steps(net, train, how, lr, how.steps, seed):
        if step * POINTS // how.steps > (step - 1) * POINTS // how.steps:
            curve.append((step, error(net, held[:WATCHED])))
    shrunk = [now / before if before else now for now, before in zip(_norms(net), start, strict=True)]
    return {
        "error": error(net, held), "lr": lr, "pilot": {f"{rate:g}": value for rate, value in tried.items()},
        "step": [step for step, _ in curve], "error_by_step": [value for _, value in curve],
        "branch_ratio": branch_ratios(net, held), "branch_ratio_start": first,
        "conv_norms": shrunk, "largest_conv_norm": max(shrunk), "smallest_conv_norm": min(shrunk), **_last_norms(net),
    }  # fmt: skip


def pilot(units: UnitsConfig, how: RegressionConfig) -> dict[float, float]:
    """The error of each rate after ``pilot_steps``, on the maps kept for that, with seed 0; infinite where training diverges."""
    rates = how.rates or RATES[how.optimizer]
    return {rates[0]: 0.0} if len(rates) == 1 else dict(_tried(units, how, rates))


@lru_cache(maxsize=256)
def _tried(units: UnitsConfig, how: RegressionConfig, rates: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    train, chooser, _ = maps(how.images, how.held_out, units.channels, 0, str(device()))
    found = []
    for rate in rates:
        seed_all(0)
        net = Units(units).to(device=device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        try:
            for _ in _steps(net, train, how, rate, how.pilot_steps, 0):
                pass
            made = error(net, chooser)
        except Diverged:
            made = math.inf
        found.append((rate, made if math.isfinite(made) else math.inf))
    return tuple(found)


def _steps(net: nn.Module, x: Tensor, how: RegressionConfig, lr: float, steps: int, seed: int) -> Any:
    """Trains, and yields the number of each step after it (from 1).  Raises Diverged where the loss is not finite."""
    net.train()
    optimizer: torch.optim.Optimizer
    if how.optimizer == "adam":
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=how.weight_decay)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=how.weight_decay)
    generator = torch.Generator().manual_seed(seed)
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = lr * onecycle((step - 0.5) / steps)
        batch = x[torch.randint(len(x), (how.batch,), generator=generator).to(x.device)]
        loss = F.mse_loss(net(batch), batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Diverged(step, value)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield step


def _norms(net: nn.Module) -> list[float]:
    return [float(m.weight.detach().norm()) for m in net.modules() if isinstance(m, nn.Conv2d)]


def _last_norms(net: Units) -> dict[str, list[float]]:
    """Root mean square of the scale and of the shift of each unit's last batch norm; nothing without norms."""
    last = [unit.branch.norm2 for unit in net.blocks()]
    return {
        name: [float(getattr(norm, part).detach().square().mean().sqrt()) for norm in last]
        for name, part in (("last_scale", "weight"), ("shift", "bias"))
        if all(isinstance(norm, nn.BatchNorm2d) for norm in last)
    }  # fmt: skip


def branch_ratios(net: Units, x: Tensor) -> list[float]:
    """Per unit, median over maps: |F(x)| / |x| with x as it arrives there; of a plain unit |output - x| / |x|.  In evaluation mode."""
    twin, found = copy.deepcopy(net).eval(), []
    with torch.no_grad():
        for unit in twin.blocks():
            y = unit(x)
            change = unit.branch(x) if unit.shortcut is not None else y - x
            found.append(float(np.median((change.flatten(1).norm(dim=1) / x.flatten(1).norm(dim=1).clamp_min(1e-30)).cpu())))
            x = y
    return found
