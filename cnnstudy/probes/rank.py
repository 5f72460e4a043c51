"""How many directions the features of a network really use: the participation ratio of their covariance.

With eigenvalues l of the covariance of the channels it is (sum l)^2 / sum l^2: C if all C directions vary alike, 1 if only one does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cnnstudy.config import Refused
from cnnstudy.probes.taps import outputs


def participation_ratio(covariance: Tensor) -> float:
    """(trace)^2 / (squared Frobenius norm) of a symmetric matrix (C, C): between 1 and C; 0 for a matrix of zeros."""
    square = float(covariance.double().square().sum())
    return float(covariance.double().trace()) ** 2 / square if square > 0 else 0.0


class Moments:
    """Mean and covariance of channel vectors, gathered batch by batch in double precision."""

    def __init__(self) -> None:
        self.n = 0
        self.total: Any = 0.0
        self.products: Any = 0.0

    def add(self, features: Tensor) -> None:
        """``features``: (N, C), or maps (N, C, H, W), of which each pixel is a vector of C channels."""
        flat = features.detach().double()
        flat = flat.movedim(1, -1).reshape(-1, features.shape[1]) if flat.dim() > 2 else flat
        self.n += len(flat)
        self.total = self.total + flat.sum(0)
        self.products = self.products + flat.T @ flat

    def covariance(self) -> Tensor:
        """(C, C), with division by the number of vectors.  Raises Refused if fewer than two were added."""
        if self.n < 2:
            raise Refused(f"a covariance needs at least two vectors, got {self.n}")
        mean = self.total / self.n
        covariance: Tensor = self.products / self.n - torch.outer(mean, mean)
        return covariance


@torch.no_grad()
def by_stage(model: nn.Module, x: Tensor, pooled: bool = False, batch: int = 250) -> dict[str, list[float]]:
    """The features at the end of each stage when ``model`` sees ``x`` (N, 3, H, W), evaluation mode.

    A stage is a child of ``model.stages``; each pixel of its output is a vector of C channels (``pooled``: each image, averaged over
    its pixels).  ``rank``: participation ratio; ``width``: C; ``relative``: rank / C; ``normed``: the participation ratio of
    the correlations, in which each channel counts alike whatever its scale.  The model's mode is put back.
    """
    stages: Any = getattr(model, "stages", ())
    if not len(stages):
        raise Refused(f"{type(model).__name__} has no stages to look at")
    named = {str(i): stage for i, stage in enumerate(stages)}
    moments = {name: Moments() for name in named}
    was = model.training
    model.eval()
    try:
        for part in x.split(batch):
            with outputs(named) as seen:
                model(part)
            for name, maps in seen.items():
                moments[name].add(maps.mean((2, 3)) if pooled else maps)
    finally:
        model.train(was)
    found: dict[str, list[float]] = {"rank": [], "width": [], "relative": [], "normed": []}
    for name in named:
        covariance = moments[name].covariance()
        ratio, width = participation_ratio(covariance), len(covariance)
        scale = covariance.diagonal().clamp_min(0).sqrt()
        alive = scale > 1e-12 * max(float(scale.max()), 1e-300)
        inverse = torch.where(alive, 1 / scale.clamp_min(1e-300), torch.zeros_like(scale))
        normed = participation_ratio(covariance * torch.outer(inverse, inverse))
        for key, value in zip(found, (ratio, width, ratio / width, normed), strict=True):
            found[key].append(float(value))
    return found
