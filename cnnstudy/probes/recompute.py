"""Networks that keep less for the backward pass: activation checkpointing (Chen et al. 2016, arXiv:1604.06174)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cnnstudy.config import Refused
from cnnstudy.probes.tape import loss_of


class Recomputed(nn.Module):
    """``inner`` keeps only its input in the forward pass; the backward pass runs it a second time.

    Its batch norms therefore update their running statistics twice a step; gradients do not depend on that.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_grad_enabled()):
            y: Tensor = self.inner(x)
            return y
        # nothing random stands in a residual block of ours
        out: Tensor = checkpoint(self.inner, x, use_reentrant=False, preserve_rng_state=False)
        return out


def residual_blocks(model: nn.Module) -> list[str]:
    """Names of the blocks of a residual network: modules with a shortcut, as timm and this book name them."""
    kinds = ("BasicBlock", "Bottleneck", "InvertedResidual", "DepthwiseSeparableConv", "EdgeResidual", "Residual", "Block")
    return [name for name, module in model.named_modules() if type(module).__name__ in kinds]


def checkpointed(model: nn.Module, names: list[str] | None = None) -> nn.Module:
    """A copy of ``model`` whose blocks (or the modules with these ``names``) are recomputed in the backward pass."""
    chosen = residual_blocks(model) if names is None else names
    modules = dict(model.named_modules())
    if not chosen or not set(chosen) <= set(modules):
        raise Refused(f"{type(model).__name__} has no residual blocks or no modules {chosen[:3]}; valid: names of its modules")
    twin = copy.deepcopy(model)
    for name in chosen:
        twin.set_submodule(name, Recomputed(twin.get_submodule(name)))
    return twin


def gradient_difference(one: nn.Module, other: nn.Module, x: Tensor) -> float:
    """Largest difference of the parameters' gradients of two networks with the same weights, relative to the largest gradient.

    In training mode, of the cross-entropy with labels 0; both networks are left as they were found.
    """
    gradients: list[list[Any]] = []
    for model in (one, other):
        twin = copy.deepcopy(model).train()
        twin.zero_grad(set_to_none=True)
        loss_of(twin(x), torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()
        gradients.append([p.grad for p in twin.parameters()])
    if len(gradients[0]) != len(gradients[1]):
        raise Refused(f"the networks have {len(gradients[0])} and {len(gradients[1])} parameters; gradient_difference compares twins")
    pairs = [(a, b) for a, b in zip(*gradients, strict=True) if a is not None]
    largest = max(float(a.abs().max()) for a, _ in pairs)
    return max(float((a - b).abs().max()) for a, b in pairs) / largest
