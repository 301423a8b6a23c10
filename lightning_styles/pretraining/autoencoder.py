"""Train the autoencoder of a latent diffusion model (arXiv 2112.10752, section 3.1) in the layout of diffusers."""

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.batches import Needs
from lightning_styles.errors import at_least, weights_of
from lightning_styles.pretraining.base import Pretraining

TERMS = {"l1": 1.0, "edges": 1.0, "perceptual": 1.0, "kl": 1.0}


class AutoencoderPretraining(Pretraining):
    """AutoencoderKL from pictures: L1 + gradient + perceptual + KL; the latent scale is measured at export.

    Args:
        iterations: optimizer steps.
        widths: channels of each resolution; each level after the first halves the resolution.
        latent_channels: channels of the latent.
        weights: of the terms l1, edges (L1 of picture gradients), perceptual and kl; 1 where left out.
        perceptual: name or path of the perceptual network; None leaves the term out.
        start: folder of an earlier run's export to go on from; None starts from random weights.
        trained: "all", or only the "decoder", which leaves the latents of models trained on them valid.
        lr: peak learning rate of AdamW.
        warmup: iterations of linear warm-up.
        seed: seed of the posterior's noise.
    """

    needs = {"fit": (Needs(("image", "importance")),)}
    vae: Any
    perceptual: Any
    latent_variance: Tensor
    formats = {"diffusers": "."}
    betas = (0.9, 0.99)
    weight_decay = 1e-4

    def __init__(
        self,
        *,
        iterations: int,
        widths: list[int],
        latent_channels: int = 4,
        weights: dict[str, float] | None = None,
        perceptual: str | None = None,
        start: str | None = None,
        trained: Literal["all", "decoder"] = "all",
        lr: float = 1e-3,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=1.0)
        at_least(1, latent_channels=latent_channels)
        at_least(0, lr=lr, warmup=warmup)
        self.terms = weights_of(weights, TERMS)
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        kinds = {"perceptual": "perceptual", "start": "autoencoder folder"}
        return [(init_args[key], kind) for key, kind in kinds.items() if init_args.get(key)]

    def kept(self, name: str) -> bool:
        return name.startswith(("vae.", "latent_variance"))

    def configure_model(self) -> None:
        if hasattr(self, "vae"):
            return
        from diffusers import AutoencoderKL

        from lightning_styles.pretrained.networks import load_perceptual

        h, levels = self.hparams, len(self.hparams.widths)
        self.vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,  # type: ignore[arg-type]
            up_block_types=("UpDecoderBlock2D",) * levels,  # type: ignore[arg-type]
            block_out_channels=tuple(h.widths),
            layers_per_block=1,
            latent_channels=h.latent_channels,
            norm_num_groups=8,
            sample_size=64,
        )
        if h.start:
            started: Any = AutoencoderKL.from_pretrained(h.start, subfolder="vae", local_files_only=True)
            self.vae.load_state_dict(started.state_dict())
            self.vae.register_to_config(scaling_factor=started.config.scaling_factor)
        if h.trained == "decoder":
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.register_buffer("latent_variance", torch.ones(()))
        self.perceptual = load_perceptual(h.perceptual) if h.perceptual else None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        x = batch["image"]
        posterior = self.vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * self.randn_like(posterior.mean, "posterior")
        losses = self.losses(x, self.vae.decode(z).sample, batch["importance"])
        losses["kl"] = posterior.kl().mean() / z[0].numel()
        self.optimize("network", self.total_loss(losses, self.terms))
        self.latent_variance.lerp_(posterior.mean.detach().float().var(), 0.01)
        self.last = x.detach()[:8]

    def losses(self, x: Tensor, y: Tensor, importance: Tensor) -> dict[str, Tensor]:
        """Reconstruction terms of `y` against `x`, both (B, 3, H, W) in [-1, 1]; `importance` (B, 1, H, W) is l1's."""
        l1 = (importance * (y - x).abs()).mean()
        losses = {"l1": l1, "edges": F.l1_loss(differences(y), differences(x))}
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(y, x).mean()
        return losses

    def preview(self) -> dict[str, Tensor]:
        if not hasattr(self, "last"):
            return {}
        return {"source": self.last, "result": self.vae(self.last).sample}

    @torch.no_grad()
    def export(self, path: Path, layout: str) -> None:
        """Save the autoencoder to `path`/vae in half precision, with the scale that gives its latents unit variance."""
        if self.hparams.trained == "all":
            self.vae.register_to_config(scaling_factor=round(self.latent_variance.rsqrt().item(), 5))
        deepcopy(self.vae).to(torch.float16).save_pretrained(path / "vae")


def differences(x: Tensor) -> Tensor:
    """Horizontal and vertical neighbour differences of `x` (B, C, H, W), flattened to (B, N)."""
    return torch.cat([x.diff(dim=-1).flatten(1), x.diff(dim=-2).flatten(1)], dim=1)
