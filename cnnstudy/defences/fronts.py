"""Defences that stand before a network that was trained as usual: they throw away detail, and with it, perhaps, the attack.

Used as ``nn.Sequential(BitDepth(), model)``, so that every attack goes through them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cnnstudy.config import Refused


class BitDepth(nn.Module):
    """Rounds pixels in [0, 1] to ``2 ** bits`` levels (feature squeezing, Xu et al. 2018, arXiv:1704.01155).

    The gradient passes as if nothing were rounded: the straight-through estimate that an attack on a step function
    needs (Athalye et al. 2018, arXiv:1802.00420, section 4.1).
    """

    def __init__(self, bits: int = 3) -> None:
        super().__init__()
        if not 1 <= bits <= 8:
            raise Refused(f"bit depth is {bits}; it must lie between 1 and 8")
        self.top = 2**bits - 1

    def forward(self, x: Tensor) -> Tensor:
        return x + (torch.round(x * self.top) / self.top - x).detach()


class Blur(nn.Module):
    """A Gaussian blur of ``sigma`` pixels, edges reflected: what JPEG does to fine detail, differentiable."""

    kernel: Tensor

    def __init__(self, sigma: float = 1.0) -> None:
        super().__init__()
        if not sigma > 0:
            raise Refused(f"blur sigma is {sigma}; it must be above 0 pixels")
        self.reach = max(1, round(2 * sigma))
        line = torch.exp(-0.5 * (torch.arange(-self.reach, self.reach + 1) / sigma) ** 2)
        square = torch.outer(line, line) / line.sum() ** 2
        self.register_buffer("kernel", square.expand(3, 1, -1, -1).clone())

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x, (self.reach,) * 4, mode="reflect")
        return F.conv2d(padded, self.kernel.to(padded.dtype), groups=3)
