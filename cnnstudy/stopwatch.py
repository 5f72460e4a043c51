"""Timing of any network or block with any engine: interleaved, with an interval for each median.

On top of ``timing`` (the clock) and ``engines`` (what runs a network).  Here: more engines, any module instead of zoo networks only,
all cores, training steps, and numbers that a page can show without further work.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from cnnstudy import engines
from cnnstudy.config import Refused, Setup, choose
from cnnstudy.engines import AT_ONCE, Runner
from cnnstudy.models import build
from cnnstudy.models.zoo import ZooConfig, zoo
from cnnstudy.probes.cost import cost
from cnnstudy.runtime import cores
from cnnstudy.runtime import threads as torch_threads
from cnnstudy.timing import benchmark, summary

SLOW = 1e-3  # learning rate of a timed training step: it must move weights, not train them


def channels_last(model: nn.Module, x: Tensor, threads: int) -> Runner:
    """PyTorch eager with images and weights in the order N, H, W, C."""
    return engines.eager(model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), threads)  # type: ignore[call-overload]


def compiled(model: nn.Module, x: Tensor, threads: int) -> Runner:
    """``torch.compile`` (Inductor), for the shape of ``x``; compiling takes tens of seconds on a CPU.

    Its code is made for torch's number of threads at that time.  Raises Refused without a C++ compiler.
    """
    if not (os.environ.get("CXX") or any(shutil.which(name) for name in ("g++", "clang++", "c++", "cl"))):
        raise Refused("engine 'compiled' needs a C++ compiler, and there is none here; other engines do without")
    import torch._dynamo as dynamo

    run = torch.compile(model, dynamic=False)

    def once() -> Tensor:
        with torch.no_grad():
            out: Tensor = run(x)
        return out

    # many networks of one class are compiled side by side; past dynamo's limit of eight it would fall back to eager, silently
    with warnings.catch_warnings(), dynamo.config.patch(recompile_limit=512, accumulated_recompile_limit=4096):
        warnings.simplefilter("ignore")  # the compiler's own, e.g. about precision on a GPU
        once()
    return once


def train(model: nn.Module, x: Tensor, threads: int) -> Runner:
    """One training step, eager: forward, cross-entropy (a part of a network: mean square), backward, SGD with momentum.

    The gradient of ``x``, too, if it asks for one, as a block inside of a network must.
    """
    model.train().requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), SLOW, momentum=0.9) if any(True for _ in model.parameters()) else None
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def step() -> None:
        x.grad = None
        out = model(x)
        loss = nn.functional.cross_entropy(out, labels) if out.dim() == 2 else out.square().mean()
        loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def _on_cuda(engine: Callable[[nn.Module, Tensor, int], Runner]) -> Callable[[nn.Module, Tensor, int], Runner]:
    def run(model: nn.Module, x: Tensor, threads: int) -> Runner:
        if not torch.cuda.is_available():
            raise Refused("an engine with 'cuda' in its name needs a CUDA GPU, and there is none here")
        return engine(model.to("cuda"), x.to("cuda"), threads)

    return run


ENGINES: dict[str, Callable[[nn.Module, Tensor, int], Runner]] = {
    **engines.ENGINES,  # eager, onnxruntime, cuda
    "channels_last": channels_last,
    "compiled": compiled,
    "train": train,
    "cuda_compiled": _on_cuda(compiled),
    "cuda_train": _on_cuda(train),
}


def count_of(threads: int) -> int:
    """0 means all cores that this process may use."""
    if threads < 0:
        raise Refused(f"threads {threads} must be at least 0 (0: all cores)")
    return threads or cores()


def runner(engine: str, model: nn.Module, x: Tensor, threads: int = 1) -> Runner:
    """A function without arguments that runs ``model`` once on ``x``; ``model`` is used as it is, in evaluation mode.

    ``threads`` are those of ONNX Runtime; torch's are set around the clock by :func:`race`.
    """
    return ENGINES[choose("engine", engine, ENGINES)](model.eval().requires_grad_(False), x, count_of(threads))


def median_interval(samples: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """The narrowest pair of order statistics that holds the median with at least ``level``, whatever the distribution.

    With fewer than six samples there is none at 95 %: then smallest and largest.
    """
    from scipy.stats import binom

    ordered, n = sorted(samples), len(samples)
    if n < 1:
        raise Refused("median_interval needs at least one sample")
    low = int(binom.ppf((1 - level) / 2, n, 0.5))  # largest rank with at most (1 - level) / 2 below it
    while low > 0 and binom.cdf(low - 1, n, 0.5) > (1 - level) / 2:
        low -= 1
    return ordered[max(low - 1, 0)], ordered[min(n - low, n - 1)]


def portions(sizes: Mapping[str, int], most: int = AT_ONCE, seed: int = 0) -> list[list[str]]:
    """Names in random order, cut so that each portion holds at most ``most`` parameters (or one network)."""
    order = list(sizes)
    random.Random(seed).shuffle(order)
    done: list[list[str]] = []
    held = most + 1
    for name in order:
        if held + sizes[name] > most:
            done.append([])
            held = 0
        done[-1].append(name)
        held += sizes[name]
    return done


def race(
    makers: Mapping[str, Callable[[], Runner]],
    sizes: Mapping[str, int] | None = None,
    threads: int = 1,
    runs: int = 30,
    warmup: int = 3,
    seed: int = 0,
    cuda: bool = False,
) -> dict[str, dict[str, Any]]:
    """Time cases in turn; each is built by its maker just before (those of one portion together, see :func:`portions`).

    ``sizes``: parameters of each, so that not all weights are held at once.  Returns per case ``latency_ms`` (median), ``low_ms``
    and ``high_ms`` (95 % interval of the median), ``q25_ms``, ``q75_ms``, ``runs``, ``samples_ms``.  Subnormal numbers are read as zero.
    """
    found: dict[str, dict[str, Any]] = {}
    flushed = torch.set_flush_denormal(True)
    try:
        with torch_threads(count_of(threads)):
            for names in portions(sizes or dict.fromkeys(makers, 0), seed=seed):
                cases = {name: makers[name]() for name in names}
                for name, samples in benchmark(cases, runs=runs, warmup=warmup, seed=seed, cuda=cuda).items():
                    done = summary(samples)
                    low, high = median_interval(samples)
                    found[name] = {"latency_ms": done.pop("median_ms"), "low_ms": round(low, 3), "high_ms": round(high, 3), **done}
                del cases
                gc.collect()
                if "torch._dynamo" in sys.modules:  # it keeps what it compiled, weights included
                    torch.compiler.reset()
    finally:
        if flushed:
            torch.set_flush_denormal(False)
    return {name: found[name] for name in makers}


def zoo_latency(setups: Sequence[Setup], seed: int) -> list[dict[str, Any]]:
    """Experiment "zoo_latency", hardware, ``together="model"``: networks timed in turn, all that differ only in ``model``.

    ``latency_ms`` (median of ``runs``, of the whole batch), ``low_ms`` and ``high_ms`` (95 % interval of the median), ``q25_ms``,
    ``q75_ms``, ``samples_ms``; ``images_per_second``; ``gmacs_per_second``; ``macs`` (per image) and ``params``.  Engine "train": a
    training step, whose MACs are about three times as many; its rate is not given.
    """
    one = setups[0]
    counted = []
    for setup in setups:
        with torch.device("meta"):
            counted.append(cost(_built(setup.model), setup.resolution))
    makers = {str(i): partial(_ready, setup) for i, setup in enumerate(setups)}
    sizes = {str(i): found["params"] for i, found in enumerate(counted)}
    times = race(makers, sizes, threads=one.threads, runs=one.runs, warmup=2, seed=seed, cuda="cuda" in one.engine)
    results = []
    for i, found in enumerate(counted):
        ms = times[str(i)]["latency_ms"]
        rate = None if "train" in one.engine else found["macs"] * one.batch / ms / 1e6
        costs = {"macs": found["macs"], "params": found["params"]}
        results.append({**times[str(i)], **costs, "images_per_second": 1e3 * one.batch / ms, "gmacs_per_second": rate})
    return results


def _built(model: Any) -> nn.Module:
    return zoo(model) if isinstance(model, ZooConfig) else build(model)


def _ready(setup: Setup) -> Runner:
    x = torch.randn(setup.batch, 3, setup.resolution, setup.resolution)
    return runner(setup.engine, _built(setup.model), x, setup.threads)
