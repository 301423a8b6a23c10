"""Score distillation on latents, with gradients in closed form: nothing here needs autograd through a UNet.

Notation: z (B, C, h, w) latents, eps the drawn noise, eps_style / eps_fake / eps_tgt / eps_src predictions
after classifier-free guidance (same shape), R the relevance map (B, 1, h, w), g the distillation gradient.
Weights such as w_t, alpha_bar_t, beta_t are (B,), one for each sample. The optimiser descends along -g.

Every g becomes a loss through 0.5 ||z - stopgrad(z - g)||^2, whose gradient is g itself: `style_loss`.
"""

from typing import Literal

import torch
from torch import Tensor

from lightning_styles.diffusion.schedules import per_sample

FakeWeight = Literal["alpha_bar_squared", "none"]


def cfg(eps_cond: Tensor, eps_uncond: Tensor, guidance: float) -> Tensor:
    """Guided prediction eps_uncond + s (eps_cond - eps_uncond) (arXiv 2207.12598, eq. 6 with s = 1 + w)."""
    return eps_uncond + guidance * (eps_cond - eps_uncond)


def vsd_gradient(eps_style: Tensor, eps_fake: Tensor, w_t: Tensor) -> Tensor:
    """g = w_t (eps_style - eps_fake) (VSD, arXiv 2305.16213, eq. 9; SMS, arXiv 2503.07601).

    SMS matches the style model's score with the same g and then weighs it by R. The official code takes the
    posterior variance for w_t (`NoiseSchedule.posterior_variance`); the papers leave w_t open.
    """
    return per_sample(w_t, eps_style) * (eps_style - eps_fake)


def sds_gradient(eps_tgt: Tensor, eps: Tensor, alpha_bar_t: Tensor) -> Tensor:
    """g = (1 - alpha_bar_t) (eps_tgt - eps) (SDS, arXiv 2209.14988, eq. 3, w(t) = sigma_t^2)."""
    return per_sample(1 - alpha_bar_t, eps) * (eps_tgt - eps)


def dds_gradient(eps_tgt: Tensor, eps_src: Tensor) -> Tensor:
    """g = eps_tgt - eps_src for the same eps and t, without a weight (DDS, arXiv 2304.07090, eq. 3)."""
    return eps_tgt - eps_src


def pds_gradient(
    z_tgt: Tensor,
    z_src: Tensor,
    eps_tgt: Tensor,
    eps_src: Tensor,
    beta_t: Tensor,
    alpha_bar_t: Tensor,
    alpha_bar_prev: Tensor,
) -> Tensor:
    """g = zeta_tgt - zeta_src, the difference of the stochastic latents (PDS, arXiv 2311.13831, section 4).

    zeta = (x_prev - mu) / sigma_t with mu the mean of q(x_prev | x_t, x_0 hat). The noise at t and the
    independent noise at t_prev are shared by both branches and cancel, so neither is an argument; what is
    left is a pull towards the source and the difference of the predictions. As in the official code beta_t
    is that of the single training step while t_prev lies one step of the inference grid back. The two
    coefficients nearly cancel: they are float64, on the CPU, for Apple's GPUs have none.
    """
    beta, a, a_prev = (table.cpu().double() for table in (beta_t, alpha_bar_t, alpha_bar_prev))
    sigma = (beta * (1 - a_prev) / (1 - a)).sqrt()
    of_x0 = a_prev.sqrt() * beta / (1 - a)  # mu = of_x0 * x_0 hat + of_xt * x_t
    of_xt = (1 - beta).sqrt() * (1 - a_prev) / (1 - a)
    of_z = (a_prev.sqrt() - of_x0 - of_xt * a.sqrt()) / sigma
    of_eps = of_x0 * ((1 - a) / a).sqrt() / sigma
    pull, change = (per_sample(weight, z_tgt).to(z_tgt.device) for weight in (of_z, of_eps))
    return pull * (z_tgt - z_src) + change * (eps_tgt - eps_src)


def relevance_map(eps_edit: Tensor, eps_null: Tensor) -> Tensor:
    """R: where the edit prompt changes the real model's prediction on z_t^src (SMS, arXiv 2503.07601).

    m = |mean over channels of (eps_edit - eps_null)| - the mean comes first, then the absolute value -
    scaled to [0, 1] by minimum and maximum of each sample; all ones where a map is flat. No guidance enters.

    Args:
        eps_edit: (B, C, h, w) prediction for the edit prompt.
        eps_null: (B, C, h, w) prediction for the empty prompt.

    Returns:
        (B, 1, h, w) in [0, 1].
    """
    m = (eps_edit - eps_null).mean(dim=1, keepdim=True).abs()
    low, high = m.amin(dim=(1, 2, 3), keepdim=True), m.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(high == low, 1.0, (m - low) / (high - low))  # NaN in a prediction stays NaN


def style_loss(g: Tensor, R: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """L = 0.5 mean (R g)^2 of each sample, and its gradient R g / numel (SMS, arXiv 2503.07601).

    R = 1 gives VSD, SDS, DDS and PDS. numel counts the elements of one sample. The mean matters: R g / numel
    is of the order of Adam's eps, so a sum, or a further mean over the batch, changes the size of the steps.

    As in the official code, NaN in g moves nothing; but the value is NaN then, by which a run notices it.

    Returns:
        The value (B,) and its gradient with respect to z_tgt (B, C, h, w).
    """
    return 0.5 * (R * g).square().flatten(1).mean(1), R * torch.nan_to_num(g, nan=0.0) / g[0].numel()


def fake_score_loss(
    eps_fake: Tensor, eps: Tensor, alpha_bar_t: Tensor, weight: FakeWeight = "alpha_bar_squared"
) -> Tensor:
    """Denoising loss mean (eps_fake - eps)^2 of the fake score: (B,) (SMS, arXiv 2503.07601, Alg. 1).

    "alpha_bar_squared" (default) is the official code, which multiplies both terms by alpha_bar_t and
    to whose learning rate it belongs; "none" is the paper. eps_fake is the conditional prediction alone,
    without guidance.
    """
    loss = (eps_fake - eps).square().flatten(1).mean(1)
    return alpha_bar_t.square() * loss if weight == "alpha_bar_squared" else loss
