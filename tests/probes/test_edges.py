"""Scores of first-layer filters beside those of untrained ones."""

from __future__ import annotations

import numpy as np
import torch

from cnnstudy.probes.edges import compare
from cnnstudy.probes.gabors import gabor


def test_gabors_beat_noise_and_noise_does_not_beat_noise() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4, 3, 7, 7))
    edge = np.stack([gabor(7, 0, 0, angle, 0.2, 2, 2, 0.5) for angle in (0, 0.8, 1.6, 2.4)])[:, None].repeat(3, 1)
    found = compare(torch.tensor(edge + 0.1 * noise), torch.tensor(noise), most=4)
    assert found["median"] > 0.8 > found["untrained_median"] and 0 < found["gain_low"] <= found["gain"] <= found["gain_high"]
    assert found["median_low"] <= found["median"] <= found["median_high"] and found["filters"].shape == (4, 3, 7, 7)
    same = compare(torch.tensor(noise), torch.tensor(noise), most=3)
    assert same["gain"] == 0 and same["gain_low"] <= 0 and same["score"].shape == (3,)
