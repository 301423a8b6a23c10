"""The noise-predicting objective, by hand."""

import pytest
import torch

from lightning_styles.losses.denoising import denoising_loss


def test_min_snr_weighs_each_sample_by_its_own_timestep() -> None:
    eps_hat, eps = torch.tensor([[3.0, 1.0], [0.0, 4.0]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    alpha_bar_t = torch.tensor([0.5, 0.9])  # SNR 1 and 9
    assert denoising_loss(eps_hat, eps, alpha_bar_t).item() == pytest.approx((4 + 0 + 1 + 9) / 4)
    assert denoising_loss(eps_hat, eps, alpha_bar_t, 5.0).item() == pytest.approx((4 + 0 + (1 + 9) * 5 / 9) / 4)
