"""Jacobians, explicitly and in double precision: what a layer or a residual block does to a gradient.

Batch norm is in evaluation mode, so that each image is a function of itself alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from cnnstudy.config import Refused

Layer = Callable[[Tensor], Tensor]


def jacobian(layer: Layer, x: Tensor) -> Tensor:
    """Explicit Jacobian of ``layer`` at one input ``x`` (any shape): a matrix (outputs, inputs)."""
    flat = x.detach().flatten()

    def function(v: Tensor) -> Tensor:
        return layer(v.view_as(x)).flatten()

    return torch.func.jacrev(function, chunk_size=256)(flat).detach()


def chain(model: nn.Module) -> list[Layer]:
    """A plain network without norm as a chain of layers: stem, each convolution with its activation, head.

    Raises Refused for a network with shortcuts: that is not a chain.
    """
    blocks = model.blocks()  # type: ignore[operator]
    if any(block.shortcut is not None for block in blocks):
        raise Refused("a network with shortcuts is not a chain of layers")
    layers: list[Layer] = [nn.Sequential(model.normalize, model.stem)]  # type: ignore[arg-type]
    for block in blocks:
        parts = block.branch
        layers.append(nn.Sequential(parts.conv1, parts.norm1, parts.act1))
        layers.append(nn.Sequential(parts.conv2, parts.norm2, block.out))
    return [*layers, lambda x: model.head(x.mean((2, 3)))]  # type: ignore[operator]


def product_error(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Largest relative difference, over all layers' inputs, of autograd's gradient and the product of layer Jacobians.

    ``x``: (1, 3, H, W).  The gradient is that of the sum of the logits.
    """
    model = copy.deepcopy(model).double().eval()
    layers = chain(model)
    points = [x.double().requires_grad_()]
    for layer in layers:
        points.append(layer(points[-1]))
    by_autograd = torch.autograd.grad(points[-1].sum(), points[:-1])
    g = torch.ones_like(points[-1]).flatten()
    worst = 0.0
    for layer, point, expected in reversed(list(zip(layers, points, by_autograd, strict=False))):
        g = g @ jacobian(layer, point)
        worst = max(worst, float((g - expected.flatten()).norm() / expected.norm()))
    return {"relative_difference": worst, "layers": len(layers)}


def residual_blocks(model: nn.Module) -> list[nn.Module]:
    """The residual blocks of a CIFAR ResNet or of a timm ResNet, from input to output."""
    found = [m for m in model.modules() if type(m).__name__ in ("Block", "BasicBlock", "Bottleneck")]
    if not found:
        raise Refused(f"{type(model).__name__} has no residual blocks")
    return found


