"""Do first-layer filters look like edges or colour blobs?  Two models are fitted to each filter by least squares.

Gabor: one colour times a wave under a Gaussian window (an edge detector; with a wide window an oriented grating).  Blob: one colour times
a Gaussian.  The score is explained variance: the share of the filter's squared weights that the fit reproduces, 0 to 1.  A flexible model
also explains part of pure noise, so a score means something only beside that of untrained filters.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import least_squares
from torch import Tensor

from cnnstudy.config import Refused

STARTS = 2  # the best so many of the coarse grid are refined
PARAMETERS = ("x", "y", "angle", "frequency", "along", "across")  # pixels, radians, cycles per pixel, windows' widths in pixels


def filter_scores(weight: Tensor | np.ndarray) -> dict[str, np.ndarray]:
    """Explained variance of first-layer filters: ``weight`` (filters, colours, k, k), k at least 5.

    ``gabor, blob``: (filters,) each model's; ``score``: the better of the two; ``fit``: (filters, colours, k, k) the better model's filter;
    ``parameters``: (filters, 6) of the Gabor, in the order of PARAMETERS.  A filter of zeros scores 0.
    """
    filters = np.asarray(weight.detach().cpu().numpy() if isinstance(weight, Tensor) else weight, np.float64)
    if filters.ndim != 4 or filters.shape[2] != filters.shape[3] or filters.shape[2] < 5:
        raise Refused(f"filters of shape {filters.shape} cannot be fitted; (filters, colours, k, k) with k of at least 5 is valid")
    k = filters.shape[2]
    found: dict[str, list] = {name: [] for name in ("gabor", "blob", "score", "fit", "parameters")}
    grid = {wave: _grid(k, wave) for wave in (True, False)}
    bases = {wave: np.stack([_basis(p, k, wave) for p in grid[wave]]) for wave in grid}
    for one in filters:
        size = float(np.linalg.norm(one)) or 1.0
        flat = one.reshape(len(one), -1) / size  # so that neither fit nor tolerances depend on the filter's scale
        best: dict[bool, tuple[float, np.ndarray, np.ndarray]] = {}
        for wave in (True, False):
            coarse = np.linalg.norm(flat @ bases[wave], 2, axis=(1, 2))  # largest singular value: the best single colour's share
            refined = [_refine(flat, grid[wave][i], k, wave) for i in np.argsort(-coarse)[:STARTS]]
            best[wave] = max(refined, key=lambda made: made[0])
        better = max(best.values(), key=lambda made: made[0])
        for name, value in (("gabor", best[True][0]), ("blob", best[False][0]), ("score", better[0]), ("parameters", best[True][1])):
            found[name].append(value)
        found["fit"].append(better[2].reshape(one.shape) * size)
    return {name: np.array(values) for name, values in found.items()}


def gabor(k: int, x: float, y: float, angle: float, frequency: float, along: float, across: float, phase: float) -> np.ndarray:
    """A wave under a Gaussian window, (k, k), largest value at most 1.  ``frequency`` 0 and ``phase`` 0 is a blob.

    ``x, y``: the window's centre in pixels from the filter's; ``angle``: direction in which the wave runs; ``along``, ``across``: standard
    deviations of the window along the wave and across it.
    """
    at = np.arange(k) - (k - 1) / 2
    dx, dy = at[None, :] - x, at[:, None] - y
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    return np.exp(-(u**2) / (2 * along**2) - v**2 / (2 * across**2)) * np.cos(2 * np.pi * frequency * u + phase)


def _basis(p: np.ndarray, k: int, wave: bool) -> np.ndarray:
    """(k k, 2 or 1), orthonormal: cosine and sine wave (any phase is a sum of the two), or the blob."""
    x, y, angle, frequency, along, across = p
    phases = (0.0, np.pi / 2) if wave else (0.0,)
    return np.linalg.qr(np.stack([gabor(k, x, y, angle, frequency, along, across, phase).ravel() for phase in phases], 1))[0]


def _fit(flat: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The best filter (colours, k k) of the form colour x pattern, the pattern in the span of ``basis``: a rank-one projection."""
    left, s, right = np.linalg.svd(flat @ basis, full_matrices=False)
    return s[0] * np.outer(left[:, 0], right[0] @ basis.T)


def _grid(k: int, wave: bool) -> list[np.ndarray]:
    """Starting points over place, angle, frequency and size."""
    places = (-(k - 1) / 4, 0.0, (k - 1) / 4)
    frequencies = (0.6 / k, 1 / k, 1.5 / k, 0.3, 0.42) if wave else (0.0,)
    angles = np.arange(8) * np.pi / 8 if wave else np.arange(4) * np.pi / 4
    sizes = [(k / 6, k / 6), (k / 4, k / 4), (k / 6, k / 2)] + ([(float(k), float(k))] if wave else [])
    return [np.array([x, y, angle, f, *size]) for x in places for y in places for angle in angles for f in frequencies for size in sizes]


def _refine(flat: np.ndarray, start: np.ndarray, k: int, wave: bool) -> tuple[float, np.ndarray, np.ndarray]:
    """Explained share, parameters and fit after least squares from ``start``; colour and phase are solved for exactly at each step."""
    reach = (k - 1) / 2
    low = np.array([-reach, -reach, -np.pi, 0.25 / k, 0.75, 0.75])
    high = np.array([reach, reach, 2 * np.pi, 0.5, 2.0 * k, 2.0 * k])
    free = np.array([True, True, True, wave, True, True])

    def whole(part: np.ndarray) -> np.ndarray:
        p = start.copy()
        p[free] = part
        return p

    def residual(part: np.ndarray) -> np.ndarray:
        return (flat - _fit(flat, _basis(whole(part), k, wave))).ravel()

    done = least_squares(
        residual, np.clip(start[free], low[free], high[free]), bounds=(low[free], high[free]), ftol=1e-5, xtol=1e-5, max_nfev=20
    )
    share = max(float((flat**2).sum()) - 2 * done.cost, 0.0)
    return share, whole(done.x), _fit(flat, _basis(whole(done.x), k, wave))
