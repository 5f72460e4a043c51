"""Participation ratios whose value is known, gathered in batches or at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.models import build
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.probes import rank


def covariance_of(features: np.ndarray) -> np.ndarray:
    """Covariance (C, C) of vectors (N, C), divided by N: the plain formula."""
    centred = features - features.mean(0)
    return np.asarray(centred.T @ centred / len(features))


def of(features: torch.Tensor) -> float:
    seen = rank.Moments()
    seen.add(features)
    return rank.participation_ratio(seen.covariance())


def test_known_spectra() -> None:
    assert rank.participation_ratio(torch.eye(7)) == pytest.approx(7)
    assert rank.participation_ratio(torch.diag(torch.tensor([3.0, 0, 0]))) == pytest.approx(1)
    assert rank.participation_ratio(torch.diag(torch.tensor([2.0, 1.0]))) == pytest.approx(9 / 5)
    assert rank.participation_ratio(torch.zeros(3, 3)) == 0
    q, _ = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    turned = q @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)) @ q.T
    assert rank.participation_ratio(turned) == pytest.approx(7.6**2 / (16 + 4 + 1 + 0.25 + 0.01))


def test_of_vectors_and_of_maps() -> None:
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((4000, 3)) @ rng.standard_normal((3, 8)) + 5.0  # three directions, far from the origin
    values = np.linalg.eigvalsh(covariance_of(mixed))
    assert of(torch.tensor(mixed)) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-9)
    assert 1 < of(torch.tensor(mixed)) <= 3 + 1e-9
    maps = torch.tensor(mixed).view(10, 20, 20, 8).movedim(-1, 1)
    assert of(maps) == pytest.approx(of(torch.tensor(mixed)))


def test_stages_of_a_network_do_not_hang_on_the_batch() -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(depth=14, width=4)).train()
    x = torch.rand(30, 3, 16, 16)
    whole, parts = rank.by_stage(model, x), rank.by_stage(model, x, batch=7)
    assert model.training
    assert whole["width"] == [4, 8, 16]
    for name in whole:
        assert whole[name] == pytest.approx(parts[name], rel=1e-6)
    assert whole["relative"] == pytest.approx([r / w for r, w in zip(whole["rank"], whole["width"], strict=True)])
    assert all(1 <= r <= w for r, w in zip(whole["rank"], whole["width"], strict=True))
    model.eval()
    with torch.no_grad():
        maps = model.stages[0](model.stem(model.normalize(x)))
        assert whole["rank"][0] == pytest.approx(of(maps), rel=1e-6)
        vectors = maps.mean((2, 3)).numpy().astype(float)
    by_hand = rank.participation_ratio(torch.tensor(covariance_of(vectors)))
    assert rank.by_stage(model, x, pooled=True)["rank"][0] == pytest.approx(by_hand, rel=1e-5)
    pixels = maps.movedim(1, -1).reshape(-1, 4).numpy().astype(float)
    correlations = np.corrcoef(pixels.T)
    assert whole["normed"][0] == pytest.approx(16 / (correlations**2).sum(), rel=1e-5)


def test_refusals() -> None:
    with pytest.raises(Refused, match="at least two vectors, got 1"):
        of(torch.zeros(1, 4))
    with pytest.raises(Refused, match="Conv2d has no stages"):
        rank.by_stage(torch.nn.Conv2d(3, 3, 1), torch.zeros(2, 3, 4, 4))