class Parts:
    """A residual block taken apart: ``y = out(branch(x) + shortcut(x))``."""

    def __init__(self, block: nn.Module) -> None:
        self.block = block
        if hasattr(block, "branch"):  # this package's
            self.branch: Layer = block.branch  # type: ignore[assignment]
            self.shortcut: Layer = block.shortcut  # type: ignore[assignment]
            self.out: Layer = block.out  # type: ignore[assignment]
            self.identity = isinstance(block.shortcut, nn.Identity)
            self.last = [m for m in block.branch.modules() if isinstance(m, (nn.Conv2d, nn.BatchNorm2d))][-1]  # type: ignore[union-attr]
        else:  # timm's: the last activation and the shortcut are attributes of the block
            act = "act3" if hasattr(block, "act3") else "act2"
            bare = copy.deepcopy(block)
            setattr(bare, act, nn.Identity())
            self.shortcut = block.downsample if block.downsample is not None else nn.Identity()  # type: ignore[assignment]
            self.branch = lambda x: bare(x) - self.shortcut(x)
            self.out = getattr(block, act)
            self.identity = block.downsample is None
            self.last = getattr(bare, "bn3" if hasattr(block, "bn3") else "bn2")

    def __call__(self, x: Tensor) -> Tensor:
        return self.out(self.branch(x) + self.shortcut(x))


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy in double precision and evaluation mode whose batch norms hold the statistics of ``x``.

    A fresh network's batch norms know nothing yet (mean 0, variance 1): in evaluation mode they would not normalise.
    """
    twin = copy.deepcopy(model).double().train()
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.momentum for m in norms]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        twin(x.double())
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    return twin.eval()


def block_inputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """What each residual block receives when the network sees ``x`` (evaluation mode)."""
    from cnnstudy.probes.taps import inputs

    blocks = {str(i): block for i, block in enumerate(residual_blocks(model))}
    with torch.no_grad(), inputs(blocks) as seen:
        model(x)
    return [seen[name].detach() for name in blocks]


def block_gradients(model: nn.Module, x: Tensor, zero_branch: bool = False, seed: int = 0) -> list[dict[str, float | bool]]:
    """For every residual block: is the input gradient ``g + J_F^T g``, and how long is it beside ``g``?

    ``x``: (N, 3, H, W).  ``g`` is a random gradient at the block's output (seeded).  ``relative_difference`` compares
    autograd's input gradient with the formula; where the shortcut is a projection, ``g`` has another shape than the
    input and the formula has nothing to add, so J_F^T g alone is compared.  ``gain`` is |input gradient| / |g|.
    ``zero_branch`` first sets the last norm's scale (or the last convolution) of each branch to zero.
    """
    model = calibrated(model, x)
    generator = torch.Generator().manual_seed(seed)
    found: list[dict[str, float | bool]] = []
    for block, point in zip(residual_blocks(model), block_inputs(model, x.double()), strict=True):
        parts = Parts(block)
        if zero_branch:
            nn.init.zeros_(parts.last.weight)  # type: ignore[arg-type]
            if getattr(parts.last, "bias", None) is not None:
                nn.init.zeros_(parts.last.bias)  # type: ignore[arg-type]
        point = point.clone().requires_grad_()
        y = parts(point)
        g = torch.randn(y.shape, generator=generator, dtype=y.dtype)
        (actual,) = torch.autograd.grad(y, point, g)
        (through,) = torch.autograd.grad(parts.branch(point), point, g)
        formula = through + g if parts.identity else through
        found.append({
            "identity": parts.identity,
            "gain": float(actual.norm() / g.norm()),
            "relative_difference": float((actual - formula).norm() / actual.norm().clamp_min(1e-300)),
        })  # fmt: skip
    return found


def block_algebra(model: nn.Module, x: Tensor, zero_branch: bool = False) -> dict[str, float | int | None]:
    """:func:`block_gradients` in one line: the worst block with an identity shortcut, and the worst with a projection.

    ``*_difference``: largest relative difference to the formula; ``*_gain_error``: largest |gain - 1|;
    ``identity_share``: share of the blocks whose shortcut is the identity.  None where there is no such block.
    """
    rows = block_gradients(model, x, zero_branch)
    found: dict[str, float | int | None] = {"blocks": len(rows), "identity_share": sum(bool(r["identity"]) for r in rows) / len(rows)}
    for name, wanted in (("identity", True), ("projection", False)):
        some = [r for r in rows if r["identity"] is wanted]
        found[f"{name}_difference"] = max((float(r["relative_difference"]) for r in some), default=None)
        found[f"{name}_gain_error"] = max((abs(float(r["gain"]) - 1) for r in some), default=None)
        found[f"{name}_gain_min"] = min((float(r["gain"]) for r in some), default=None)
    return found


def _singular_values(matrix: Tensor) -> np.ndarray:
    """Through the eigenvalues of J J^T: four times as fast as an SVD, and exact down to 1e-8 of the largest value."""
    return torch.linalg.eigvalsh(matrix @ matrix.T).clamp_min(0).sqrt().cpu().numpy()


def block_spectra(model: nn.Module, x: Tensor) -> list[np.ndarray]:
    """Singular values of the full Jacobian of every block with an identity shortcut, per image: (images, values).

    ``x``: (N, 3, H, W).  Memory grows with the fourth power of the map's side: for small maps and narrow networks.
    """
    model = copy.deepcopy(model).double().eval()
    blocks, points = residual_blocks(model), block_inputs(model, x.double())
    return [
        np.stack([_singular_values(jacobian(Parts(b), p[i : i + 1])) for i in range(len(x))])
        for b, p in zip(blocks, points, strict=True)
        if Parts(b).identity
    ]


def block_gain_summary(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, float | np.ndarray]:
    """What the blocks with identity shortcuts can do to a gradient, and what they do to real ones.

    ``below_*``: share of singular values of the blocks' Jacobians below 1, 0.5, 0.1; ``gains_below_1``: share of real
    gradients (per block and image) that come out shorter than they went in.  ``values``: 500 quantiles of the spectrum.
    """
    values = np.concatenate([s.ravel() for s in block_spectra(model, x)])
    gains = real_gains(model, x, y)
    return {
        "min_singular_value": float(values.min()), "max_singular_value": float(values.max()),
        "below_1": float((values < 1).mean()), "below_half": float((values < 0.5).mean()), "below_tenth": float((values < 0.1).mean()),
        "min_gain": float(gains.min()), "median_gain": float(np.median(gains)), "gains_below_1": float((gains < 1).mean()),
        "values": np.quantile(values, np.linspace(0, 1, 500)).astype(np.float32),
    }  # fmt: skip


def real_gains(model: nn.Module, x: Tensor, y: Tensor) -> np.ndarray:
    """|gradient at a block's input| / |gradient at its output| on real losses: (blocks with identity shortcut, images)."""
    model = copy.deepcopy(model).double().eval()
    from cnnstudy.probes.taps import inputs, outputs

    blocks = {str(i): b for i, b in enumerate(residual_blocks(model)) if Parts(b).identity}
    with inputs(blocks) as before, outputs(blocks) as after:
        x = x.double().requires_grad_()
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum")
    ends = [before[n] for n in blocks] + [after[n] for n in blocks]
    gradients = torch.autograd.grad(loss, ends)
    norms = [g.flatten(1).norm(dim=1) for g in gradients]
    half = len(norms) // 2
    return torch.stack([a / b.clamp_min(1e-300) for a, b in zip(norms[:half], norms[half:], strict=True)]).numpy()


