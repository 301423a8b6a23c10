"""The objective of noise-predicting diffusion models (DDPM, arXiv 2006.11239, equation 14)."""

from torch import Tensor

from lightning_styles.diffusion.schedules import per_sample


def denoising_loss(eps_hat: Tensor, eps: Tensor, alpha_bar_t: Tensor, snr_gamma: float | None = None) -> Tensor:
    """Mean of w_t || eps - eps_hat ||^2.

    Args:
        eps_hat: predictions (B, ...).
        eps: noise (B, ...).
        alpha_bar_t: (B,).
        snr_gamma: w_t = min(SNR, gamma) / SNR with SNR = alpha_bar_t / (1 - alpha_bar_t) (Min-SNR, arXiv 2303.09556,
            section 3.4); None is w_t = 1.
    """
    error = (eps_hat - eps).square()
    if snr_gamma is None:
        return error.mean()
    snr = alpha_bar_t / (1 - alpha_bar_t)
    return (per_sample(snr.clamp(max=snr_gamma) / snr, error) * error).mean()
