"""What training does to the weights: how far each layer has moved, Adam's direction, frozen groups, a rescaling that changes nothing.

All as hooks for :func:`cnnstudy.train.fit`, or on a network before it is trained; there is one training loop.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.probes.gradients import spatial_convs
from cnnstudy.probes.taps import outputs
from cnnstudy.train import Hook


class WeightChange(Hook):
    """How far each spatial convolution's weights are from where they began: ||W_t - W_0|| / ||W_0||.

    ``by_epoch``: one array (layers,) for each epoch trained, from input to output.
    """

    def __init__(self) -> None:
        self.start: list[Tensor] = []
        self.by_epoch: list[np.ndarray] = []

    @torch.no_grad()
    def on_epoch(self, model: nn.Module, epoch: int) -> None:
        weights = [conv.weight.detach() for conv in spatial_convs(model).values()]
        if epoch == 0:
            self.start, self.by_epoch = [w.clone() for w in weights], []
            return
        moved = [float((w - w0).double().norm() / w0.double().norm()) for w, w0 in zip(weights, self.start, strict=True)]
        self.by_epoch.append(np.array(moved))

    def first_to_last(self) -> float:
        """Relative change of the first convolution over that of the last, at the end; 1e38 if the last has not moved."""
        if not self.by_epoch:
            raise Refused("no epoch has been trained with this hook")
        first, last = self.by_epoch[-1][[0, -1]]
        return float(min(first / last, 1e38)) if last > 0 else 1e38


class Adam(Hook):
    """Turns each gradient into Adam's direction (Kingma & Ba 2015, arXiv:1412.6980, algorithm 1), in place.

    With ``Recipe(momentum=0, weight_decay=0)`` plain SGD on that direction is Adam at the recipe's rate and schedule.  (``fit`` has one
    optimiser; this keeps it the only loop.)
    """

    def __init__(self, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> None:
        self.betas, self.eps, self.done = (beta1, beta2), eps, 0
        self.moments: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def on_backward(self, model: nn.Module, step: int) -> None:
        self.done += 1
        corrections = [1 - beta**self.done for beta in self.betas]
        for parameter in model.parameters():
            g = parameter.grad
            if g is None:
                continue
            if parameter not in self.moments:
                self.moments[parameter] = (torch.zeros_like(g), torch.zeros_like(g))
            m, v = self.moments[parameter]
            m.lerp_(g, 1 - self.betas[0])
            v.mul_(self.betas[1]).addcmul_(g, g, value=1 - self.betas[1])
            g.copy_(m / corrections[0] / ((v / corrections[1]).sqrt() + self.eps))


def freeze(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """Stop training of the modules with these names ("stem", "stages.0", "stages.1.2"), before ``fit``.  Returns the same model.

    Their norms' scales and shifts are frozen too; running statistics still follow the data.  Raises Refused for a name that holds no
    parameter.
    """
    modules = dict(model.named_modules())
    for name in names:
        parameters = list(modules[name].parameters()) if name in modules else []
        if not parameters:
            raise Refused(f"{type(model).__name__} has no module {name!r} with parameters; e.g. 'stem', 'stages.0' (see named_modules())")
        for parameter in parameters:
            parameter.requires_grad_(False)
    return model


@torch.no_grad()
def rescaled(model: nn.Module, factors: Iterable[float]) -> nn.Module:
    """A copy whose first spatial convolutions' weights and biases are multiplied by ``factors``, one each.

    Batch norm must follow each of them; its epsilon and running statistics are scaled along, so that the function stays exactly what it
    was in both modes.  Only the gradients change, by 1 / factor.
    """
    twin = copy.deepcopy(model)
    convs = list(spatial_convs(twin).values())
    modules = [m for m in twin.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    factors = list(factors)
    if len(factors) > len(convs):
        raise Refused(f"{len(factors)} factors for {len(convs)} spatial convolutions")
    for conv, factor in zip(convs, factors, strict=False):
        after = modules.index(conv) + 1
        norm = modules[after] if after < len(modules) else None
        if not isinstance(norm, nn.BatchNorm2d) or not factor > 0:
            raise Refused(f"factor {factor} must be above 0 and batch norm must follow each convolution that is rescaled")
        conv.weight.mul_(factor)
        if conv.bias is not None:
            conv.bias.mul_(factor)
        norm.running_mean.mul_(factor)  # type: ignore[union-attr]
        norm.running_var.mul_(factor**2)  # type: ignore[union-attr]
        norm.eps *= factor**2
    return twin


@torch.no_grad()
def unit_variance(model: nn.Module, x: Tensor, rounds: int = 3, tolerance: float = 0.01) -> nn.Module:
    """Scale the weights of each convolution and linear layer, from input to output, until its outputs on ``x`` have variance 1, in place.

    After ``draw(model, "orthogonal")`` this is LSUV (Mishkin & Matas 2016, arXiv:1511.06422, algorithm 1).  Training mode, as the
    training's first step sees it; running statistics are put back.  Returns the same model.
    """
    state = {name: value.clone() for name, value in model.named_buffers()}
    was = model.training
    model.train()
    for layer in [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        for _ in range(rounds):
            with outputs({"layer": layer}) as seen:
                model(x)
            variance = float(seen["layer"].double().var())
            if not variance > 0 or abs(variance - 1) < tolerance:
                break
            layer.weight.div_(variance**0.5)
    for name, value in model.named_buffers():
        value.copy_(state[name])
    model.train(was)
    return model
