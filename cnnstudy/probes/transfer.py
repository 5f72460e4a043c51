"""How much of one task a network's features hold for another: a linear classifier on frozen features, and classes held back.

CIFAR-10 is cut in two: the even-numbered classes (airplane, bird, deer, frog, ship) are there to learn from, the odd-numbered
ones (automobile, cat, dog, horse, truck) to be told apart later by features that were made without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.data import Data
from cnnstudy.probes import taps


def only(data: Data, classes: Sequence[int]) -> Data:
    """The images of these classes, in their order; labels are numbered anew from 0.  Refused for a class that no image has."""
    table = torch.full((int(data.y_train.max()) + 1,), -1, device=data.y_train.device)
    for number, name in enumerate(classes):
        if not 0 <= name < len(table):
            raise Refused(f"class {name} is not in the data; valid: 0 to {len(table) - 1}")
        table[name] = number
    train, test = table[data.y_train], table[data.y_test]
    seen, unseen = train >= 0, test >= 0
    images = [x.contiguous(memory_format=torch.channels_last) for x in (data.x_train[seen], data.x_test[unseen])]
    return Data(images[0], train[seen], images[1], test[unseen])


def halves(data: Data) -> tuple[Data, Data]:
    """The even-numbered classes and the odd-numbered ones."""
    count = int(data.y_train.max()) + 1
    return only(data, range(0, count, 2)), only(data, range(1, count, 2))


@torch.no_grad()
def features(model: nn.Module, x: Tensor, layer: str, batch: int = 500) -> Tensor:
    """What ``layer`` puts out in evaluation mode, averaged over the map: (N, channels), float32."""
    modules = dict(model.named_modules())
    if layer not in modules:
        raise Refused(f"{type(model).__name__} has no module {layer!r}; valid: {', '.join(n for n in modules if n.count('.') < 2)}")
    was = model.training
    model.eval()
    parts = []
    for some in x.split(batch):
        with taps.outputs({"tap": modules[layer]}) as seen:
            model(some.contiguous(memory_format=torch.channels_last))
        out = seen["tap"].float()
        parts.append(out.mean((2, 3)) if out.dim() == 4 else out)
    model.train(was)
    return torch.cat(parts)


def linear_probe(train: Tensor, y_train: Tensor, test: Tensor, y_test: Tensor, decay: float = 1e-3, steps: int = 200) -> float:
    """Test accuracy (0..1) of multinomial logistic regression on features (N, C), found by L-BFGS.

    Features are scaled to mean 0 and deviation 1 over ``train``; ``decay`` weighs the squared norm of the weights.  The problem is
    convex: no seed, no learning rate.
    """
    centre, spread = train.mean(0), train.std(0).clamp_min(1e-6)
    x, x_test = (train - centre) / spread, (test - centre) / spread
    weight = torch.zeros(int(y_train.max()) + 1, x.shape[1], device=x.device, requires_grad=True)
    bias = torch.zeros(len(weight), device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=steps, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(x, weight, bias), y_train) + decay * weight.square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return float((F.linear(x_test, weight, bias).argmax(1) == y_test).float().mean())


def probes(model: nn.Module, data: Data, layers: Sequence[str]) -> dict[str, float]:
    """The accuracy of a linear probe on each of ``layers``: trained on ``data``'s training images, scored on its test images."""
    return {
        layer: linear_probe(features(model, data.x_train, layer), data.y_train, features(model, data.x_test, layer), data.y_test)
        for layer in layers
    }
