"""Linear probes against problems whose answer is known, and classes that are held back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cnnstudy.config import Refused
from cnnstudy.data import CifarConfig, Data, load
from cnnstudy.probes.transfer import features, halves, linear_probe, only, probes

NET = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def test_the_halves_share_no_class_and_miss_no_image() -> None:
    data = load(CifarConfig(train=100, test=50))
    known, new = halves(data)
    assert len(known.x_train) + len(new.x_train) == 100 and len(known.x_test) == len(new.x_test) == 25
    assert torch.equal(known.x_train, data.x_train[data.y_train % 2 == 0])
    assert torch.equal(new.y_test, data.y_test[data.y_test % 2 == 1] // 2)
    with pytest.raises(Refused, match="class 10"):
        only(data, [0, 10])


def test_a_probe_finds_what_is_linear_and_nothing_where_there_is_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 8, generator=generator)
    y = (x @ torch.randn(8, 3, generator=generator)).argmax(1)
    assert linear_probe(x[:400], y[:400], x[400:], y[400:]) > 0.9
    chance = linear_probe(x[:400], torch.randint(3, (400,), generator=generator), x[400:], torch.randint(3, (200,), generator=generator))
    assert 0.2 < chance < 0.46
    assert linear_probe(x[:400] * 9 + 1e3, y[:400], x[400:] * 9 + 1e3, y[400:]) > 0.9  # scale and offset do not matter


def test_features_are_the_mean_of_the_map_in_evaluation_mode() -> None:
    x = torch.rand(7, 3, 8, 8)
    NET.train()
    assert torch.allclose(features(NET, x, "0", batch=3), NET[0](x).mean((2, 3)), atol=1e-6)
    assert NET.training
    with pytest.raises(Refused, match="no module 'ten'"):
        features(NET, x, "ten")


def test_probes_leave_the_network_alone() -> None:
    data = Data(torch.rand(40, 3, 8, 8), torch.arange(40) % 5, torch.rand(20, 3, 8, 8), torch.arange(20) % 5)
    before = [p.clone() for p in NET.parameters()]
    found = probes(NET, data, ["0", "2"])
    assert set(found) == {"0", "2"} and all(0 <= v <= 1 for v in found.values())
    assert all(torch.equal(a, b) for a, b in zip(before, NET.parameters(), strict=True))
