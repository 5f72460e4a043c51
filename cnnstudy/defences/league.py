"""One network per defence, by name, all from the same network, images and recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from cnnstudy.attacks import AttackConfig, adversarial
from cnnstudy.config import Setup, choose
from cnnstudy.data import load
from cnnstudy.defences.fronts import BitDepth, Blur
from cnnstudy.defences.keeping import KeepMostRobust
from cnnstudy.defences.tasks import distilled, hot, noisy, penalized
from cnnstudy.models import build
from cnnstudy.runtime import device, seed_all
from cnnstudy.train import Recipe, fit, trained


@dataclass(frozen=True)
class Strengths:
    """How strong each defence is: eps and noise in grey levels, blur in pixels."""

    eps: float = 4.0
    noise: float = 8.0
    smoothing: float = 0.1
    bits: int = 3
    blur: float = 1.0
    temperature: float = 20.0


def distil(setup: Setup, temperature: float, seed: int) -> nn.Module:
    """The network of ``setup`` (model, data, recipe) distilled from one of its own kind at ``temperature``.

    Defensive distillation: teacher and student alike, both trained at the temperature, used at 1.  At temperature 1
    it is the network trained as usual, not distilled at all.  Networks are kept by key.
    """
    if temperature == 1:
        return trained(setup, seed).model
    teacher = trained(setup, seed, hot(temperature), "hot", temperature).model
    return trained(setup, seed, distilled(teacher, temperature), "distilled", temperature).model


def _adversarial(setup: Setup, s: Strengths, seed: int) -> nn.Module:
    """Single-step adversarial training with early stopping on the last 200 test images."""
    images = load(setup.data, device(), seed)
    how = AttackConfig(s.eps, steps=1, step=1.25, restarts=1)
    keep = KeepMostRobust(images.x_test[-200:], images.y_test[-200:], how)
    seed_all(seed)
    model = fit(build(setup.model).to(device()), images, setup.recipe, adversarial(how), [keep], seed).model
    keep.restore(model)
    return model


def _smoothed(setup: Setup, s: Strengths, seed: int) -> nn.Module:
    recipe: Recipe = replace(setup.recipe, label_smoothing=s.smoothing)
    return trained(setup.replace({"recipe": recipe}), seed).model


DEFENCES: dict[str, Callable[[Setup, Strengths, int], nn.Module]] = {
    "none": lambda setup, s, seed: trained(setup, seed).model,
    "adversarial training": _adversarial,
    "distillation": lambda setup, s, seed: distil(setup, s.temperature, seed),
    "label smoothing": _smoothed,
    "noise": lambda setup, s, seed: trained(setup, seed, noisy(s.noise, seed), "noisy", s.noise).model,
    "bit depth": lambda setup, s, seed: nn.Sequential(BitDepth(s.bits), trained(setup, seed).model).eval(),
    "blur": lambda setup, s, seed: nn.Sequential(Blur(s.blur), trained(setup, seed).model).eval().to(device()),
    "gradient penalty": lambda setup, s, seed: trained(setup, seed, penalized(s.eps), "penalized", s.eps).model,
}


def defended(name: str, setup: Setup, strengths: Strengths, seed: int) -> nn.Module:
    """The network of ``setup`` (model, data, recipe) with the defence ``name``, in evaluation mode."""
    return DEFENCES[choose("defence", name, DEFENCES)](setup, strengths, seed)
