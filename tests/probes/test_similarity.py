"""Linear CKA against the mean over quadruples that defines it, and what must not change it."""

from __future__ import annotations

import itertools

import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.models import build
from cnnstudy.models.resnet import ResNetConfig
from cnnstudy.probes import similarity


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1.0


def test_the_estimate_is_the_mean_over_all_quadruples_of_images() -> None:
    a, b = features(6, 3), features(6, 4, seed=1)
    k, m = a @ a.T, b @ b.T  # not centred: the estimate does not hang on that
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in itertools.permutations(range(6), 4)]
    assert similarity.dependence(similarity.gram(a), similarity.gram(b)) == pytest.approx(float(sum(terms)) / len(terms))


def test_noise_in_many_dimensions_is_not_alike() -> None:
    a, b = features(40, 3000), features(40, 3000, seed=1)
    x, y = a - a.mean(0), b - b.mean(0)
    plain = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert plain > 0.9
    assert abs(similarity.cka(a, b)) < 0.1
    b[:, :3] += 30 * a[:, :3]
    assert 0.1 < similarity.cka(a[:, :3], b) < 1


def test_neither_rotation_nor_scale_nor_an_offset_changes_it() -> None:
    a, b = features(40, 5), features(40, 5, seed=1)
    turn, _ = torch.linalg.qr(features(5, 5, seed=2))
    assert similarity.cka(a @ turn, 3 * b - 2) == pytest.approx(similarity.cka(a, b))
    assert similarity.cka(a, -2 * a @ turn + 4) == pytest.approx(1)


def test_blocks_of_a_network() -> None:
    torch.manual_seed(0)
    model = build(ResNetConfig(14, width=4)).train()
    x = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    found = similarity.between_blocks(model, x)
    matrix = found["matrix"]
    assert matrix.shape == (6, 6)
    assert matrix.diagonal() == pytest.approx([1] * 6)
    assert matrix == pytest.approx(matrix.T)
    assert found["neighbours"] == pytest.approx([matrix[i, i + 1] for i in range(5)])
    assert model.training
    net = model.eval()
    with torch.no_grad():
        first = net.stages[0][0](net.stem(net.normalize(x)))
        second = net.stages[0][1](first)
    assert matrix[0, 1] == pytest.approx(similarity.cka(first, second))


def test_refusals() -> None:
    with pytest.raises(Refused, match="features of 4 and of 5 images"):
        similarity.cka(features(4, 2), features(5, 2))
    with pytest.raises(Refused, match="no similarity"):
        similarity.cka(torch.ones(4, 2), features(4, 2))
