"""Gabor and blob fits on patterns that are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cnnstudy.config import Refused
from cnnstudy.probes.gabors import PARAMETERS, filter_scores, gabor

GREEN, YELLOW = np.array([0.1, 1.0, -0.3]), np.array([0.7, 0.6, -0.9])


def coloured(pattern: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return colour[:, None, None] * pattern


def test_synthetic_filters_are_found() -> None:
    edge = coloured(gabor(7, 0.4, -0.7, 0.5, 0.21, 1.6, 2.2, 1.1), GREEN)
    grating = coloured(gabor(7, 0.0, 0.0, 2.0, 0.3, 12.0, 12.0, 0.3), YELLOW)
    blob = coloured(gabor(7, -0.5, 1.0, 0.0, 0.0, 1.7, 1.7, 0.0), YELLOW)
    found = filter_scores(np.stack([edge, grating, blob]))
    assert found["gabor"][:2] == pytest.approx([1, 1], abs=1e-3)
    assert found["blob"][2] == pytest.approx(1, abs=1e-3)
    assert (found["blob"][:2] < 0.6).all()  # a blob is no edge
    assert found["score"] == pytest.approx(np.maximum(found["gabor"], found["blob"]))
    assert found["fit"] == pytest.approx(np.stack([edge, grating, blob]), abs=0.05)
    x, y, angle, frequency, along, across = found["parameters"][0]
    assert (x, y, frequency, along, across) == pytest.approx((0.4, -0.7, 0.21, 1.6, 2.2), abs=0.05)
    assert np.sin(angle - 0.5) == pytest.approx(0, abs=0.02)
    assert found["parameters"].shape == (3, len(PARAMETERS))


def test_noise_scores_far_lower_and_noise_on_a_gabor_costs_its_share() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, 3, 7, 7))
    pattern = coloured(gabor(7, 0.0, 0.5, 1.0, 0.2, 2.0, 2.0, 0.0), GREEN)
    pattern /= np.sqrt((pattern**2).mean())
    found = filter_scores(torch.from_numpy(np.concatenate([noise, (pattern + 0.5 * noise[0])[None]])).float())
    assert (found["score"][:3] < 0.45).all() and (found["score"][:3] > 0.05).all()
    assert found["score"][3] == pytest.approx(1 / 1.25, abs=0.08)  # the pattern's share of the energy


def test_the_score_does_not_depend_on_scale_and_sign() -> None:
    one = np.random.default_rng(1).normal(size=(1, 3, 5, 5))
    scores = filter_scores(np.concatenate([one, -one, 1e-4 * one]))["score"]
    assert scores == pytest.approx(np.full(3, scores[0]), abs=1e-3)
    assert filter_scores(np.zeros((1, 3, 5, 5)))["score"] == [0]


def test_refuses_what_is_no_bank_of_filters() -> None:
    for shape in ((3, 7, 7), (4, 3, 3, 3), (4, 3, 7, 5)):
        with pytest.raises(Refused, match="cannot be fitted"):
            filter_scores(np.zeros(shape))
