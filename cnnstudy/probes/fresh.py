"""Weights before any training: what the rules draw, what random layers do with them, and what the libraries' networks come with.

:func:`race` sends the same inputs through stacks that share their random numbers and differ in activation and rule, forwards and back;
:func:`law` draws one layer by one rule; :func:`halved` is ReLU's effect on a variance;
:func:`normed` batch norm's on a scale;
:func:`audit` reads the weights of networks as torchvision and timm build them; :func:`activations` counts their activations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.models.chain import ACTIVATION, SLOPE, activation
from cnnstudy.models.inits import INIT
from cnnstudy.models.torchvision_mend import import_timm, import_torchvision
from cnnstudy.probes.propagation import SHAPE, derivative, factors, per_layer

# variance of the weights times fan_in, from fan_in and fan_out
RULE = {
    "he": lambda fan_in, fan_out: 2.0,
    "he_fan_out": lambda fan_in, fan_out: 2.0 * fan_in / fan_out,
    "xavier": lambda fan_in, fan_out: 2.0 * fan_in / (fan_in + fan_out),
    "lecun": lambda fan_in, fan_out: 1.0,
    "framework": lambda fan_in, fan_out: 1 / 3,
    "normal": lambda fan_in, fan_out: 1e-4 * fan_in,
}
LIBRARY = ("torchvision", "timm")
LARGE = 20_000_000  # a network with more parameters has layers so large that one build is enough
KINDS = ("dense", "1x1", "depthwise", "fully connected")
TOLERANCE = 0.1  # how near to 1 the variance over He's must be to count


@dataclass(frozen=True)
class StackConfig:
    """Activation and rule, times ``gain``, of a random stack; "framework" has torch's random biases, all others none.  ``slope``: of
    "leaky"."""

    act: str = "relu"
    init: str = "he"
    gain: float = 1.0
    slope: float = field(default=SLOPE, metadata={"neutral": SLOPE})

    def __post_init__(self) -> None:
        choose("act", self.act, ACTIVATION)
        choose("init", self.init, RULE)


@torch.no_grad()
def race(
    stacks: Sequence[StackConfig], depth: int, width: int, inputs: int = 4, shape: str = "square", seed: int = 0
) -> dict[str, np.ndarray]:  # fmt: skip
    """Fully connected stacks in double precision; arrays (stacks, depth + 1), entry 0 is the N(0, 1) input.

    All stacks see the same inputs and the same standard normal numbers, each times its rule's scale.  ``second, variance``: of the
    activations; ``pre_second``: of the pre-activations; ``pre_spread``: their variance over inputs, mean over units; ``cosine``: of two
    independent inputs' activations, mean over pairs; ``gradient``: second moment of the loss gradient at the activations, 1 at the output.
    """
    choose("shape", shape, SHAPE)
    if depth < 1 or width < 1 or inputs < 2 or inputs % 2 or not stacks:
        raise Refused(f"depth {depth} and width {width} must be at least 1, inputs {inputs} even and at least 2, and a stack is needed")
    random = torch.Generator().manual_seed(seed)
    sizes = [SHAPE[shape](width, i) for i in range(depth + 1)]
    acts = [activation(s.act, s.slope) for s in stacks]
    h = torch.randn(inputs, sizes[0], generator=random).double().expand(len(stacks), -1, -1)
    found: dict[str, list[Tensor]] = {name: [] for name in ("second", "variance", "pre_second", "pre_spread", "cosine", "gradient")}
    weights, pre = [], []
    _look(found, h, h)
    for c_in, c_out in zip(sizes[:-1], sizes[1:], strict=True):
        normal = torch.randn(c_out, c_in, generator=random)
        bias = (torch.rand(c_out, generator=random).double() * 2 - 1) / math.sqrt(c_in)
        scale = torch.tensor([s.gain * math.sqrt(RULE[s.init](c_in, c_out) / c_in) for s in stacks], dtype=torch.float64).view(-1, 1, 1)
        z = h @ normal.double().T * scale
        z += torch.stack([bias * (s.init == "framework") for s in stacks]).unsqueeze(1)
        h = torch.stack([act(one) for act, one in zip(acts, z, strict=True)])
        weights.append((normal, scale))
        pre.append(z)
        _look(found, z, h)
    g = torch.randn(h.shape[1:], generator=random).double().expand_as(h)
    found["gradient"].append(_second(g))
    for (normal, scale), z in zip(reversed(weights), reversed(pre), strict=True):
        slopes = torch.stack([derivative(act, one) for act, one in zip(acts, z, strict=True)])
        g = (g * slopes) @ normal.double() * scale
        found["gradient"].insert(0, _second(g))
    return {name: torch.stack(values, 1).numpy() for name, values in found.items()}


def _second(h: Tensor) -> Tensor:
    return h.square().mean((1, 2))


def _look(found: dict[str, list[Tensor]], z: Tensor, h: Tensor) -> None:
    found["second"].append(_second(h))
    found["variance"].append(h.flatten(1).var(1, unbiased=False))
    found["pre_second"].append(_second(z))
    found["pre_spread"].append(z.var(1).mean(1))
    one, two = (half / half.norm(dim=2, keepdim=True) for half in h.chunk(2, 1))  # exact for signals of any size: no epsilon
    found["cosine"].append((one * two).sum(2).mean(1))


def through(stacks: Sequence[StackConfig], depth: int, width: int, inputs: int, draws: int) -> list[dict[str, Any]]:
    """What :func:`race` comes to over ``draws`` draws, one dict for each stack.

    ``ratios``: median of the second moment at 10, 20, 50 and 100 layers over that after the first; ``factor``: mean factor per layer on
    the pre-activations' second moment; ``told_apart``: on what differs between inputs, a geometric mean over the first 20 layers.
    Arrays: ``second, low, high`` (median, least, greatest), ``cosine`` (median).
    """
    runs = [race(stacks, depth, width, inputs, seed=seed) for seed in range(draws)]
    rows = []
    for i in range(len(stacks)):
        second, cosine, spread = (np.array([run[name][i] for run in runs]) for name in ("second", "cosine", "pre_spread"))
        pre = np.array([run["pre_second"][i] for run in runs])[:, 1:52]
        rows.append({
            "ratios": {str(d): float(np.median(second[:, d] / second[:, 1])) for d in (10, 20, 50, 100) if d <= depth},
            "factor": float((pre[:, 1:] / pre[:, :-1]).mean()),
            "told_apart": float(np.mean([per_layer(one) for one in spread[:, 1:22]])),
            "second": np.median(second, 0), "low": second.min(0), "high": second.max(0), "cosine": np.median(cosine, 0),
        })  # fmt: skip
    return rows


def both_ways(stacks: Sequence[StackConfig], depth: int, width: int, inputs: int, draws: int) -> list[dict[str, Any]]:
    """Second moments of signal and gradient, geometric means over draws (arrays), and their factors per layer from the first layer on."""
    runs = [race(stacks, depth, width, inputs, seed=seed) for seed in range(draws)]
    second, gradient = (np.exp(np.mean([np.log(run[name]) for run in runs], 0)) for name in ("second", "gradient"))
    return [
        {"forward": per_layer(a[1:]), "backward": 1 / per_layer(b[1:]), "second": a, "gradient": b}
        for a, b in zip(second, gradient, strict=True)
    ]  # fmt: skip


def kept(acts: Sequence[str], init: str, depth: int, width: int, inputs: int, shape: str, draws: int) -> dict[str, float]:
    """Factor per layer on the activations' variance (``<act>_forward``) and on the gradients' second moment (``<act>_backward``), means
    over draws of geometric means over layers; ``<act>``: the farther of the two from 1."""
    runs = [race([StackConfig(act, init) for act in acts], depth, width, inputs, shape, seed) for seed in range(draws)]
    found: dict[str, float] = {}
    for i, act in enumerate(acts):
        there = float(np.mean([per_layer(run["variance"][i]) for run in runs]))
        back = float(np.mean([1 / per_layer(run["gradient"][i]) for run in runs]))
        found |= {act: max(abs(there - 1), abs(back - 1)), f"{act}_forward": there, f"{act}_backward": back}
    return found


def ends(stacks: Sequence[StackConfig], depth: int, width: int, inputs: int, draws: int) -> list[dict[str, float]]:
    """``ratio``: second moment of the gradient at the first layer's activations over that at the last's, a geometric mean over draws;
    ``spread``: variance over inputs of the last pre-activations."""
    runs = [race(stacks, depth, width, inputs, seed=seed) for seed in range(draws)]
    ratio = np.exp(np.mean([np.log(run["gradient"][:, 1] / run["gradient"][:, -1]) for run in runs], 0))
    spread = np.mean([run["pre_spread"][:, -1] for run in runs], 0)
    return [{"ratio": float(r), "spread": float(s)} for r, s in zip(ratio, spread, strict=True)]


def law(init: str, uniform: bool, source: str, layer: str, seed: int = 0) -> dict[str, float]:
    """One layer drawn by a rule: mean in standard errors, and variance times fan_in, times fan_out, and times their sum.

    ``layer``: "linear" (1024 -> 512) or "conv" (64 -> 128, 3x3).  ``source``: "library" (torch's own function) or "formula".
    """
    sizes = {"linear": (512, 1024), "conv": (128, 64, 3, 3)}
    weight = torch.empty(sizes[choose("layer", layer, sizes)])
    fan_in, fan_out = weight[0].numel(), weight[:, 0].numel()
    torch.manual_seed(seed)
    if choose("source", source, ("library", "formula")) == "formula":
        std = math.sqrt(RULE[init](fan_in, fan_out) / fan_in)
        if uniform:
            weight.uniform_(-math.sqrt(3) * std, math.sqrt(3) * std)
        else:
            weight.normal_(0, std)
    elif init == "xavier":
        (nn.init.xavier_uniform_ if uniform else nn.init.xavier_normal_)(weight)
    else:
        draw = partial(nn.init.kaiming_uniform_ if uniform else nn.init.kaiming_normal_, weight)
        if init == "lecun":
            draw(mode="fan_in", nonlinearity="linear")
        else:
            draw(mode="fan_out" if init == "he_fan_out" else "fan_in", nonlinearity="relu")
    w = weight.double()
    variance = float(w.var(unbiased=False))
    return {
        "off_mean": abs(float(w.mean())) / math.sqrt(variance / w.numel()), "times_in": variance * fan_in,
        "times_out": variance * fan_out, "times_sum": variance * (fan_in + fan_out), "fan_in": fan_in, "fan_out": fan_out,
    }  # fmt: skip


def twins(width: int = 512, seed: int = 0) -> float:
    """Largest difference of LeCun's and Xavier's weights, drawn with the same seed for a square layer, relative to their size."""
    drawn = []
    for init in ("lecun", "xavier"):
        torch.manual_seed(seed)
        drawn.append(torch.empty(width, width, dtype=torch.float64))
        INIT[init](drawn[-1])
    return float((drawn[0] - drawn[1]).abs().max() * math.sqrt(width))


def halved(inputs: str, samples: int, seed: int = 0) -> dict[str, float]:
    """ReLU of zero-mean inputs ("normal" or "uniform"), from samples and in closed form: variance and second moment over Var(x)."""
    random = torch.Generator().manual_seed(seed)
    choose("inputs", inputs, ("normal", "uniform"))
    sums, chunk = np.zeros(4), 1_000_000
    for _ in range(samples // chunk):
        normal = inputs == "normal"
        x = torch.randn(chunk, generator=random).double() if normal else torch.rand(chunk, generator=random).double() * 2 - 1
        y = x.relu()
        sums += [float(x.sum()), float(x.dot(x)), float(y.sum()), float(y.dot(y))]
    mean, square, rectified, second = sums / (samples // chunk * chunk)
    variance = square - mean**2
    closed = 0.5 - 1 / (2 * math.pi) if inputs == "normal" else 5 / 16
    return {
        "variance_ratio": (second - rectified**2) / variance,
        "second_ratio": second / variance,
        "closed_variance": closed,
        "closed_second": 0.5,
    }


def normed(scale: float, seed: int = 0) -> dict[str, float]:
    """A 3x3 convolution of N(0, 1) inputs with He's weights times ``scale``, then batch norm in training mode, in double precision.

    ``worst_mean, std, worst_std``: of its output by channel; ``gradient``: norm of the weights' gradient of a fixed random loss.
    """
    torch.manual_seed(seed)
    x = torch.randn(32, 64, 8, 8, dtype=torch.float64)
    conv = nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular", bias=False).double()
    norm = nn.BatchNorm2d(64).double()
    INIT["he"](conv.weight)
    top = torch.randn(32, 64, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.mul_(scale)
    out = norm(conv(x))
    (gradient,) = torch.autograd.grad((out * top).sum(), conv.weight)
    values = out.detach().transpose(0, 1).flatten(1)
    stds = values.std(1, unbiased=False)
    return {
        "worst_mean": float(values.mean(1).abs().max()), "std": float(stds.mean()),
        "worst_std": float((stds - 1).abs().max()), "gradient": float(gradient.norm()),
    }  # fmt: skip


def create(library: str, name: str) -> nn.Module:
    """A network of a library, with the random weights that the library gives it."""
    if choose("library", library, LIBRARY) == "timm":
        return import_timm().create_model(name, pretrained=False)
    models = import_torchvision().models
    return models.get_model(name, weights=None)


def _kind(name: str, layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear) or name.startswith("pre_logits."):  # timm writes VGG's fully connected layers as convolutions
        return "fully connected"
    assert isinstance(layer, nn.Conv2d)
    if layer.groups == layer.in_channels > 1:
        return "depthwise"
    return "1x1" if max(layer.kernel_size) == 1 else "dense"


def audit(library: str, name: str, builds: int, seed: int = 0) -> dict[str, Any]:
    """Weight variance of every layer of a freshly built network, times fan_in / 2 and times fan_out / 2 (He: one of them is 1).

    Over ``builds`` builds (one for a network of more than LARGE parameters).  fan_out is the true one: k*k for a depthwise layer.
    For each kind with layers ``<kind>``: share of layers that count as He; lists over layers ``kinds, fan_in_ratio, fan_out_ratio``.
    """
    squares: dict[str, list[float]] = {}
    info: dict[str, tuple[str, int, int]] = {}
    torch.manual_seed(seed)
    done = 0
    while done < builds:
        model = create(library, name)
        for path, layer in model.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                weight = layer.weight.detach()
                fan_out = len(weight) // getattr(layer, "groups", 1) * weight[0, 0].numel()
                info[path] = (_kind(path, layer), weight[0].numel(), fan_out)
                squares.setdefault(path, []).append(float(weight.var(unbiased=False)))
        done += 1
        if sum(p.numel() for p in model.parameters()) > LARGE:
            break
    kinds = [info[p][0] for p in squares]
    ratio = np.array([[float(np.mean(v)) * info[p][1] / 2, float(np.mean(v)) * info[p][2] / 2] for p, v in squares.items()])
    counts = (np.abs(ratio - 1) <= TOLERANCE).any(1)
    shares = {k: float(counts[[one == k for one in kinds]].mean()) for k in KINDS if k in kinds}
    convolutions = np.array([one != "fully connected" for one in kinds])
    return {
        "share": shares, "convolutions": float(counts[convolutions].mean()), "layers": len(kinds), "as_he": int(counts.sum()),
        "worst_plain": min((v for k, v in shares.items() if k in KINDS[:2]), default=1.0), "worst": min(shares.values()),
        "convolution_layers": int(convolutions.sum()), "kinds": [KINDS.index(k) for k in kinds], "fan_in_ratio": [round(float(r), 6)
        for r in ratio[:, 0]],
        "fan_out_ratio": [round(float(r), 6) for r in ratio[:, 1]],
    }  # fmt: skip


ALIKE = {"ReLU": "relu", "ReLU6": "relu6", "Hardswish": "hardswish", "SiLU": "silu", "GELU": "gelu", "Sigmoid": "sigmoid", "Tanh": "tanh"}


def activations(name: str) -> dict[str, Any]:
    """Activations of timm's network ``name`` by type (gates of squeeze-excite apart), and E f(x)^2 of the commonest, over ReLU's 1/2."""
    with torch.device("meta"):
        model = import_timm().create_model(name, pretrained=False)
    counted: Counter[str] = Counter()
    for path, module in model.named_modules():
        kind = type(module).__name__.removesuffix("Act").replace("BatchNorm", "").replace("HardSwish", "Hardswish")
        if kind in ALIKE and "gate" not in path:
            counted[kind] += 1
    if not counted:
        raise Refused(f"{name} has no activation of {', '.join(ALIKE)}")
    most, times = counted.most_common(1)[0]
    over = factors(ALIKE[most])["he"]
    return {
        "counts": dict(counted),
        "majority": most,
        "majority_share": times / counted.total(),
        "over_relu": over,
        "alike": bool(abs(over - 1) <= 0.1),
    }
