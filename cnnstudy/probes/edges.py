"""Do trained first-layer filters look more like edges and blobs than untrained ones?  Scores of gabors, with an interval over filters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from cnnstudy.probes.gabors import filter_scores

RESAMPLES = 2000


def compare(trained: Tensor, untrained: Tensor, most: int, seed: int = 0) -> dict[str, Any]:
    """Explained variance (``probes.gabors``) of the first ``most`` filters, (F, 3, k, k) both, before and after training.

    ``median, median_low, median_high``: trained, with a 95 % bootstrap interval over filters; ``untrained_median``;
    ``gain, gain_low, gain_high``: difference of the medians.  Arrays: ``score, untrained_score`` (F,), ``filters, fit`` (F, 3, k, k).
    """
    after, before = filter_scores(trained[:most]), filter_scores(untrained[:most])
    a, b = after["score"], before["score"]
    median = _interval([a], lambda x: float(np.median(x)), seed)
    gain = _interval([a, b], lambda x, y: float(np.median(x) - np.median(y)), seed)
    return {
        "median": median[0], "median_low": median[1], "median_high": median[2], "untrained_median": float(np.median(b)),
        "gain": gain[0], "gain_low": gain[1], "gain_high": gain[2], "score": a, "untrained_score": b,
        "filters": trained[:most].detach().cpu().numpy(), "fit": after["fit"].astype(np.float32),
    }  # fmt: skip


def _interval(samples: list[np.ndarray], of: Callable[..., float], seed: int) -> tuple[float, float, float]:
    """The statistic, and its percentile interval (95 %) over resamples of each sample."""
    rng = np.random.default_rng(seed)
    drawn = [of(*(rng.choice(s, len(s)) for s in samples)) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return of(*samples), float(low), float(high)
