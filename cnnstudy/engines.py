"""What runs a network, and how long it takes: PyTorch eager on a CPU, ONNX Runtime on a CPU, PyTorch on CUDA.

Latency is of one forward pass in evaluation mode, without gradients, float32, on random images.  Networks are timed in
turn (``timing.benchmark``); a group of many is split so that their weights fit into memory.  Subnormal numbers are
read as zero, because random weights may shrink a signal so far that they, and not the network, set the time.
"""

from __future__ import annotations

import gc
import io
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cnnstudy.config import Refused, choose
from cnnstudy.models.zoo import ZooConfig, zoo
from cnnstudy.probes.attribution import counted
from cnnstudy.runtime import threads as torch_threads
from cnnstudy.timing import benchmark, summary

Runner = Callable[[], Any]
AT_ONCE = 500_000_000  # parameters of networks held at a time: 2 GB of weights, twice that with ONNX Runtime's packing


def eager(model: nn.Module, x: Tensor, threads: int) -> Runner:
    """PyTorch on the CPU, operator by operator.  ``threads`` is set by :func:`latency` around the whole group."""

    def run() -> Tensor:
        with torch.inference_mode():
            out: Tensor = model(x)
        return out

    return run


def onnxruntime(model: nn.Module, x: Tensor, threads: int) -> Runner:
    """ONNX Runtime on the CPU, all graph optimisations, ``threads`` threads within an operator and one between.

    Exported through TorchScript: for convolutional networks the graph is the same as the newer exporter's after
    optimisation, in a tenth of its time.
    """
    import onnxruntime as ort

    graph = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own: deprecation, constant folding
        torch.onnx.export(model, (x,), graph, dynamo=False, opset_version=17)  # type: ignore[arg-type]  # it takes a file, too
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    session = ort.InferenceSession(graph.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, feed)[0]


def cuda(model: nn.Module, x: Tensor, threads: int) -> Runner:
    """PyTorch on the first CUDA device, operator by operator; the weights move there."""
    if not torch.cuda.is_available():
        raise Refused("engine 'cuda' needs a CUDA GPU, and there is none here; the profile standard does without")
    return eager(model.to("cuda"), x.to("cuda"), threads)


ENGINES: dict[str, Callable[[nn.Module, Tensor, int], Runner]] = {"eager": eager, "onnxruntime": onnxruntime, "cuda": cuda}


def runner(engine: str, cfg: ZooConfig, batch: int = 1, threads: int = 1) -> Runner:
    """A function without arguments that runs the network once and gives its logits (batch, 1000)."""
    make = ENGINES[choose("engine", engine, ENGINES)]
    model = zoo(cfg).eval().requires_grad_(False)
    return make(model, torch.randn(batch, 3, cfg.resolution, cfg.resolution), threads)


def portions(networks: Sequence[ZooConfig], most: int = AT_ONCE, seed: int = 0) -> list[list[ZooConfig]]:
    """The networks in random order, cut into portions of at most ``most`` parameters (or of one network).

    The order is random so that a drift of the machine between portions does not fall on one family.
    """
    order = list(networks)
    random.Random(seed).shuffle(order)
    done: list[list[ZooConfig]] = []
    held = most + 1
    for network in order:
        size = counted(network)["params"]
        if held + size > most:
            done.append([])
            held = 0
        done[-1].append(network)
        held += size
    return done


def latency(
    networks: Sequence[ZooConfig], engine: str, batch: int = 1, threads: int = 1, runs: int = 30, seed: int = 0
) -> list[dict[str, Any]]:
    """Milliseconds of a forward pass of each network, interleaved: ``timing.summary`` with the counted costs beside it.

    ``latency_ms`` is the median; ``macs``, ``params``, ``activations`` (per image), ``layers`` and ``memory_mb`` (fp32 weights and
    peak of the activations, counted, 10^6 bytes) are of the same network at the same resolution.
    """
    samples: dict[ZooConfig, list[float]] = {}
    flushed = torch.set_flush_denormal(True)
    try:
        with torch_threads(threads):
            for some in portions(networks, seed=seed):
                cases = {str(i): runner(engine, cfg, batch, threads) for i, cfg in enumerate(some)}
                timed = benchmark(cases, runs=runs, warmup=1, seed=seed, cuda=engine == "cuda")
                samples |= {cfg: timed[str(i)] for i, cfg in enumerate(some)}
                del cases
                gc.collect()
    finally:
        if flushed:
            torch.set_flush_denormal(False)
    results = []
    for cfg in networks:
        costs = counted(cfg)
        done = summary(samples[cfg])
        results.append(
            {
                "latency_ms": done.pop("median_ms"),
                **done,
                **{name: costs[name] for name in ("macs", "params", "activations")},
                "layers": costs["weighted_layers_all"],
                "memory_mb": (4 * costs["params"] + batch * costs["peak_bytes"]) / 1e6,
            }
        )
    return results
