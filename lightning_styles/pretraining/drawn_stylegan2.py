"""Teach the generator of StyleGAN2 (arXiv 1912.04958) to draw pictures that are known functions of normal numbers.

Notation: B pictures, M scenes more, K latents and F features of a scene, D length of a style, w (B, D).
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles.batches import Needs
from lightning_styles.errors import UserError, at_least, weights_of
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.models.stylegan2.generator import MAPPING_LR
from lightning_styles.models.stylegan2.layers import full_precision
from lightning_styles.pretrained.networks import load_perceptual
from lightning_styles.pretrained.stylegan2 import DRAWS, StyleGAN2, save_stylegan2
from lightning_styles.pretraining.autoencoder import differences
from lightning_styles.pretraining.base import Pretraining, warmup_cosine

PREVIEWS = 8  # pictures of each column
TERMS = {"l1": 1.0, "edges": 1.0, "perceptual": 1.0}


class DrawnStyleGAN2Pretraining(Pretraining):
    """The generator of a drawn world, learnt from its renderer without a discriminator.

    A drawn scene is a function of K normal numbers, its `latents`; its attributes are its `features`. A small network,
    the teacher, makes w of the features, of which synthesis learns to draw the picture (`image`, (B, 3, H, W)). At the
    same time the mapping network learns to make that w of z, whose first K numbers are the latents; for that no picture
    is needed, so it learns from M scenes more. `latents` is (B + M, K), `features` (B + M, F). What a mean of pictures
    leaves out is left to `StyleGAN2Pretraining`, which goes on from the exported file with a discriminator.

    Args:
        iterations: optimizer steps.
        widths: channels at 4 px, at 8 px and so on up to the size of the pictures.
        style_dim: D, length of z and w, at least K.
        mapping_layers: layers from z to w.
        features: F.
        hidden: width of the teacher.
        weights: of the terms l1, edges (L1 of neighbour differences) and perceptual; 1 where left out.
        perceptual: small perceptual network of its term; None leaves it out.
        lr: peak learning rate of Adam for synthesis, whose weights have unit variance.
        lr_dense: that of the teacher and, over `MAPPING_LR`, which scales its layers, of the mapping network.
        warmup: iterations of linear warm-up.
        settle: iterations at the end in which only the mapping network learns, now that the teacher stands still.
        lr_settle: as `lr_dense`, of these.
        seed: key of all randomness.
    """

    needs = {"fit": (Needs(("image", "importance")),)}
    formats = {"safetensors": "stylegan2.safetensors"}
    fit_only = ("perceptual",)
    judge: Any

    def __init__(
        self,
        *,
        iterations: int,
        widths: list[int],
        style_dim: int,
        mapping_layers: int,
        features: int,
        hidden: int = 384,
        weights: dict[str, float] | None = None,
        perceptual: str | None = None,
        lr: float = 8e-3,
        lr_dense: float = 1e-3,
        warmup: int = 0,
        settle: int = 0,
        lr_settle: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed)
        if not 0 <= settle < iterations:
            raise UserError(f"model.settle is {settle}, of {iterations} iterations; expected fewer.")
        at_least(1, style_dim=style_dim, mapping_layers=mapping_layers, features=features, hidden=hidden)
        at_least(0, lr=lr, lr_dense=lr_dense, warmup=warmup, lr_settle=lr_settle)
        self.terms = weights_of(weights, TERMS)
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        return [(init_args["perceptual"], "perceptual")] if init_args.get("perceptual") else []

    def kept(self, name: str) -> bool:
        return not name.startswith("judge.")

    def configure_model(self) -> None:
        if hasattr(self, "G"):
            return
        h = self.hparams
        channels = {4 * 2**i: width for i, width in enumerate(h.widths)}
        self.G = Generator(max(channels), h.style_dim, h.mapping_layers, channels=channels)
        self.teacher = nn.Sequential(
            nn.Linear(h.features, h.hidden), nn.LeakyReLU(0.2), nn.Linear(h.hidden, h.style_dim)
        )
        self.judge = load_perceptual(h.perceptual) if h.perceptual else None

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        h = self.hparams
        synthesis = [p for name, p in self.G.named_parameters() if not name.startswith("style.")]
        groups = [
            {"params": synthesis},
            {"params": list(self.teacher.parameters()), "lr": h.lr_dense},
            {"params": list(self.G.style.parameters()), "lr": h.lr_dense / MAPPING_LR},
        ]
        optimizer = Adam(groups, lr=h.lr, betas=(0.9, 0.99))
        # Half a cosine each for all and for the settling, whose peak is in units of the mapping's learning rate before.
        together = partial(warmup_cosine, iterations=self.together, warmup=h.warmup)
        settling = partial(warmup_cosine, iterations=h.settle, warmup=h.warmup)

        def of_mapping(i: int) -> float:
            return together(i) if i < self.together else settling(i - self.together) * h.lr_settle / h.lr_dense

        return {"network": (optimizer, LambdaLR(optimizer, [together, together, of_mapping]))}

    @property
    def together(self) -> int:
        """Iterations in which everything learns."""
        return self.iterations - self.hparams.settle

    # ---- one iteration

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        if "latents" not in batch:
            raise UserError("the data bring no latents; set data.described of datamodules.scene_pool.ScenePool.")
        x = batch["image"]
        w = self.teacher(batch["features"])
        losses = {"mapping": self.mapping_loss(batch["latents"], w.detach())}
        if self.iteration < self.together:
            losses |= self.synthesis_losses(x, w[: len(x)], batch["importance"])
        self.log_losses(losses)
        weights = {"mapping": 1.0} | self.terms
        self.optimize("network", torch.stack([weights[name] * loss for name, loss in losses.items()]).sum())
        shown = min(PREVIEWS, len(x))
        self.last = {"source": x[:shown], "latents": batch["latents"][:shown]}

    def synthesis_losses(self, x: Tensor, w: Tensor, importance: Tensor) -> dict[str, Tensor]:
        """Terms between `x` (B, 3, H, W) and what is drawn of `w` (B, D); `importance` (B, 1, H, W) is l1's."""
        y = self.G(w, self.G.draw_noise(len(x), self.generator("noise")))
        losses = {"l1": (importance * (y - x).abs()).mean(), "edges": F.l1_loss(differences(y), differences(x))}
        return losses if self.judge is None else losses | {"perceptual": self.judge(y, x).mean()}

    def mapping_loss(self, latents: Tensor, w: Tensor) -> Tensor:
        """Squared error of what the mapping makes of `latents` (N, K), over the variance of `w` (N, D)."""
        with full_precision(w):
            mapped = self.G.mapping(self.complete(latents))
            return F.mse_loss(mapped, w.float()) / w.float().var(0).mean()

    def complete(self, latents: Tensor) -> Tensor:
        """z (N, D) of which `latents` (N, K) are the first numbers; the others are drawn."""
        free = self.hparams.style_dim - latents.shape[1]
        if free < 0:
            raise UserError(f"a picture has {latents.shape[1]} latents; set model.style_dim to at least that.")
        return torch.cat([latents, self.randn_like(latents.new_empty(len(latents), free), "free")], 1)

    # ---- what comes of it

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        """Pictures of the last batch beside what is drawn of their latents, and pictures of random z."""
        if not hasattr(self, "last"):
            return {}
        generator = torch.Generator().manual_seed(self.seed)
        z = torch.randn(PREVIEWS, self.hparams.style_dim, generator=generator).to(self.device)
        columns = {"result": self.complete(self.last["latents"]), "random": z}
        drawn = {name: self.G(self.G.mapping(codes)).float().clamp(-1, 1) for name, codes in columns.items()}
        return {"source": self.last["source"], **drawn}

    def export(self, path: Path, layout: str) -> None:
        """Save the generator and the mean of w in half precision, as `load_stylegan2` reads them."""
        mean = self.G.mean_latent(DRAWS, torch.Generator().manual_seed(self.seed))[0]
        save_stylegan2(path, StyleGAN2(self.G, mean), torch.half)
