"""Mind the Gap (arXiv 2110.08398): a generator finetuned on one style picture, guided by CLIP.

Notation: G the frozen generator, G' its finetuned copy; I_B the style picture, I_A the photo that G draws of its code;
B batch, L styles of a picture, D length of a style, w+ (B, L, D).
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
from lightning_styles.errors import UserError, at_least, weights_of
from lightning_styles.files import existing
from lightning_styles.losses.clip_direction import check_directions, cross_loss, direction, in_loss, re_clip_loss
from lightning_styles.losses.gan import lazy_adam
from lightning_styles.losses.semantic import perceptual_distance, shrink
from lightning_styles.methods.encoded_faces import EncodedFaces, open_face
from lightning_styles.metrics.perceptual import load_distance
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.models.stylegan2.inversion import invert
from lightning_styles.models.stylegan2.layers import full_precision
from lightning_styles.models.stylegan2.mixing import mix, truncate
from lightning_styles.models.stylegan2.pnorm import pnorm_space
from lightning_styles.models.stylegan2.stylize import scaled
from lightning_styles.pretrained.clip import load_clip
from lightning_styles.pretrained.stylegan2 import StyleGAN2, save_stylegan2

WEIGHTS = {"across": 1.0, "within": 0.5, "reference": 30.0, "l2": 10.0, "lpips": 10.0}
BETAS = lazy_adam(2e-3, 4)[1]  # as with StyleGAN2's lazy penalty, by whose rule 2e-3 is lr 1.6e-3
PREVIEWS = 4
UNMOVED = 0.01  # distance of unit embeddings up to which a picture has no direction yet, only rounding


class MindTheGap(EncodedFaces):
    """Photos move in CLIP's space as the style picture moved from the photo that G knows it as.

    That photo is found by inversion in P-norm+ space, which keeps it a likely one. The data only counts iterations in
    `fit`, as `Pictures` does.

    Args:
        source: G.
        encoder: pSp encoder of G, for photos.
        style_image: I_B, an aligned face, or with landmarks beside.
        clip: CLIP whose embeddings give the directions.
        lpips: trunk of LPIPS; None where `perceptual` is given instead.
        perceptual: small perceptual network in place of LPIPS.
        iterations: steps of Adam.
        batch_size: random photos in an iteration and on a device.
        weights: of the terms across, within, reference, l2 and lpips; those of the paper where left out.
        lr: Adam's learning rate.
        inversion_steps: of the search for I_A.
        inversion_lr: Adam's learning rate in it.
        inversion_norm: weight of the mean square in P-norm+ space in it.
        mix_from: first of 18 layers, scaled to those of G, whose styles photos take from I_B; None takes none.
        paste_back: put faces that were cut out of photos back there.
        metrics: name -> network or folder for `validate` and `test`, see `lightning_styles.metrics`.
        seed: key of all randomness.
    """

    formats = {"safetensors": "stylegan2.safetensors"}
    needs = EncodedFaces.needs | {"fit": (Needs(),)}
    fit_only = ("style_image", "clip", "lpips", "perceptual")
    trained_first = True
    styled: Generator
    code: Tensor
    clip: Any
    judge: Any

    def __init__(
        self,
        *,
        source: str,
        encoder: str,
        style_image: str,
        clip: str,
        lpips: str | None = None,
        perceptual: str | None = None,
        iterations: int = 600,
        batch_size: int = 4,
        weights: dict[str, float] | None = None,
        lr: float = 1.6e-3,
        inversion_steps: int = 1000,
        inversion_lr: float = 0.01,
        inversion_norm: float = 1e-3,
        mix_from: int | None = 7,
        paste_back: bool = False,
        metrics: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, metrics=metrics)
        self.terms = weights_of(weights, WEIGHTS)
        at_least(1, batch_size=batch_size)
        at_least(0, lr=lr, inversion_lr=inversion_lr, inversion_steps=inversion_steps, inversion_norm=inversion_norm)
        if (lpips is None) == (perceptual is None):
            raise UserError("set one of model.lpips (trunk of LPIPS) and model.perceptual, not both or neither.")
        if mix_from is not None and not 0 <= mix_from <= 18:
            raise UserError(f"mix_from is {mix_from}; expected a layer from 0 to 18, or null.")
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        kinds = {"clip": "clip", "lpips": "lpips", "perceptual": "perceptual", "style_image": "file"}
        named = [(init_args[key], kind) for key, kind in kinds.items() if init_args.get(key)]
        return super().required_models(init_args) + named

    # ---- networks

    def kept(self, name: str) -> bool:
        return name.startswith(("styled.", "code"))

    def configure_model(self) -> None:
        if hasattr(self, "styled"):
            return
        h, model = self.hparams, self.load_source()
        self.styled = copy.deepcopy(model.generator).requires_grad_(True)
        for part in (self.styled.style, self.styled.to_rgb1, self.styled.to_rgbs):
            part.requires_grad_(False)
        self.register_buffer("code", torch.zeros(self.source.n_latent, self.source.style_dim))  # of I_A
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self.__dict__["judge"] = load_distance(h.lpips, h.perceptual).to(self.run_device)
            self.__dict__["clip"] = load_clip(h.clip).to(self.run_device)

    def named_optimizers(self) -> dict[str, tuple[Optimizer, None]]:
        trained = [p for p in self.styled.parameters() if p.requires_grad]
        return {"generator": (Adam(trained, self.hparams.lr, BETAS), None)}

    # ---- training

    def on_fit_start(self) -> None:
        h, folder = self.hparams, Path(self.trainer.default_root_dir)
        self.picture = open_face(existing(h.style_image), self.source.size, folder).to(self.device)
        if not self.code.any():  # a resumed run has it from its checkpoint
            self.code.copy_(self.photo_code(self.picture))
        with torch.no_grad():
            self.e_style = self.clip.image(self.picture)
            self.e_photo = self.clip.image(self.source(self.code[None]))
            self.target = self.judge.embed(shrink(self.picture))
        check_directions(self.e_photo, self.e_style, normalize=True)

    def photo_code(self, picture: Tensor) -> Tensor:
        """w+ (L, D) of the likely photo that resembles `picture` (1, 3, S, S) most."""
        h = self.hparams
        space = pnorm_space(self.source, noise.generator(self.seed, "P-norm"))
        found = invert(
            self.source,
            picture,
            self.judge,
            picture.new_zeros(1, self.source.n_latent, self.source.style_dim),
            space.to_w,
            steps=h.inversion_steps,
            lr=h.inversion_lr,
            pixel_weight=1.0,
            noise_weight=0.0,
            penalty=lambda v: h.inversion_norm * v.square().mean((1, 2)),
            ramps=False,
            seed=noise.number(self.seed, "inversion"),
        )
        return space.to_w(found.code[0])

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One step on random photos; those that G' still draws as G does leave the term across out.

        The gradient of an angle grows with the inverse of the length: at first it would be that of rounding, and so
        large that Adam remembers it for most of the run.
        """
        h = self.hparams
        z = torch.randn(h.batch_size, self.source.style_dim, generator=self.generator("styles")).to(self.device)
        w, maps = self.source.mapping(z), self.draw_noise(h.batch_size, "noise")
        with torch.no_grad():
            e_source = self.clip.image(self.source(w, maps))
        e_styled, drawn = self.clip.image(self.styled(w, maps)), self.styled(self.code[None])
        moved = direction(e_styled, e_source, normalize=True).norm(dim=1, keepdim=True) > UNMOVED
        with full_precision(drawn):
            losses = {
                "across": cross_loss(
                    self.e_photo, self.e_style, e_source, torch.where(moved, e_styled, e_source), normalize=True
                ),
                "within": in_loss(self.e_photo, self.e_style, e_source, e_styled, normalize=True),
                "reference": re_clip_loss(self.clip.image(drawn), self.e_style),
                "l2": F.mse_loss(drawn, self.picture),
                "lpips": perceptual_distance(self.judge, drawn, self.target).mean(),
            }
            self.optimize("generator", self.total_loss(losses, self.terms))

    # ---- what comes of it

    def stylize(self, w: Tensor, names: list[str]) -> Tensor:
        if self.hparams.mix_from is not None:
            layer = scaled(self.hparams.mix_from, self.source.n_latent)
            w = mix(w, self.code.expand(len(w), -1, -1), layer)
        return self.styled(w)

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        """The same random photos of G each time, and what becomes of them; the style picture."""
        z = torch.randn(PREVIEWS, self.source.style_dim, generator=noise.generator(self.seed, "preview"))
        w = truncate(self.source.mapping(z.to(self.latent_avg)), self.latent_avg, 0.7)
        w = w[:, None].expand(-1, self.source.n_latent, -1)
        columns = {"source": self.source(w), "result": self.stylize(w, [])}
        if hasattr(self, "picture"):
            columns |= {"style": self.picture, "its photo": self.source(self.code[None])}
        return {name: images.float().clamp(-1, 1) for name, images in columns.items()}

    def export(self, path: Path, layout: str) -> None:
        """Write G' in half precision, as `load_stylegan2` reads it."""
        save_stylegan2(path, StyleGAN2(self.styled, self.latent_avg), torch.half)
