"""P-norm+ space: styles in which random ones are normal and independent (II2S, arXiv 2012.09036).

The last activation of the mapping network is undone, and what is then nearly normal is whitened. How unusual a style
is, is its length there. Notation: D length of a style.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.models.stylegan2.generator import Generator
from lightning_styles.models.stylegan2.ops import SLOPE

DRAWS = 100_000  # of z
SMALLEST = 1e-6  # deviation, in units of the largest, of directions that are used


@dataclass
class PNorm:
    """v = C^T (leaky(w) - mean) / deviation, with leaky of slope 1 / 0.2.

    Attributes:
        mean: (D,).
        directions: (D, D), C: column j is principal direction j.
        deviation: (D,), along the directions.
    """

    mean: Tensor
    directions: Tensor
    deviation: Tensor

    def to_v(self, w: Tensor) -> Tensor:
        """v (..., D)."""
        return (F.leaky_relu(w, 1 / SLOPE) - self.mean) @ self.directions / self.deviation

    def to_w(self, v: Tensor) -> Tensor:
        """w (..., D), the inverse of `to_v`."""
        return F.leaky_relu(v * self.deviation @ self.directions.T + self.mean, SLOPE)


def whiten(w: Tensor) -> PNorm:
    """The space in which `w` (N, D) have mean 0 and the covariance of identity."""
    x = F.leaky_relu(w, 1 / SLOPE).cpu().double()  # not every device has float64
    mean = x.mean(0)
    values, directions = torch.linalg.eigh((x - mean).T @ (x - mean) / (len(x) - 1))
    deviation = values.clamp(min=0).sqrt()
    deviation = deviation.clamp(min=SMALLEST * deviation.max())
    return PNorm(*(tensor.to(w.dtype).to(w.device) for tensor in (mean, directions, deviation)))


@torch.no_grad()
def pnorm_space(generator: Generator, random: torch.Generator, count: int = DRAWS) -> PNorm:
    """The space of a generator's own styles, by `count` of them."""
    z = torch.randn(count, generator.style_dim, generator=random)
    return whiten(generator.mapping(z.to(generator.input.input.device)))
