"""Engines: the same numbers from every one, and a refusal of unknown names."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.engines import prepare


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    ).eval()


@pytest.mark.slow
def test_onnx_agrees_with_torch_and_int8_nearly() -> None:
    x = torch.rand(2, 3, 32, 32)
    expected = prepare(small(), x, "torch", 1)()
    (exact,) = prepare(small(), x, "onnx", 1)()  # type: ignore[misc]
    (rounded,) = prepare(small(), x, "onnx-int8", 1)()  # type: ignore[misc]
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(torch.from_numpy(exact), expected, rtol=1e-4, atol=1e-5)
    gap = (torch.from_numpy(rounded) - expected).abs().max()
    assert 0 < gap < 0.1 * expected.abs().max()  # not the same arithmetic, but the same function


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(Refused, match="unknown engine 'tensorrt'.*torch"):
        prepare(small(), torch.rand(1, 3, 8, 8), "tensorrt")
