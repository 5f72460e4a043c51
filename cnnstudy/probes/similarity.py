"""How alike the features of two layers are: linear centred kernel alignment (CKA).

Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited" (arXiv:1905.00414).  It compares which *images* two
layers find alike, so layers of different width and map size can be compared, and a rotation or scaling of the features changes nothing.
With fewer images than features the plain formula is near 1 even for noise; this is the unbiased estimator of Song et al. 2012
("Feature Selection via Dependence Maximization", JMLR 13), as Nguyen et al. 2021 use it (arXiv:2010.15327).
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cnnstudy.config import Refused
from cnnstudy.probes.taps import outputs


def gram(features: Tensor) -> Tensor:
    """Gram matrix (N, N) of features (N, ...) of N images, centred, without its diagonal; double precision."""
    flat = features.flatten(1).double()
    flat = flat - flat.mean(0)
    return (flat @ flat.T).fill_diagonal_(0)


def dependence(k: Tensor, m: Tensor) -> float:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion from two Gram matrices (N, N) without diagonals, N at least 4."""
    n = len(k)
    both = (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ m.sum(0)) / (n - 2)
    return float(both) / (n * (n - 3))


def cka(a: Tensor, b: Tensor) -> float:
    """Linear CKA of features (N, ...) and (N, ...) of the same N images: 1 for alike, about 0 for independent ones.

    Raises Refused for different N, for less than four images, and for features that are the same for all images.
    """
    if len(a) != len(b) or len(a) < 4:
        raise Refused(f"features of {len(a)} and of {len(b)} images cannot be compared; valid: equally many, at least 4")
    return _aligned(gram(a), gram(b))


def _aligned(k: Tensor, m: Tensor) -> float:
    own = dependence(k, k) * dependence(m, m)
    if not own > 0:
        raise Refused("features that are alike for all images have no similarity")
    return dependence(k, m) / math.sqrt(own)


@torch.no_grad()
def between_blocks(model: Any, x: Tensor) -> dict[str, Any]:
    """CKA between the outputs of all blocks of ``model`` (which has ``blocks()``) for images ``x`` (N, 3, H, W); evaluation mode, a copy.

    ``matrix``: array (blocks, blocks); ``neighbours``: of each block and the next, a list of blocks - 1.
    """
    net = copy.deepcopy(model).eval()
    named = {str(i): block for i, block in enumerate(net.blocks())}
    with outputs(named) as seen:
        net(x)
    grams = [gram(seen[name]) for name in named]
    matrix = np.array([[_aligned(a, b) for b in grams] for a in grams])
    return {"matrix": matrix, "neighbours": [float(matrix[i, i + 1]) for i in range(len(grams) - 1)]}
