"""How far each layer is from the loss: the fewest convolutions that its gradient must come through.

Found in the graph that autograd itself follows, so what counts is what was executed.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.probes.tape import images, loss_of, network

CONVOLUTION = "ConvolutionBackward0"


def distances(model: Any, resolution: int = 32) -> dict[str, int]:
    """For each convolution of a network or a config, by name in the order of the modules: convolutions between it and the loss.

    The shortest way back; 0 means that a gradient can come from the classifier without passing another convolution.  Linear layers, norms,
    activations and poolings are not counted.  Raises Refused for a convolution that the loss does not depend on.
    """
    net = network(model, "cpu", training=True).requires_grad_(True)
    x = images(net, resolution, 2, "cpu")
    loss = loss_of(net(x), torch.zeros(2, dtype=torch.long))
    weights = {id(m.weight): name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    found: dict[str, int] = {}
    settled: set[Any] = set()
    waiting: deque[tuple[Any, int]] = deque([(loss.grad_fn, 0)])  # nearest first: a step through a convolution goes to the end
    while waiting:
        node, passed = waiting.popleft()
        if node in settled:
            continue
        settled.add(node)
        if hasattr(node, "variable"):  # the end of a path: a parameter
            if id(node.variable) in weights:
                found.setdefault(weights[id(node.variable)], passed)
            continue
        for place, (before, _) in enumerate(node.next_functions):
            if before is None:
                continue
            if node.name() == CONVOLUTION and place == 0:  # on to its input; places 1 and 2 are its own weight and bias
                waiting.append((before, passed + 1))
            else:
                waiting.appendleft((before, passed))
    missing = sorted(set(weights.values()) - set(found))
    if missing:
        raise Refused(f"no gradient reaches {missing[0]} of {type(net).__name__}; distances needs a network that uses all its convolutions")
    return {name: found[name] for name in weights.values()}


def summary(model: Any, resolution: int = 32) -> dict[str, Any]:
    """``convolutions``, and of their distances: ``longest``, ``mean``, ``first`` (of the stem), and all as a list ``distances``."""
    found = list(distances(model, resolution).values())
    mean = float(np.mean(found))
    return {"convolutions": len(found), "longest": max(found), "mean": mean, "first": found[0], "distances": found}
