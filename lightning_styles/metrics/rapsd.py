"""Radially averaged power spectral density (RAPSD) of pictures: how much fine detail a style has.

Notation: B pictures, H W pixels, f frequency in cycles per pixel, K rings of equal width up to 0.5.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_styles.errors import UserError
from lightning_styles.metrics.pictures import check_pictures

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def rapsd(images: Tensor, rings: int | None = None) -> tuple[Tensor, Tensor]:
    """Power of grayscale pictures by frequency (SMS, arXiv 2503.07601, supplement C): |FFT|^2 / (H W), ring by ring.

    White noise of variance v has power v at every frequency.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        rings: K, at most min(H, W) / 2, which is the default: rings of integer radius in a square picture.

    Returns:
        Frequencies (K + 1,) in cycles per pixel, 0 to 0.5, and power (B, K + 1).

    Raises:
        UserError: the pictures are too small for so many rings, or no pictures in [-1, 1].
    """
    check_pictures("spectrum", images)
    height, width = images.shape[-2:]
    finest = min(height, width) // 2
    rings = finest if rings is None else rings
    if not 1 <= rings <= finest:
        raise UserError(f"{rings} rings of frequencies need pictures of {2 * rings} pixels, not {height} x {width}.")
    gray = torch.einsum("bchw,c->bhw", images.float(), torch.tensor(LUMA, device=images.device))
    power = torch.fft.fft2(gray).abs().square() / (height * width)
    f_y, f_x = (torch.fft.fftfreq(n, device=images.device) for n in (height, width))
    ring = (torch.hypot(f_y[:, None], f_x) * 2 * rings).round().long().flatten()
    ring = ring.clamp(max=rings + 1)  # one more for the corners of the square, beyond 0.5 cycles per pixel
    with_count = torch.cat([power.flatten(1), power.new_ones(1, height * width)])
    total = power.new_zeros(len(with_count), rings + 2).index_add_(1, ring, with_count)[:, :-1]
    frequencies = torch.linspace(0, 0.5, rings + 1, device=images.device)
    return frequencies, total[:-1] / total[-1]


class RadialSpectrum(Metric):
    """Mean of `rapsd` over a set of pictures of any sizes.

    Args:
        rings: K, the same for all pictures; they must have at least 2 K pixels each way.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, rings: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rings = rings
        self.add_state("total", torch.zeros(rings + 1), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Add `images` (B, 3, H, W) in [-1, 1]."""
        self.total += rapsd(images, self.rings)[1].sum(0)
        self.count += len(images)

    def compute(self) -> Tensor:
        """Mean power (K + 1,)."""
        return self.total / self.count


def spectrum_distance(p: Tensor, q: Tensor) -> Tensor:
    """Mean absolute difference of two spectra in decades, without the constant part: mean |log10 p - log10 q|."""
    p, q = (spectrum[1:].clamp(min=1e-12).log10() for spectrum in (p, q))
    return (p - q).abs().mean()
