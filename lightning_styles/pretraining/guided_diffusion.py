"""Train the pixel diffusion model of a domain: P2 weighting (arXiv 2204.00227) and learned variances (2102.09672)."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles.batches import Needs
from lightning_styles.diffusion.ancestral import ancestral_sample
from lightning_styles.diffusion.respacing import Respaced, linear_betas, sectioned_timesteps
from lightning_styles.diffusion.schedules import per_sample
from lightning_styles.errors import at_least, weights_of, within
from lightning_styles.models.guided_unet import GuidedConfig, GuidedUNet
from lightning_styles.pretrained.architecture import from_json
from lightning_styles.pretrained.diffae import load_guided_unet, save_guided_unet
from lightning_styles.pretraining.base import Pretraining

T = 1000


def p2_weight(alpha_bar: Tensor, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """1 / (k + SNR)^gamma with SNR = alpha_bar / (1 - alpha_bar) (arXiv 2204.00227, section 3.2): less for small t."""
    return (k + alpha_bar / (1 - alpha_bar)) ** -gamma


def variance_bound(alpha_bar: Tensor, t: Tensor, x_0: Tensor, x_0_hat: Tensor, v: Tensor, stride: int = 1) -> Tensor:
    """KL(q(x_{t-d} | x_t, x_0) || p(x_{t-d} | x_t)) in nats per dimension, for the variances that v interpolates.

    From arXiv 2102.09672, equations 4 and 15, for steps of d timesteps, as its section 4 samples. Both means are
    posterior means, of x_0 and of its prediction. The last step, t < d, draws nothing and counts 0.

    Args:
        alpha_bar: (T,) of all training timesteps.
        t: (B,) timesteps.
        x_0: (B, C, H, W).
        x_0_hat: predicted x_0; no gradient is meant to reach it.
        v: (B, C, H, W), in [-1, 1] between the smallest and the largest variance.
        stride: d, timesteps of a step; single ones give v next to nothing to learn from, as both ends agree there.
    """
    a, a_prev = alpha_bar[t], alpha_bar[(t - stride).clamp(min=0)]
    beta = (1 - a / a_prev).clamp(min=1e-8)
    smallest = beta * (1 - a_prev) / (1 - a)
    low, high, pull = (per_sample(table, x_0) for table in (smallest.log(), beta.log(), beta * a_prev.sqrt() / (1 - a)))
    log_variance = (v + 1) / 2 * high + (1 - v) / 2 * low
    distance = (pull * (x_0 - x_0_hat)).square()
    kl = (log_variance - low - 1 + (low - log_variance).exp() + distance * (-log_variance).exp()) / 2
    return (kl * per_sample((t >= stride).float(), x_0)).mean()


class GuidedDiffusionPretraining(Pretraining):
    """Unconditional eps network with learned variances on the pictures of one domain.

    Args:
        iterations: optimizer steps.
        architecture: fields of `GuidedConfig`.
        start: file of a network to go on from; its architecture may have another number of groups.
        weights: factors of the terms `noise` (P2-weighted) and `variance`; 1 where left out.
        stride: timesteps between the steps whose variances are learned; 1 in the paper, 1000 / steps to sample in few.
        lr: peak learning rate of AdamW.
        warmup: iterations of linear warm-up.
        preview_size: side of the sampled previews in px.
        seed: key of all randomness.
    """

    needs = {"fit": (Needs(("image",)),)}
    formats = {"safetensors": "p2.safetensors"}
    weight_decay = 1e-3

    def __init__(
        self,
        *,
        iterations: int,
        architecture: dict[str, Any],
        weights: dict[str, float] | None = None,
        start: str | None = None,
        stride: int = 1,
        lr: float = 5e-4,
        warmup: int = 200,
        preview_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=1.0)
        at_least(1, stride=stride)
        at_least(0, lr=lr, warmup=warmup)
        within(16, 8192, preview_size=preview_size)
        self.terms = weights_of(weights, {"noise": 1.0, "variance": 1.0})
        self.save_hyperparameters()

    def configure_model(self) -> None:
        if hasattr(self, "network"):
            return
        self.network = GuidedUNet(from_json(GuidedConfig, json.dumps(self.hparams.architecture)))
        if self.hparams.start:
            self.network.load_state_dict(load_guided_unet(Path(self.hparams.start)).state_dict())
        self.alpha_bar = Respaced.of(linear_betas(T), range(T)).alpha_bar.float().to(self.run_device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        x = batch["image"]
        t = torch.randint(T, (len(x),), generator=self.generator("timestep")).to(x.device)
        a = self.alpha_bar[t]
        eps = self.randn_like(x, "noise")
        x_t = per_sample(a.sqrt(), x) * x + per_sample((1 - a).sqrt(), x) * eps
        eps_hat, v = self.network(x_t, t).float().chunk(2, dim=1)
        x_0_hat = (x_t - per_sample((1 - a).sqrt(), x) * eps_hat.detach()) / per_sample(a.sqrt(), x)
        losses = {
            "noise": (per_sample(p2_weight(a), x) * (eps_hat - eps).square()).mean(),
            "variance": variance_bound(self.alpha_bar, t, x, x_0_hat.clamp(-1, 1), v, self.hparams.stride),
        }
        self.optimize("network", self.total_loss(losses, self.terms))

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
