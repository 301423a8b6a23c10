"""Train the pixel diffusion model of a domain: P2 weighting (arXiv 2204.00227) and learned variances (2102.09672)."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles.diffusion.ancestral import ancestral_sample
from lightning_styles.diffusion.respacing import Respaced, linear_betas, sectioned_timesteps
from lightning_styles.diffusion.schedules import per_sample
from lightning_styles.models.guided_unet import GuidedConfig, GuidedUNet
from lightning_styles.pretrained.architecture import from_json
from lightning_styles.pretrained.diffae import load_guided_unet, save_guided_unet
from lightning_styles.pretraining.base import Pretraining


def p2_weight(alpha_bar: Tensor, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """1 / (k + SNR)^gamma with SNR = alpha_bar / (1 - alpha_bar) (arXiv 2204.00227, section 3.2): less for small t."""
    return (k + alpha_bar / (1 - alpha_bar)) ** -gamma


def variance_bound(process: Respaced, t: Tensor, x_0: Tensor, x_0_hat: Tensor, v: Tensor) -> Tensor:
    """KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) in nats per dimension, for the variances that v interpolates.

    From arXiv 2102.09672, equations 4 and 15. Both means are posterior means, of x_0 and of its prediction. q has no
    variance at t = 0; that of t = 1 stands in.

    Args:
        process: all T training timesteps.
        t: (B,) timesteps.
        x_0: (B, C, H, W).
        x_0_hat: predicted x_0; no gradient is meant to reach it.
        v: (B, C, H, W), in [-1, 1] between the smallest and the largest variance.
    """
    a, a_prev, beta = process.alpha_bar, process.alpha_bar_prev, process.betas
    smallest = (beta * (1 - a_prev) / (1 - a)).clone()
    smallest[0] = smallest[1]
    low, high = (per_sample(table.log().float().to(x_0.device)[t], x_0) for table in (smallest, beta))
    pull = per_sample((beta * a_prev.sqrt() / (1 - a)).float().to(x_0.device)[t], x_0)
    log_variance = (v + 1) / 2 * high + (1 - v) / 2 * low
    distance = (pull * (x_0 - x_0_hat)).square()
    return (log_variance - low - 1 + (low - log_variance).exp() + distance * (-log_variance).exp()).mean() / 2


class GuidedDiffusionPretraining(Pretraining):
    """Unconditional eps network with learned variances on the pictures of one domain.

    Args:
        iterations: optimizer steps.
        architecture: fields of `GuidedConfig`.
        start: file of a network to go on from; its architecture may have another number of groups.
        weights: factors of the terms `noise` (P2-weighted) and `variance`.
        lr: peak learning rate of AdamW.
        warmup: iterations of linear warm-up.
        preview_size: side of the sampled previews in px.
        seed: key of all randomness.
    """

    formats = {"safetensors": "p2.safetensors"}
    weight_decay = 1e-3

    def __init__(
        self,
        *,
        iterations: int,
        architecture: dict[str, Any],
        weights: dict[str, float],
        start: str | None = None,
        lr: float = 5e-4,
        warmup: int = 200,
        preview_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=1.0)
        self.save_hyperparameters()

    def configure_model(self) -> None:
        if hasattr(self, "network"):
            return
        self.network = GuidedUNet(from_json(GuidedConfig, json.dumps(self.hparams.architecture)))
        if self.hparams.start:
            self.network.load_state_dict(load_guided_unet(Path(self.hparams.start)).state_dict())
        self.process = Respaced.of(linear_betas(), range(1000))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        x = batch["image"]
        t = torch.randint(len(self.process), (len(x),), generator=self.generator("timestep")).to(x.device)
        a = self.process.alpha_bar.float().to(x.device)[t]
        eps = self.randn_like(x, "noise")
        x_t = per_sample(a.sqrt(), x) * x + per_sample((1 - a).sqrt(), x) * eps
        eps_hat, v = self.network(x_t, t).float().chunk(2, dim=1)
        x_0_hat = (x_t - per_sample((1 - a).sqrt(), x) * eps_hat.detach()) / per_sample(a.sqrt(), x)
        losses = {
            "noise": (per_sample(p2_weight(a), x) * (eps_hat - eps).square()).mean(),
            "variance": variance_bound(self.process, t, x, x_0_hat.clamp(-1, 1), v),
        }
        self.optimize("network", self.total_loss(losses, self.hparams.weights))

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        process = Respaced.of(linear_betas(), sectioned_timesteps(50))
        generator = torch.Generator().manual_seed(self.seed)
        size = self.hparams.preview_size

        def draw(i: int) -> Tensor:
            return torch.randn(4, 3, size, size, generator=generator).to(self.device)

        return {"result": ancestral_sample(self.network, draw(50), process, reversed(range(50)), draw)}

    def export(self, path: Path, layout: str) -> None:
        """Save the network in half precision, as `load_guided_unet` reads it."""
        save_guided_unet(path, self.network)
