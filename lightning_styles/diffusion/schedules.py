"""Noise schedules of latent diffusion models, and what score distillation reads from them.

Notation: B batch, T training timesteps (1000), L inference steps, beta_t, alpha_t = 1 - beta_t,
alpha_bar_t = prod_{s <= t} alpha_s. Timesteps are (B,) integer tensors, one for each sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_styles.errors import UserError


def per_sample(w: Tensor, z: Tensor) -> Tensor:
    """Give a weight w (B,) the shape (B, 1, ..., 1), so that it multiplies z (B, ...) sample by sample."""
    return w.reshape(-1, *[1] * (z.ndim - 1)).to(z.dtype)


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Forward process z_t = sqrt(alpha_bar_t) z + sqrt(1 - alpha_bar_t) eps (DDPM, arXiv 2006.11239, eq. 4).

    Attributes:
        betas: (T,) float32.
        alphas_cumprod: (T,) float32, alpha_bar_t.
        final_alpha_bar: (1,) float32, alpha_bar of every timestep below zero.
        steps_offset: added to every timestep of an inference grid.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    final_alpha_bar: Tensor
    steps_offset: int = 1

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "NoiseSchedule":
        """Build the schedule from a diffusers scheduler config (`scheduler/scheduler_config.json`).

        Args:
            config: reads num_train_timesteps, beta_schedule, beta_start, beta_end, set_alpha_to_one,
                steps_offset.

        Raises:
            UserError: another beta schedule than "linear" or "scaled_linear", or a model that does not
                predict eps.
        """
        kind, T = config.get("beta_schedule", "linear"), config.get("num_train_timesteps", 1000)
        start, end = config.get("beta_start", 0.0001), config.get("beta_end", 0.02)
        prediction = config.get("prediction_type", "epsilon")
        if prediction != "epsilon":
            raise UserError(
                f"the scheduler config says prediction_type={prediction!r}, expected a model that predicts "
                "epsilon; choose another base model, for example Stable Diffusion 1.5"
            )
        if kind == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, T, dtype=torch.float32) ** 2
        elif kind == "linear":
            betas = torch.linspace(start, end, T, dtype=torch.float32)
        else:
            raise UserError(f"beta_schedule={kind!r} in the scheduler config, expected 'linear' or 'scaled_linear'")
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        final = torch.ones(1) if config.get("set_alpha_to_one", True) else alphas_cumprod[:1].clone()
        return cls(betas, alphas_cumprod, final, config.get("steps_offset", 0))

    @property
    def T(self) -> int:
        """Number of training timesteps."""
        return len(self.betas)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """The same schedule with its tables on `device`."""
        tables = {k: getattr(self, k).to(device) for k in ("betas", "alphas_cumprod", "final_alpha_bar")}
        return replace(self, **tables)

    def beta(self, t: Tensor) -> Tensor:
        """beta_t of the single training step t: (B,)."""
        return self.betas[t]

    def alpha_bar(self, t: Tensor) -> Tensor:
        """alpha_bar_t: (B,), `final_alpha_bar` where t < 0."""
        return torch.where(t >= 0, self.alphas_cumprod[t.clamp(min=0)], self.final_alpha_bar)

    def add_noise(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """z_t for clean z (B, ...), noise eps of the same shape and t (B,)."""
        alpha_bar_t = self.alpha_bar(t)
        return per_sample(alpha_bar_t.sqrt(), z) * z + per_sample((1 - alpha_bar_t).sqrt(), z) * eps

    def posterior_variance(self, t: Tensor, t_prev: Tensor) -> Tensor:
        """w_t = beta_t (1 - alpha_bar_{t_prev}) / (1 - alpha_bar_t): (B,) (arXiv 2006.11239, eq. 7).

        As in the official code of SMS, beta_t is that of the single training step t while t_prev lies one
        step of the inference grid back (t - 2 for L = 500). This is the weight w_t of SMS and VSD.
        """
        return self.beta(t) * (1 - self.alpha_bar(t_prev)) / (1 - self.alpha_bar(t))

    def grid(self, L: int) -> Tensor:
        """Ascending timesteps idx * (T // L) + steps_offset: (L,) ("leading" spacing)."""
        if not 1 <= L <= self.T:
            raise UserError(f"{L} inference steps asked for, the schedule has 1 to {self.T}")
        return torch.arange(L, device=self.betas.device) * (self.T // L) + self.steps_offset

    def ddim_timesteps(self, n: int) -> list[tuple[int, int]]:
        """The n pairs (t, t_prev) of a DDIM sampler in sampling order; the last t_prev may lie below zero."""
        return [(t, t - self.T // n) for t in self.grid(n).flip(0).tolist()]

    def ddim_step(self, z_t: Tensor, eps: Tensor, t: Tensor, t_prev: Tensor) -> Tensor:
        """Deterministic step z_t -> z_{t_prev} for the prediction eps (DDIM, arXiv 2010.02502, eq. 12)."""
        a, a_prev = self.alpha_bar(t), self.alpha_bar(t_prev)
        z_0 = (z_t - per_sample((1 - a).sqrt(), z_t) * eps) / per_sample(a.sqrt(), z_t)
        return per_sample(a_prev.sqrt(), z_t) * z_0 + per_sample((1 - a_prev).sqrt(), z_t) * eps
