"""Does a residual block refine its input or replace it?  Lengths, angles, deletion and swapping, put together for one network."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

from cnnstudy.probes import branches, lesions


def refinement(model: nn.Module, x: Tensor, x_test: Tensor, y_test: Tensor) -> dict[str, Any]:
    """``cosine``: median over blocks of the cosine of input and output (where the shape stays), on images ``x``; as a list ``cosines``.

    With shortcuts besides, of the blocks whose shortcut is the identity: ``ratio`` (median of |F(x)| / |x|) and ``refined_share`` (ratio
    below 1 and cosine above 0.5); of all blocks ``cost``, the median loss of accuracy (0..1) on ``x_test``, ``y_test`` when one is deleted,
    and ``costs``; ``swap``: the median loss when two neighbours change places (None without such a pair); ``ratios``, ``identity``: lists.
    """
    if not any(getattr(block, "shortcut", None) is not None for block in lesions.blocks_of(model)):
        cosines = [c for c in branches.input_output(model, x) if c == c]
        return {"cosine": float(np.median(cosines)), "cosines": cosines}
    table = branches.profile(model, x)
    own = table[table["identity"].astype(bool)]
    cut = lesions.summary(model, x_test, y_test)
    costs = cut["acc"] - cut["without"]
    swap = branches.swaps(model, x_test, y_test)["drop"] / 100
    return {
        "cosine": float(own["cosine_output"].median()),
        "cosines": own["cosine_output"].tolist(),
        "ratio": float(own["ratio"].median()),
        "refined_share": float(((own["ratio"] < 1) & (own["cosine_output"] > 0.5)).mean()),
        "cost": float(np.nanmedian(costs)),
        "costs": costs.tolist(),
        "swap": float(swap.median()) if len(swap) else None,
        "ratios": table["ratio"].tolist(),
        "identity": table["identity"].astype(bool).tolist(),
    }
