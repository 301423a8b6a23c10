"""Radially averaged power spectra."""

import math

import pytest
import torch

from lightning_styles.errors import UserError
from lightning_styles.metrics.rapsd import RadialSpectrum, rapsd, spectrum_distance


def test_white_noise_is_flat_at_its_variance() -> None:
    gray = (torch.rand(200, 1, 32, 32) * 2 - 1).expand(-1, 3, -1, -1)
    frequencies, power = rapsd(gray)
    assert frequencies.tolist() == pytest.approx([k / 32 for k in range(17)])
    assert power.shape == (200, 17)
    assert torch.allclose(power.mean(0)[1:], torch.tensor(1 / 3), rtol=0.15)


def test_a_sinusoid_is_one_peak() -> None:
    wave = 0.8 * torch.cos(2 * math.pi * 6 * torch.arange(32) / 32)
    frequencies, power = rapsd(wave.expand(1, 3, 32, 32))
    assert frequencies[power[0].argmax()] == 6 / 32
    f = torch.fft.fftfreq(32) * 32
    ring = torch.hypot(f[:, None], f).round()
    # a cosine of amplitude a has |F| = a N^2 / 2 at two places
    assert power[0, 6].item() == pytest.approx(2 * (0.8 * 16 * 32) ** 2 / 32**2 / (ring == 6).sum().item(), rel=1e-4)
    assert power[0].sum() == pytest.approx(power[0, 6].item(), rel=1e-4)


def test_power_of_all_rings_is_parsevals_for_a_band_limited_picture() -> None:
    x = 0.5 * torch.rand(1, 3, 16, 24)
    f_y, f_x = torch.fft.fftfreq(16), torch.fft.fftfreq(24)
    radius = torch.hypot(f_y[:, None], f_x)
    low = torch.fft.ifft2(torch.fft.fft2(x) * (radius < 0.45)).real
    _, power = rapsd(low)
    count = (radius * 16).round().long().flatten().bincount()[:9]
    gray = torch.einsum("bchw,c->bhw", low, torch.tensor([0.299, 0.587, 0.114]))
    assert (power[0] * count).sum().item() == pytest.approx(gray.square().sum().item(), rel=1e-4)


def test_rings_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="16 rings of frequencies need pictures of 32 pixels, not 40 x 20"):
        rapsd(torch.zeros(1, 3, 40, 20), rings=16)


def test_spectrum_of_pictures_of_two_sizes_and_its_distance() -> None:
    metric = RadialSpectrum(4)
    x, y = torch.rand(2, 3, 16, 16), torch.rand(1, 3, 8, 24)
    metric.update(x)
    metric.update(y)
    expected = torch.cat([rapsd(x, 4)[1], rapsd(y, 4)[1]]).mean(0)
    assert torch.allclose(metric.compute(), expected)
    assert spectrum_distance(expected, expected) == 0
    assert spectrum_distance(100 * expected, expected) == pytest.approx(2, rel=1e-5)
