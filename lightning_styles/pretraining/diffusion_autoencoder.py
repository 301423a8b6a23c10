"""Train a diffusion autoencoder and the prior over its codes (arXiv 2111.15640, sections 3 and 4)."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.batches import Needs
from lightning_styles.diffusion.ddim import decode, sample_codes
from lightning_styles.diffusion.respacing import Respaced, constant_betas, even_timesteps, linear_betas
from lightning_styles.diffusion.schedules import per_sample
from lightning_styles.errors import at_least, within
from lightning_styles.models.diffae import DiffAE, DiffAEConfig, LatentConfig
from lightning_styles.models.latent_mlp import LatentMLP
from lightning_styles.pretrained.architecture import from_json
from lightning_styles.pretrained.diffae import CodeStatistics, load_diffae, save_diffae
from lightning_styles.pretraining.base import Pretraining

T = 1000


def snr_weight(alpha_bar: Tensor, cap: float = 1000.0) -> Tensor:
    """max(1, 1 / SNR), at most `cap`, with SNR = alpha_bar / (1 - alpha_bar) (arXiv 2202.00512, section 4).

    Where noise prevails, the error of x_0 counts instead of that of the noise. A small network needs this to sample
    from pure noise: an error of 0.05 in the noise, which an even weight hardly sees, is one of 5 in x_0 there.
    """
    return ((1 - alpha_bar) / alpha_bar).clamp(1.0, cap)


class DiffAEPretraining(Pretraining):
    """UNet and semantic encoder together: predict the noise in x_t, given t and the code z of the clean picture.

    Args:
        iterations: optimizer steps.
        architecture: fields of `DiffAEConfig`; the prior over z is trained afterwards, by `LatentPriorPretraining`.
        jitter: standard deviation of the logarithm of the noise's amplitude. A network that has seen noise a little too
            strong or too weak, and learned to name all of it, mends in later steps of DDIM what earlier ones left.
        start: file of an autoencoder to go on from; its architecture may have another number of groups.
        weighting: of the squared error of the noise: "simple" is even over t (paper), "snr" see `snr_weight`.
        lr: peak learning rate of AdamW.
        warmup: iterations of linear warm-up.
        seed: key of all randomness.
    """

    needs = {"fit": (Needs(("image",)),)}
    formats = {"safetensors": "diffae.safetensors"}
    weight_decay = 1e-3

    def __init__(
        self,
        *,
        iterations: int,
        architecture: dict[str, Any],
        jitter: float = 0.0,
        start: str | None = None,
        weighting: Literal["simple", "snr"] = "simple",
        lr: float = 5e-4,
        warmup: int = 200,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=1.0)
        at_least(0, jitter=jitter, lr=lr, warmup=warmup)
        self.save_hyperparameters()

    def configure_model(self) -> None:
        if hasattr(self, "network"):
            return
        fields = self.hparams.architecture | {"latent": None}
        self.network = DiffAE(from_json(DiffAEConfig, json.dumps(fields)))
        if self.hparams.start:
            self.network.load_state_dict(load_diffae(Path(self.hparams.start)).model.state_dict())
        self.alpha_bar = Respaced.of(linear_betas(T), range(T)).alpha_bar.float().to(self.run_device)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        x = batch["image"]
        t = torch.randint(T, (len(x),), generator=self.generator("timestep")).to(x.device)
        a, eps = self.alpha_bar[t], self.randn_like(x, "noise")
        eps = eps * (self.hparams.jitter * self.randn_like(x[:, :1, :1, :1], "amplitude")).exp()
        x_t = per_sample(a.sqrt(), x) * x + per_sample((1 - a).sqrt(), x) * eps
        error = (self.network(x_t, t, self.network.encoder(x)).float() - eps).square()
        weight = snr_weight(a) if self.hparams.weighting == "snr" else torch.ones_like(a)
        self.optimize("network", self.total_loss({"noise": (per_sample(weight, x) * error).mean()}, {}))
        self.last = x.detach()[:4]

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        """Pictures, and what their codes alone give back from pure noise."""
        if not hasattr(self, "last"):
            return {}
        noise = torch.randn(self.last.shape, generator=torch.Generator().manual_seed(self.seed)).to(self.last)
        network = partial(self.network, z=self.network.encoder(self.last))
        process = Respaced.of(linear_betas(), even_timesteps(20))
        return {"source": self.last, "result": decode(network, noise, process, reversed(range(20)))}

    def export(self, path: Path, layout: str) -> None:
        """Save the autoencoder in half precision, as `load_diffae` reads it."""
        save_diffae(path, self.network)


class LatentPriorPretraining(Pretraining):
    """The prior over the codes of a trained autoencoder, as a diffusion model with an L1 loss.

    Args:
        iterations: optimizer steps.
        autoencoder: file of the autoencoder.
        hidden: width of the MLP.
        layers: its layers; all but the first see their input again.
        time_channels: sinusoids of the timestep.
        lr: peak learning rate of AdamW.
        warmup: iterations of linear warm-up.
        preview_size: side of the sampled previews in px.
        seed: key of all randomness.
    """

    needs = {"fit": (Needs(("image", "row")),)}
    formats = {"safetensors": "diffae.safetensors"}
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        iterations: int,
        autoencoder: str,
        hidden: int,
        layers: int,
        time_channels: int = 64,
        lr: float = 1e-3,
        warmup: int = 100,
        preview_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=1.0)
        at_least(1, hidden=hidden, layers=layers, time_channels=time_channels)
        at_least(0, lr=lr, warmup=warmup)
        within(16, 8192, preview_size=preview_size)
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        return [(init_args["autoencoder"], "diffae")]

    def kept(self, name: str) -> bool:
        return name.startswith("prior.") or name in ("mean", "std")

    def configure_model(self) -> None:
        if hasattr(self, "prior"):
            return
        h = self.hparams
        self.A = load_diffae(Path(h.autoencoder)).model.eval().requires_grad_(False)
        self.latent = LatentConfig(h.hidden, h.layers, tuple(range(1, h.layers)), h.time_channels)
        D = self.A.config.embedding
        self.prior = LatentMLP(D, h.hidden, h.layers, self.latent.skips, h.time_channels)
        self.register_buffer("mean", torch.zeros(1, D))
        self.register_buffer("std", torch.ones(1, D))
        self.alpha_bar = Respaced.of(constant_betas(T), range(T)).alpha_bar.float().to(self.run_device)

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Encode every picture of the pool once."""
        pictures = self.trainer.datamodule.pool["image"].split(256)  # type: ignore[attr-defined]
        codes = [self.A.encoder(chunk.to(self.device).float() / 127.5 - 1) for chunk in pictures]
        self.codes = torch.cat(codes)
        self.mean.copy_(self.codes.mean(0, keepdim=True))
        self.std.copy_(self.codes.std(0, keepdim=True))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        z = (self.codes[batch["row"]] - self.mean) / self.std
        t = torch.randint(T, (len(z),), generator=self.generator("timestep")).to(z.device)
        a, eps = self.alpha_bar[t][:, None], self.randn_like(z, "noise")
        prediction = self.prior(a.sqrt() * z + (1 - a).sqrt() * eps, t)
        self.optimize("network", self.total_loss({"noise": F.l1_loss(prediction.float(), eps)}, {}))

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        generator, side = torch.Generator().manual_seed(self.seed), self.hparams.preview_size
        x = torch.randn(4, 3, side, side, generator=generator).to(self.device)
        code = torch.randn(4, self.mean.shape[1], generator=generator).to(self.device)
        prior = Respaced.of(constant_betas(), even_timesteps(50))
        z = sample_codes(self.prior, code, prior, self.mean, self.std)
        process = Respaced.of(linear_betas(), even_timesteps(20))
        return {"result": decode(partial(self.A, z=z), x, process, reversed(range(20)))}

    def export(self, path: Path, layout: str) -> None:
        """Save autoencoder, prior and statistics in one file in half precision, as `load_diffae` reads it."""
        whole = DiffAE(replace(self.A.config, latent=self.latent))
        state = self.A.state_dict() | {f"latent_net.{key}": value for key, value in self.prior.state_dict().items()}
        whole.load_state_dict(state)
        save_diffae(path, whole, CodeStatistics(self.mean, self.std))
