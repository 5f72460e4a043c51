"""8-bit integers on a CPU: static quantisation with ONNX Runtime, for timing.

One scale per output channel for weights (signed), one per tensor for activations (unsigned): what ONNX Runtime's kernels
are fastest at on processors with VNNI.  Quantised and dequantised values are written into the graph (QDQ).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class _Calibration:
    """The batches on which ONNX Runtime finds the ranges of activations."""

    def __init__(self, name: str, batches: list[Any]) -> None:
        self.name, self.left = name, list(batches)

    def get_next(self) -> dict[str, Any] | None:
        return {self.name: self.left.pop(0)} if self.left else None


def int8(model: nn.Module, x: Tensor, threads: int) -> Callable[[], Any]:
    """A function without arguments that runs ``model`` (in evaluation mode, on the CPU) on the batch ``x`` (N, 3, H, W).

    Returns logits (N, classes) as NumPy array.  Batch norms are folded into convolutions first.  Ranges are calibrated
    on ``x`` alone: enough for timing, not for accuracy.  ``threads``: within an operator.
    """
    import onnxruntime
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        path, folded, small = (Path(folder) / f"{name}.onnx" for name in ("model", "folded", "int8"))
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # advice to do what is done here
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the exporter's own: deprecation, constant folding
                torch.onnx.export(model, (x,), path, dynamo=False, opset_version=17, input_names=["x"])
                quant_pre_process(path, folded, skip_symbolic_shape=True)
                quantize_static(
                    folded, small, _Calibration("x", [x.numpy()]), quant_format=QuantFormat.QDQ, per_channel=True,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
                )  # fmt: skip
        finally:
            logging.disable(before)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(small, options, providers=["CPUExecutionProvider"])
    feed = {"x": x.numpy()}
    return lambda: session.run(None, feed)[0]
