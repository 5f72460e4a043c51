"""The Square attack (Andriushchenko et al. 2020, arXiv:1912.00049): random search on the logits, no gradient.

It sees only the answers, so a network that hides its gradient gains nothing: the check against gradient masking.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cnnstudy.attacks.ball import LOW_SHARE, AttackConfig, check, margin, project, radius
from cnnstudy.attacks.target import Target

FIRST_SHARE = 0.8  # of the pixels that the first square covers (the value of AutoAttack, Croce & Hein 2020)
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: where the share is halved


def side(query: int, queries: int, height: int, width: int) -> int:
    """Side of the square of query ``query`` out of ``queries``, in pixels: the paper's schedule for this budget."""
    share = FIRST_SHARE / 2 ** sum(query / queries * 10_000 > mark for mark in HALVINGS)
    return min(max(round(math.sqrt(share * height * width)), 1), height, width)


def square(model: nn.Module, x: Tensor, y: Tensor, cfg: AttackConfig) -> Tensor:
    """The best images found in ``cfg.queries`` queries, (N, C, H, W) inside the ball and [0, 1]."""
    check(x, y)
    return roam(Target(model, x, y, cfg), x, y, radius(cfg.eps, x))[0]


def roam(target: Target, x: Tensor, y: Tensor, ball: Tensor) -> tuple[Tensor, Tensor]:
    """Random search; the points, like ``x``, and which are fooled, (N,) bool.  Fooled images are left out at once.

    Each query puts one square of a random sign per colour into each image and keeps it where the margin grew.
    """
    cfg = target.cfg
    count, colours, height, width = x.shape
    generator = torch.Generator().manual_seed(cfg.seed)
    done = target.fooled(x, y)
    points, places = x.clone(), (~done).nonzero().squeeze(1)
    if not len(places) or not cfg.queries:
        return points, done

    def signs(*shape: int) -> Tensor:
        """Random -1 or 1 for all images, then those in play, so that leaving one out changes nothing for the others."""
        return (torch.randint(0, 2, (count, *shape), generator=generator).float() * 2 - 1).to(x.device)[places]

    low_until = int(LOW_SHARE * cfg.queries) if cfg.precision == "bf16" else 0
    x, y, ball = x[places], y[places], ball[places]
    best = project(x + ball * signs(colours, 1, width), x, ball)  # the first query: vertical stripes (paper, sec. 4.3)
    score = margin(target.logits(best, low=low_until > 0), y)
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    for query in range(cfg.queries):
        hit = (score >= 0).nonzero().squeeze(1)
        sure = hit[target.fooled(best[hit], y[hit])]
        if len(sure):
            points[places[sure]], done[places[sure]] = best[sure], True
            keep = torch.ones_like(y, dtype=torch.bool)
            keep[sure] = False
            places, x, y, ball, best, score = (t[keep] for t in (places, x, y, ball, best, score))
        if not len(places) or query == cfg.queries - 1:
            break
        if query == low_until > 0:
            score = margin(target.logits(best), y)  # from here on the comparison is in float32
        edge = side(query, cfg.queries, height, width)
        top = torch.randint(0, height - edge + 1, (count, 1), generator=generator).to(x.device)[places]
        left = torch.randint(0, width - edge + 1, (count, 1), generator=generator).to(x.device)[places]
        inside = ((rows >= top) & (rows < top + edge))[:, None, :, None] & ((columns >= left) & (columns < left + edge))[:, None, None, :]
        tried = project(best + 2 * ball * signs(colours, 1, 1) * inside, x, ball)
        answer = margin(target.logits(tried, low=query < low_until), y)
        better = answer > score
        best = torch.where(better[:, None, None, None], tried, best)
        score = torch.where(better, answer, score)
    points[places] = best
    return points, done
