"""JoJoGAN (arXiv 2112.11641): a generator finetuned on one style picture, or a few, in minutes.

Notation: G the frozen generator, G' its finetuned copy, D the frozen discriminator; B batch, L styles of a picture, D
length of a style, w+ (B, L, D).
"""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from lightning_styles import noise
from lightning_styles.batches import Needs
from lightning_styles.errors import at_least, within
from lightning_styles.files import existing
from lightning_styles.imaging import find_images
from lightning_styles.methods.encoded_faces import EncodedFaces, open_face
from lightning_styles.models.stylegan2 import Discriminator, Generator
from lightning_styles.models.stylegan2.mixing import truncate
from lightning_styles.models.stylegan2.stylize import scaled
from lightning_styles.pretrained.stylegan2 import StyleGAN2, save_stylegan2

ALL, COLOURLESS = range(7, 18), (9, 11, 15, 16, 17)  # of 18 layers, those of which a style picture has many versions
PREVIEWS = 4


class JoJoGAN(EncodedFaces):
    """Many faces that the style picture could be of, each of which G' learns to draw as that picture.

    The versions differ in their upper layers, which are random. D compares what G' draws of them with the style
    picture, by its maps. The data only counts iterations in `fit`, as `Pictures` does.

    Args:
        source: G with D.
        encoder: pSp encoder of G, for the style pictures as for the photos.
        style_images: file of the style picture, or a folder of several; aligned faces, or with landmarks beside.
        iterations: steps of Adam, 200 to 500 in the paper.
        batch_size: versions of each style picture in an iteration and on a device.
        keep_colours: leave the layers of the colours alone, so that results have those of the photos.
        alpha: share of the style picture's own code in the random layers; 0 is full style strength.
        lr: Adam's learning rate.
        paste_back: put faces that were cut out of photos back there.
        metrics: name -> network or folder for `validate` and `test`, see `lightning_styles.metrics`.
        seed: key of all randomness.
    """

    formats = {"safetensors": "stylegan2.safetensors"}
    needs = EncodedFaces.needs | {"fit": (Needs(),)}
    fit_only = ("style_images",)
    discriminator: Discriminator
    trained_first = True
    styled: Generator

    def __init__(
        self,
        *,
        source: str,
        encoder: str,
        style_images: str,
        iterations: int = 300,
        batch_size: int = 1,
        keep_colours: bool = False,
        alpha: float = 0.0,
        lr: float = 2e-3,
        paste_back: bool = False,
        metrics: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, metrics=metrics)
        at_least(1, batch_size=batch_size)
        at_least(0, lr=lr)
        within(0, 1, alpha=alpha)
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        style = [(init_args["style_images"], "file")] if init_args.get("style_images") else []
        return super().required_models(init_args) + style

    def kept(self, name: str) -> bool:
        return name.startswith("styled.")

    def configure_model(self) -> None:
        if hasattr(self, "styled"):
            return
        model = self.load_source(finetune=True)
        assert model.discriminator is not None
        self.__dict__["discriminator"] = model.discriminator.to(self.run_device)
        self.styled = copy.deepcopy(model.generator).requires_grad_(True)
        self.styled.style.requires_grad_(False)  # codes enter behind the mapping network

    def named_optimizers(self) -> dict[str, tuple[Optimizer, None]]:
        trained = [p for p in self.styled.parameters() if p.requires_grad]
        return {"generator": (Adam(trained, self.hparams.lr, (0.0, 0.99)), None)}

    # ---- training

    @torch.no_grad()
    def on_fit_start(self) -> None:
        folder = Path(self.trainer.default_root_dir)
        files = find_images(existing(self.hparams.style_images))
        self.pictures = torch.cat([open_face(file, self.source.size, folder) for file in files]).to(self.device)
        self.codes = self.encode(self.pictures)
        self.features = self.discriminator.features(self.pictures)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        count = self.hparams.batch_size
        w = self.versions(self.codes.repeat(count, 1, 1))
        found = self.discriminator.features(self.styled(w, self.draw_noise(len(w), "noise")))
        pairs = zip(found, self.features, strict=True)
        distances = [F.l1_loss(ours.float(), theirs.repeat(count, 1, 1, 1).float()) for ours, theirs in pairs]
        self.optimize("generator", self.total_loss({"features": torch.stack(distances).mean()}, {}))

    @torch.no_grad()
    def versions(self, w: Tensor) -> Tensor:
        """`w` (B, L, D) with random styles in the layers that are free."""
        layers, alpha = self.source.n_latent, self.hparams.alpha
        chosen = COLOURLESS if self.hparams.keep_colours else ALL
        free = sorted({min(scaled(layer, layers), layers - 1) for layer in chosen})
        z = torch.randn(len(w), self.source.style_dim, generator=self.generator("styles")).to(w)
        other = self.source.mapping(z)[:, None]
        changed = w.clone()
        changed[:, free] = alpha * w[:, free] + (1 - alpha) * other
        return changed

    # ---- what comes of it

    def stylize(self, w: Tensor, names: list[str]) -> Tensor:
        return self.styled(w)

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        """The same random photos of G each time, and what G' makes of them."""
        z = torch.randn(PREVIEWS, self.source.style_dim, generator=noise.generator(self.seed, "preview"))
        w = truncate(self.source.mapping(z.to(self.latent_avg)), self.latent_avg, 0.7)
        columns = {"source": self.source(w), "result": self.styled(w)}
        if hasattr(self, "pictures"):
            columns |= {"style": self.pictures[:PREVIEWS], "style drawn": self.styled(self.codes[:PREVIEWS])}
        return {name: images.float().clamp(-1, 1) for name, images in columns.items()}

    def export(self, path: Path, layout: str) -> None:
        """Write G' in half precision, as `load_stylegan2` reads it."""
        save_stylegan2(path, StyleGAN2(self.styled, self.latent_avg), torch.half)