def path_shares(model: nn.Module, x: Tensor, y: Tensor, samples: int = 16, seed: int = 0) -> dict[str, float | np.ndarray]:
    """Gradient at the first block's input that has passed through exactly k branches, by the sampling of Veit et al. 2016.

    For each length k, ``samples`` random sets of k blocks are drawn; in the backward pass only their branches are
    followed, in the others only the shortcut.  ``magnitude[k]`` is the mean norm of one such path's gradient, and
    ``share[k]`` its share after weighting with the number of paths, C(n, k) (arXiv:1605.06431, section 4.3);
    ``short_share`` sums the paths through fewer than a third of the branches.
    """
    model = calibrated(model, x)
    blocks = residual_blocks(model)
    rng = np.random.default_rng(seed)
    magnitude = np.zeros(len(blocks) + 1)
    with torch.no_grad():
        start = block_inputs(model, x.double())[0]
    for k in range(len(blocks) + 1):
        for _ in range(1 if k in (0, len(blocks)) else samples):
            chosen = set(rng.choice(len(blocks), size=k, replace=False).tolist())
            magnitude[k] += float(_path_gradient(model, blocks, start, y, chosen)) / (1 if k in (0, len(blocks)) else samples)
    weights = np.array(
        [math.lgamma(len(blocks) + 1) - math.lgamma(k + 1) - math.lgamma(len(blocks) - k + 1) for k in range(len(blocks) + 1)]
    )
    log_total = np.log(np.maximum(magnitude, 1e-300)) + weights
    share = np.exp(log_total - log_total.max())
    share /= share.sum()
    third = math.ceil(len(blocks) / 3)
    return {
        "direct_share": float(share[0]), "short_share": float(share[:third].sum()),
        "median_length": int(np.searchsorted(share.cumsum(), 0.5)),
        "blocks": len(blocks), "magnitude": magnitude, "share": share,
    }  # fmt: skip


def _path_gradient(model: nn.Module, blocks: Sequence[nn.Module], start: Tensor, y: Tensor, chosen: set[int]) -> Tensor:
    """Norm of the loss gradient at ``start`` along the paths through exactly the branches in ``chosen``.

    The forward pass is the network's own; in the backward pass the other side of each sum is detached.
    """
    point = h = start.clone().requires_grad_()
    for index, block in enumerate(blocks):
        parts = Parts(block)
        branch, shortcut = parts.branch(h), parts.shortcut(h)
        h = parts.out(branch + shortcut.detach() if index in chosen else branch.detach() + shortcut)
    logits = model.head(model.final(h).mean((2, 3)))  # type: ignore[operator]
    (g,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y), point)
    return g.norm()


def random_products(
    low: float, high: float, split: bool, size: int = 64, depth: int = 100, draws: int = 100, seed: int = 0
) -> dict[str, object]:
    """Log norm of a random gradient sent back through ``depth`` random Jacobians (size x size), ``draws`` times.

    Singular values are uniform in [low, high], or, with ``split``, half of them ``low`` and half ``high``; singular
    vectors are independent and uniform.  ``slope``: nats per layer, least squares over depth; ``r2``: of that line.
    ``under_bound``: share of draws and depths at which the norm is at most the product of the largest singular values.
    """
    rng = np.random.default_rng(seed)
    logs = np.zeros((draws, depth))
    bound = np.zeros((draws, depth))
    for draw in range(draws):
        g = rng.standard_normal(size)
        g /= np.linalg.norm(g)
        log = top = 0.0
        for layer in range(depth):
            values = np.repeat([low, high], size // 2) if split else rng.uniform(low, high, size)
            # J^T g with J = U S V^T: a fresh uniform V makes the direction of the result uniform, so only |S U^T g|
            # matters, and U^T g is uniform on the sphere.
            g = rng.standard_normal(size)
            g *= values / np.linalg.norm(g)
            log += float(np.log(np.linalg.norm(g)))
            top += float(np.log(values.max()))
            logs[draw, layer], bound[draw, layer] = log, top
    axis = np.arange(1, depth + 1)
    fits = [np.polyfit(axis, row, 1) for row in logs]
    residual = [1 - np.sum((row - np.polyval(f, axis)) ** 2) / np.sum((row - row.mean()) ** 2) for row, f in zip(logs, fits, strict=True)]
    slopes = np.array([f[0] for f in fits])
    return {
        "slope": float(slopes.mean()), "slope_min": float(slopes.min()), "slope_max": float(slopes.max()),
        "r2": float(np.mean(residual)), "r2_min": float(np.min(residual)), "under_bound": float((logs <= bound + 1e-9).mean()),
        "log_norm": logs.mean(0).astype(np.float32),
    }  # fmt: skip


def scalar_gain(slope: float) -> float:
    """Gain of the smallest residual block, y = F(x) + x with F(x) = ``slope`` x: |dy/dx|, by autograd."""
    x = torch.ones((), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(slope * x + x, x)
    return float(gradient.abs())
