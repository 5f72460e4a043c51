"""Signals on their way through random layers, in double precision: how activations grow forwards and gradients backwards.

:func:`propagate` draws one stack of fully connected or convolutional layers (no norm) and follows Gaussian inputs through it and a
Gaussian gradient back.  :func:`factors` has what theory says about an activation, as integrals over a standard normal input, and
:func:`length_map` the second moment of infinitely wide layers.  The loss is ``<g, h_L>`` with g standard normal, so that the gradient's
second moment at the output is 1.  "Second moment" is the mean of squares, "variance" is about the mean; the two are kept apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnstudy.config import Refused, choose
from cnnstudy.models.chain import ACTIVATION, SLOPE, activation
from cnnstudy.models.inits import INIT, framework_bias_

# channels before layer i (counted from 0) of a stack of this width
SHAPE: dict[str, Callable[[int, int], int]] = {
    "square": lambda width, i: width,
    "wider": lambda width, i: width * (1 + i % 2),  # width -> 2 width -> width -> ...: the first layer widens
    "narrower": lambda width, i: width * (2 - i % 2),  # 2 width -> width -> 2 width -> ...: the first layer narrows
}
LAYERS = ("fc", "conv")
SKIP = ("none", "layer", "block", "preact")


@dataclass(frozen=True)
class PropagationConfig:
    """A random stack without norm: ``depth`` layers, or residual blocks of two, of ``width`` units (fc) or channels (conv, 3x3).

    ``skip``: "none": h' = f(W h); "layer": h' = h + f(W h); "block": h' = f(h + V f(W h)); "preact": h' = h + V f(W f(h)).
    ``inputs`` standard normal inputs; those of the second half are partners of those of the first, correlated by ``correlation``.
    ``side``: pixels of a convolution's map, which is closed to a ring (``padding`` "circular"), or padded with zeros ("zeros").
    ``init="framework"`` has torch's random biases, all others have none.  ``init``, ``gain``: see ``models.inits``.
    """

    layers: str = "fc"
    depth: int = 20
    width: int = 512
    act: str = "relu"
    slope: float = field(default=SLOPE, metadata={"neutral": SLOPE})
    init: str = "he"
    gain: float = 1.0
    shape: str = "square"
    skip: str = "none"
    inputs: int = 32
    correlation: float = 0.0
    side: int = 8
    padding: str = "circular"

    def __post_init__(self) -> None:
        for name, valid in (("layers", LAYERS), ("act", ACTIVATION), ("init", INIT), ("shape", SHAPE), ("skip", SKIP)):
            choose(name, getattr(self, name), valid)
        choose("padding", self.padding, ("circular", "zeros"))
        if self.depth < 1 or self.width < 1 or self.side < 3:
            raise Refused(f"depth {self.depth}, width {self.width} and side {self.side} must be at least 1, 1 and 3")
        if self.inputs < 2 or self.inputs % 2:
            raise Refused(f"inputs {self.inputs} is not valid; an even number of at least 2, as they come in pairs")
        if not self.gain > 0 or not -1 <= self.correlation <= 1:
            raise Refused(f"gain {self.gain} must be above 0 and correlation {self.correlation} between -1 and 1")
        if self.skip != "none" and self.shape != "square":
            raise Refused(f"skip {self.skip!r} needs shape 'square', not {self.shape!r}: the identity keeps the width")
        if self.init == "delta_orthogonal" and self.layers == "fc":
            raise Refused("init 'delta_orthogonal' is for convolutions; use 'orthogonal' with layers 'fc'")


@torch.no_grad()
def propagate(cfg: PropagationConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """One draw of the stack.  Arrays (depth + 1,) over layers; entry 0 is the input.

    ``second, mean, variance``: of the activations h (after each block's sum).  ``pre_second, pre_variance``: of the pre-activations, i.e.
    what the layer's last activation sees.  ``input_variance``: variance over inputs of the pre-activations, mean over units.
    ``cosine``: mean cosine similarity of the two partners' h; ``pre_cosine``: of their pre-activations.
    ``gradient, pre_gradient``: second moment of the loss gradient at h and at the pre-activations.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # one stream for inputs and weights: two with the same seed would be the same numbers
        half = [torch.randn(cfg.inputs // 2, *_sizes(cfg, 0), dtype=torch.float64) for _ in range(2)]
        c = cfg.correlation
        x = torch.cat([half[0], c * half[0] + math.sqrt(1 - c * c) * half[1]])
        with torch.enable_grad():
            pre, post = _forward(cfg, x.requires_grad_())
            top = torch.randn(post[-1].shape, dtype=torch.float64)
            back = torch.autograd.grad((post[-1] * top).sum(), [*pre, *post])
    found = {
        "second": _each(post, _second),
        "mean": _each(post, torch.mean),
        "variance": _each(post, lambda h: h.var(unbiased=False)),
        "pre_second": _each(pre, _second),
        "pre_variance": _each(pre, lambda z: z.var(unbiased=False)),
        "input_variance": _each(pre, lambda z: z.var(0).mean()),
        "cosine": _each(post, _pair_cosine),
        "pre_cosine": _each(pre, _pair_cosine),
        "gradient": _each(back[len(pre) :], _second),
        "pre_gradient": _each(back[: len(pre)], _second),
    }
    return found


def per_layer(values: np.ndarray) -> float:
    """The factor per layer, as a geometric mean: (last / first) ** (1 / layers)."""
    return float((values[-1] / values[0]) ** (1 / (len(values) - 1)))


def steps(values: np.ndarray) -> np.ndarray:
    """The factor of each layer, (layers,): value after it over value before it.  Of a gradient use ``1 / steps(...)``: it flows back."""
    return values[1:] / values[:-1]


def gaussian_mean(function: Callable[[Tensor], Tensor], variance: float = 1.0) -> float:
    """E[function(x)] for x normal with mean 0 and this variance, by Gauss-Legendre quadrature between the activations' kinks."""
    width = 14 * math.sqrt(variance)
    kinks = [k for k in (-3.0, 0.0, 3.0, 6.0) if -width < k < width]
    edges = np.unique(np.concatenate([np.linspace(-width, width, 113), kinks]))
    nodes, weights = np.polynomial.legendre.leggauss(16)
    middle, radius = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    x = torch.from_numpy((middle[:, None] + radius[:, None] * nodes).ravel())
    w = torch.from_numpy((radius[:, None] * weights).ravel())
    density = torch.exp(-x * x / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    return float((function(x) * density * w).sum())


def derivative(act: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """f'(x), elementwise, by autograd (at a kink: torch's choice; ReLU's at 0 is 0)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(act(x).sum(), x)[0] if not isinstance(act, torch.nn.Identity) else torch.ones_like(x)


def factors(act: str, slope: float = SLOPE, variance: float = 1.0) -> dict[str, float]:
    """What an activation f does to x, normal with mean 0 and this variance.

    ``mean, variance, second``: of f(x); ``derivative_second``: E f'(x)^2; ``gain``: factor on 1 / sqrt(fan_in) that keeps the second moment
    of unit-variance pre-activations, 1 / sqrt(second); ``gradient_gain``: the same for gradients, 1 / sqrt(derivative_second);
    ``he``: second moment over ReLU's, second / (variance / 2).
    """
    f = activation(act, slope)
    mean, second = gaussian_mean(f, variance), gaussian_mean(lambda x: f(x) ** 2, variance)
    slope_second = gaussian_mean(lambda x: derivative(f, x) ** 2, variance)
    return {
        "mean": mean,
        "variance": second - mean**2,
        "second": second,
        "derivative_second": slope_second,
        "gain": math.sqrt(variance / second),
        "gradient_gain": slope_second**-0.5,
        "he": second / (variance / 2),
    }


def length_map(act: str, weights: float, depth: int, biases: float = 0.0, start: float = 1.0, slope: float = SLOPE) -> np.ndarray:
    """Second moment of infinitely wide layers' pre-activations, (depth + 1,): q' = weights E[f(sqrt(q) x)^2] + biases, from ``start``.

    ``weights``: weight variance times fan_in; ``biases``: the biases' variance (Poole et al. 2016, arXiv:1606.05340, eq. 3).
    """
    f = activation(act, slope)
    found = [start]
    for _ in range(depth):
        found.append(weights * gaussian_mean(lambda x: f(x) ** 2, found[-1]) + biases)
    return np.array(found)


def _sizes(cfg: PropagationConfig, i: int) -> tuple[int, ...]:
    channels = SHAPE[cfg.shape](cfg.width, i)
    return (channels,) if cfg.layers == "fc" else (channels, cfg.side, cfg.side)


def _forward(cfg: PropagationConfig, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Pre-activations and activations of all layers; both begin with the input."""
    f = activation(cfg.act, cfg.slope)
    pre, post = [x], [x]
    for i in range(cfg.depth):
        h = post[-1]
        if cfg.skip == "none":
            z = _layer(cfg, h, i)
            out = f(z)
        elif cfg.skip == "layer":
            z = _layer(cfg, h, i)
            out = h + f(z)
        elif cfg.skip == "block":
            z = h + _layer(cfg, f(_layer(cfg, h, i)), i)
            out = f(z)
        else:
            z = _layer(cfg, f(h), i)
            out = h + _layer(cfg, f(z), i)
        pre.append(z)
        post.append(out + 0)  # with act "identity" out is z itself; two nodes, so that both have a gradient
    return pre, post


def _layer(cfg: PropagationConfig, h: Tensor, i: int) -> Tensor:
    """``h`` times freshly drawn weights of layer ``i``."""
    c_in, c_out = SHAPE[cfg.shape](cfg.width, i), SHAPE[cfg.shape](cfg.width, i + 1)
    weight = torch.empty((c_out, c_in) if cfg.layers == "fc" else (c_out, c_in, 3, 3), dtype=torch.float64)
    INIT[cfg.init](weight)
    weight.mul_(cfg.gain)
    bias = None
    if cfg.init == "framework":
        bias = torch.empty(c_out, dtype=torch.float64)
        framework_bias_(bias, weight[0].numel())
    if cfg.layers == "fc":
        return F.linear(h, weight, bias)
    mode = "circular" if cfg.padding == "circular" else "constant"
    return F.conv2d(F.pad(h, (1, 1, 1, 1), mode=mode), weight, bias)


def _each(layers: list[Tensor] | tuple[Tensor, ...], of: Callable[[Tensor], Tensor]) -> np.ndarray:
    return np.array([float(of(values)) for values in layers])


def _second(values: Tensor) -> Tensor:
    return values.square().mean()


def _pair_cosine(values: Tensor) -> Tensor:
    one, two = values.flatten(1).chunk(2)
    return F.cosine_similarity(one, two, 1).mean()
