"""DiffAESamples: photos that a diffusion autoencoder draws from its own prior, anew or from a pool on disk."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.pictures import Pictures
from datamodules.sampling import shuffled, train_loader
from lightning_styles import noise
from lightning_styles.diffusion.ddim import decode, sample_codes
from lightning_styles.diffusion.respacing import Respaced, constant_betas, even_timesteps, linear_betas
from lightning_styles.errors import UserError, at_least
from lightning_styles.files import replacing
from lightning_styles.pretrained import fingerprint, locate

CHUNK = 16  # pictures of one file of the pool


class DiffAESamples(L.LightningDataModule):
    """Photo i is a pure function of (seed, i): code from the latent prior, picture by DDIM (arXiv 2402.17275, 4.1).

    A training batch holds `image` (B, 3, S, S) in [-1, 1] and `index` (B,) int64. Sampling runs on the device of the
    run. Styles can share a pool: it is built once, goes on where a killed run left it, and spares a run more than half
    of its work; photo i of a run is then one of its pictures, in shuffled passes.

    Args:
        diffae: the diffusion autoencoder, with its latent prior.
        size: side S of its pictures in px.
        batch_size: photos per device and iteration.
        steps: of the picture's DDIM.
        latent_steps: of the code's DDIM.
        pool: pictures of the pool; 0 samples every photo anew, as the official code does.
        cache: folder of the pools.
        photos: what `validate`, `test` and `predict` stylize: files, folders or scenes, see `Pictures`.
        resolution: shorter side of these photos in px; null keeps the files' own size.
        twin_style: style in which each scene's exact answer is drawn; null for none.
        seed: key of the photos.
    """

    def __init__(
        self,
        *,
        diffae: str,
        size: int = 256,
        batch_size: int = 8,
        steps: int = 20,
        latent_steps: int = 200,
        pool: int = 0,
        cache: str = "runs/diffae_samples",
        photos: str | list[str] | None = None,
        resolution: int | None = None,
        twin_style: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, steps=steps, latent_steps=latent_steps)
        at_least(0, pool=pool)
        self.save_hyperparameters(logger=False, ignore=["batch_size"])
        self.batch_size = batch_size
        self.stylized: Pictures | None = None
        if photos is not None:
            self.stylized = Pictures(images=photos, resolution=resolution, batch_size=batch_size, twin_style=twin_style)

    @property
    def hparams(self) -> Any:  # type: ignore[override]
        """The arguments of the constructor, by name."""
        return super().hparams

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        return [(init_args["diffae"], "diffae")]

    # ---- training

    def train_dataloader(self) -> DataLoader[Any]:
        if self.hparams.pool:
            self.pool = self._open_pool()
        return train_loader(self.trainer, lambda i: {"index": i}, batch_size=self.batch_size)  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        if "image" in batch:
            return batch
        indices, device = batch["index"].tolist(), batch["index"].device
        if not self.hparams.pool:
            return batch | {"image": self.sample(indices, device)}
        rows = [shuffled(self.hparams.seed, i, self.hparams.pool) for i in indices]
        return batch | {"image": self.pool[rows].to(device, torch.float32)}

    @torch.no_grad()
    def sample(self, indices: list[int], device: torch.device) -> Tensor:
        """Photos (B, 3, S, S) of these indices."""
        from lightning_styles.pretrained.diffae import frozen_diffae

        h, autoencoder = self.hparams, frozen_diffae(self.hparams.diffae)
        A, statistics = autoencoder.model.to(device), autoencoder.statistics
        if A.latent_net is None or statistics is None:
            raise UserError(f"{h.diffae} has no latent prior with its statistics, so it cannot sample; take one with.")
        shapes = {"picture": (3, h.size, h.size), "code": (A.config.embedding,)}
        x, code = (
            torch.stack([torch.randn(shape, generator=noise.generator(h.seed, i, name)) for i in indices]).to(device)
            for name, shape in shapes.items()
        )
        prior = Respaced.of(constant_betas(), even_timesteps(h.latent_steps))
        z = sample_codes(A.latent_net, code, prior, statistics.mean.to(device), statistics.std.to(device))
        process = Respaced.of(linear_betas(), even_timesteps(h.steps))
        return decode(partial(A, z=z), x, process, reversed(range(h.steps)))

    # ---- the pool

    def _open_pool(self) -> Tensor:
        """All pictures of the pool (pool, 3, S, S) in half precision, after making the chunks that are missing."""
        trainer: Any = self.trainer
        chunks = [range(first, min(first + CHUNK, self.hparams.pool)) for first in range(0, self.hparams.pool, CHUNK)]
        files = [self._pool_folder() / f"{chunk[0]:06d}.pt" for chunk in chunks]
        missing = [(file, chunk) for file, chunk in zip(files, chunks, strict=True) if not file.exists()]
        for file, chunk in missing[trainer.global_rank :: trainer.world_size]:
            pictures = self.sample(list(chunk), trainer.strategy.root_device).half().cpu()
            with replacing(file) as temporary:
                torch.save(pictures, temporary)
        trainer.strategy.barrier()
        return torch.cat([torch.load(file, weights_only=True) for file in files])

    def _pool_folder(self) -> Path:
        h = self.hparams
        recipe = (fingerprint(locate(h.diffae, "diffae")), h.size, h.steps, h.latent_steps, h.seed)
        return Path(h.cache) / hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]

    # ---- photos to stylize

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        return self._photos().val_dataloader() if self.stylized else []

    def test_dataloader(self) -> DataLoader[Any]:
        return self._photos().test_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._photos().predict_dataloader()

    def _photos(self) -> Pictures:
        if self.stylized is None:
            raise UserError("there is nothing to stylize; name files, folders or scenes as data.photos.")
        self.stylized.trainer = self.trainer
        return self.stylized
