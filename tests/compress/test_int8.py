"""Quantised networks compute nearly the same function, and leave the original as it was."""

from __future__ import annotations

import torch
from torch import nn

from cnnstudy.compress.int8 import int8


def test_int8_nearly_agrees_with_torch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    ).eval()
    x = torch.rand(2, 3, 32, 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = model(x)
    gap = (torch.from_numpy(int8(model, x, 1)()) - expected).abs().max()
    assert 0 < gap < 0.1 * expected.abs().max()  # other arithmetic, the same function
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
