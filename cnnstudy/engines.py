"""Inference engines: a network and a batch in, a call to be timed out.

``torch`` runs eagerly on this process's device in channels_last; ``onnx`` and ``onnx-int8`` run on the CPU with ONNX
Runtime, the latter after static quantisation with one scale per output channel, unsigned activations and
signed weights (QDQ, U8S8), which is what its kernels for processors with VNNI are fast at.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cnnstudy.config import choose
from cnnstudy.runtime import device

Call = Callable[[], object]


def _torch(model: nn.Module, x: Tensor, threads: int) -> Call:
    where = device() if not threads else torch.device("cpu")  # a number of threads is asked of a processor
    model, x = model.to(where, memory_format=torch.channels_last), x.to(where, memory_format=torch.channels_last)

    def call() -> object:
        with torch.inference_mode():
            return model(x)

    return call


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about its own parts; errors still come through."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _export(model: nn.Module, x: Tensor, path: Path) -> None:
    program = torch.onnx.export(model, (x,), dynamo=True, input_names=["x"], verbose=False)
    assert program is not None
    program.save(path)


class _Calibration:
    """The batches on which ONNX Runtime finds the ranges of activations."""

    def __init__(self, batches: list[Any]) -> None:
        self.left = list(batches)

    def get_next(self) -> dict[str, Any] | None:
        return {"x": self.left.pop(0)} if self.left else None


def _session(path: Path, x: Tensor, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1  # 0: as many as there are cores
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)


def _onnx(model: nn.Module, x: Tensor, threads: int) -> Call:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        with _quiet():
            _export(model, x, path)
        return _session(path, x, threads)


def _onnx_int8(model: nn.Module, x: Tensor, threads: int) -> Call:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        path, folded, small = (Path(folder) / f"{name}.onnx" for name in ("model", "folded", "int8"))
        with _quiet():
            _export(model, x, path)
            quant_pre_process(path, folded, skip_symbolic_shape=True)  # folds batch norms into convolutions
            quantize_static(
                folded, small, _Calibration([x.numpy()]), quant_format=QuantFormat.QDQ, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        return _session(small, x, threads)


ENGINES: dict[str, Callable[[nn.Module, Tensor, int], Call]] = {"torch": _torch, "onnx": _onnx, "onnx-int8": _onnx_int8}


def prepare(model: nn.Module, x: Tensor, engine: str = "torch", threads: int = 0) -> Call:
    """A call that runs ``model`` once on the batch ``x`` (N, 3, H, W), made ready for timing.

    ``engine``: a name in ``ENGINES``.  ``threads``: 0 for all cores; any other number keeps "torch" on the CPU,
    where the caller sets torch's number of threads.  INT8 ranges are calibrated on ``x`` itself: enough for
    timing, not for accuracy.  Raises Refused for an unknown engine.
    """
    return ENGINES[choose("engine", engine, ENGINES)](model.eval(), x, threads)
