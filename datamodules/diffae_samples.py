"""DiffAESamples: photos that a diffusion autoencoder draws from its own prior, anew or from a pool on disk."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules.photos import WithPhotos
from datamodules.sampling import shuffled, train_loader
from lightning_styles import noise
from lightning_styles.diffusion.ddim import decode, sample_codes
from lightning_styles.diffusion.half_way import encode_half_way, picture_process
from lightning_styles.diffusion.respacing import Respaced, constant_betas, even_timesteps
from lightning_styles.errors import UserError, at_least, check_keys, within
from lightning_styles.files import replacing
from lightning_styles.precision import frozen_dtype
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.pretrained.diffae import Autoencoder, frozen_diffae
from lightning_styles.reading import MADE_AGAIN, Rule, read_made, tensor

CHUNK = 16  # pictures of one file of the pool

Chunk = dict[str, Tensor]


class DiffAESamples(WithPhotos):
    """Photo i is a pure function of (seed, i): code from the latent prior, picture by DDIM (arXiv 2402.17275, 4.1).

    A training batch holds `image` (B, 3, S, S) in [-1, 1] and `index` (B,) int64. Sampling runs on the device of the
    run. Styles can share a pool: it is built once, goes on where a killed run left it, and spares a run more than half
    of its work; photo i of a run is then one of its pictures, in shuffled passes.

    With `encode` the pool also holds what OSASIS makes of each photo before it trains, and a batch brings it: `z`
    (B, D), `x_t0` (B, 3, S, S), both float32, and `encoding`, the recipe, by which a method sees whether it is its own.
    Without a pool `encode` has no effect.

    Args:
        diffae: the diffusion autoencoder, with its latent prior.
        size: side S of its pictures in px.
        batch_size: photos per device and iteration.
        steps: of the picture's DDIM.
        latent_steps: of the code's DDIM.
        pool: pictures of the pool; 0 samples every photo anew, as the official code does.
        encode: {steps, t0} with which the pictures of a pool are encoded too; null leaves that to the method.
        frozen_precision: of the autoencoder; "auto" is float16 on a GPU and float32 elsewhere. Where it is that of the
            method, both share one copy. A pool is of one precision.
        cache: folder of the pools.
        photos: what `validate`, `test` and `predict` stylize: files, folders or scenes, see `Pictures`.
        resolution: shorter side of these photos in px; null keeps the files' own size.
        twin_style: style in which each scene's exact answer is drawn; null for none.
        seed: key of the photos.
    """

    gives = WithPhotos.gives | {"fit": ("image", "index")}

    def __init__(
        self,
        *,
        diffae: str,
        size: int = 256,
        batch_size: int = 8,
        steps: int = 20,
        latent_steps: int = 200,
        pool: int = 0,
        encode: dict[str, Any] | None = None,
        frozen_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        cache: str = "runs/diffae_samples",
        photos: str | list[str] | None = None,
        resolution: int | None = None,
        twin_style: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, steps=steps, latent_steps=latent_steps)
        at_least(0, pool=pool)
        within(16, 8192, size=size)
        if encode is not None:
            check_keys("encode", encode, ("steps", "t0"), all_of_them=True)
            within(1, 1000, **{"encode.steps": encode["steps"]})
            if not (isinstance(encode["t0"], (int, float)) and 0 < encode["t0"] < 1):
                raise UserError(f"encode.t0 is {encode['t0']}; expected a share of the noise between 0 and 1.")
        for count in (steps, latent_steps, encode["steps"] if encode else 1):
            even_timesteps(count)  # refuses what does not divide the timesteps
        self.save_hyperparameters(logger=False, ignore=["batch_size"])
        self.batch_size = batch_size

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
        rows = [divmod(shuffled(self.hparams.seed, i, self.hparams.pool), CHUNK) for i in indices]
        kept = {key: torch.stack([self.pool[chunk][key][row] for chunk, row in rows]) for key in self.pool[0]}
        if bad := [key for key, values in kept.items() if not torch.isfinite(values).all()]:
            chunks = sorted({chunk for chunk, _ in rows})
            raise UserError(
                f"The pool {self._pool_folder()} holds NaN or infinite values: {bad[0]} in a chunk from picture "
                f"{CHUNK * chunks[0]} to {CHUNK * (chunks[-1] + 1) - 1}; {MADE_AGAIN}."
            )
        batch |= {key: values.to(device, torch.float32) for key, values in kept.items()}
        return batch | ({"encoding": self.encoding} if self.hparams.encode else {})

    @torch.no_grad()
    def sample(self, indices: list[int], device: torch.device) -> Tensor:
        """Photos (B, 3, S, S) of these indices."""
        h, autoencoder = self.hparams, self._autoencoder()
        A, statistics = autoencoder.model.to(device), autoencoder.statistics
        if A.latent_net is None or statistics is None:
            raise UserError(
                f"{h.diffae} lacks the latent prior or the mean and deviation of its codes, so it cannot sample; give "
                "the checkpoint of the latent prior, such as ffhq256_autoenc_latent/last.ckpt."
            )
        shapes = {"picture": (3, h.size, h.size), "code": (A.config.embedding,)}
        x, code = (
            torch.stack([torch.randn(shape, generator=noise.generator(h.seed, i, name)) for i in indices]).to(device)
            for name, shape in shapes.items()
        )
        prior = Respaced.of(constant_betas(), even_timesteps(h.latent_steps))
        z = sample_codes(A.latent_net, code, prior, statistics.mean.to(device), statistics.std.to(device))
        return decode(partial(A, z=z), x, picture_process(h.steps), reversed(range(h.steps)))

    # ---- the pool

    def _open_pool(self) -> list[Chunk]:
        """The chunks of the pool, mapped from their files: `image` in half precision, with `encode` z and x_t0."""
        h, device = self.hparams, self.trainer.strategy.root_device  # type: ignore[union-attr]
        ranges = [range(first, min(first + CHUNK, h.pool)) for first in range(0, h.pool, CHUNK)]
        folder = self._pool_folder()
        picture = (3, h.size, h.size)
        pictures = self._chunks(
            folder, ranges, lambda n: {"image": self.sample(list(ranges[n]), device).half()}, {"image": picture}
        )
        if not h.encode:
            return pictures
        self.encoding = {**h.encode, "diffae": self._fingerprint(), "size": h.size}
        own = folder / f"encoded_{h.encode['steps']}_{h.encode['t0']:g}"
        encoded = {"z": (self._autoencoder().model.config.embedding,), "x_t0": picture}
        encodings = self._chunks(
            own, ranges, lambda n: self._encode(pictures[n]["image"].to(device, torch.float32)), encoded
        )
        return [picture | encoding for picture, encoding in zip(pictures, encodings, strict=True)]

    def _chunks(
        self, folder: Path, ranges: list[range], make: Callable[[int], Chunk], shapes: dict[str, tuple[int, ...]]
    ) -> list[Chunk]:
        """All chunks in `folder`, after `make` has made the missing ones; the ranks share that work.

        `shapes` are those of one picture. Whether the numbers are finite is seen when they are needed.
        """
        trainer: Any = self.trainer
        files = [folder / f"{chunk[0]:06d}-{chunk[-1]:06d}.pt" for chunk in ranges]
        missing = [n for n, file in enumerate(files) if not file.exists()]
        trainer.strategy.barrier()  # every rank has looked before any writes
        if missing:
            with lent(self._autoencoder().model, trainer.strategy.root_device):
                for n in missing[trainer.global_rank :: trainer.world_size]:
                    chunk = {key: values.cpu() for key, values in make(n).items()}
                    with replacing(files[n]) as temporary:
                        torch.save(chunk, temporary)
        trainer.strategy.barrier()
        return [
            open_chunk(file, {key: tensor(len(own), *shape, finite=False) for key, shape in shapes.items()})
            for file, own in zip(files, ranges, strict=True)
        ]

    def _encode(self, images: Tensor) -> Chunk:
        A = self._autoencoder().model.to(images.device)
        steps, t0 = self.hparams.encode["steps"], self.hparams.encode["t0"]
        z, x = encode_half_way(A, images, picture_process(steps), t0)
        return {"z": z, "x_t0": x}

    def _autoencoder(self) -> Autoencoder:
        """The autoencoder, the one that a method of the same precision has."""
        return frozen_diffae(self.hparams.diffae, self._dtype())

    def _dtype(self) -> torch.dtype:
        return frozen_dtype(self.hparams.frozen_precision, self.trainer, torch.float16)

    def _pool_folder(self) -> Path:
        h = self.hparams
        recipe = (self._fingerprint(), str(self._dtype()), h.size, h.steps, h.latent_steps, h.seed)
        return Path(h.cache) / hashlib.sha256(repr(recipe).encode()).hexdigest()[:16]

    def _fingerprint(self) -> str:
        return fingerprint(locate(self.hparams.diffae, "diffae"))


@contextmanager
def lent(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Have `network` on `device` in the block, then where it was: a method may have it there already."""
    home = next(network.parameters()).device
    network.to(device)
    try:
        yield
    finally:
        network.to(home)


def open_chunk(file: Path, expected: dict[str, Rule]) -> Chunk:
    """A chunk of the pool, mapped from its file.

    Raises:
        UserError: the file is damaged, or another node made it on a disk of its own.
    """
    try:
        return read_made(file, expected, mapped=True)
    except FileNotFoundError as error:
        raise UserError(f"{file} is not here; data.cache must lie where all nodes see it.") from error
