"""Finetuning of StyleGAN2 (arXiv 1912.04958): generator and discriminator in turn, lazy regularisers, augmentation.

Notation: G the frozen generator, G' its finetuned copy, D the discriminator; B batch, L styles of a picture, D length
of a style, z+ and w+ (B, L, D).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lightning_styles import noise
from lightning_styles.errors import UserError
from lightning_styles.losses.gan import discriminator_loss, lazy_adam, path_lengths, path_penalty, r1_penalty
from lightning_styles.methods.encoded_faces import EncodedFaces
from lightning_styles.models.augmentation import Augmentation
from lightning_styles.models.stylegan2.layers import NoiseInjection, full_precision
from lightning_styles.pretrained import locate
from lightning_styles.pretrained.stylegan2 import (
    DRAWS,
    StyleGAN2,
    load_discriminator,
    save_rosinality,
    save_stylegan2,
)


class FinetunedStyleGAN(EncodedFaces):
    """The networks of a finetuned StyleGAN2 and the steps of its game; settings are those of `PseudoPairedStyleGAN`.

    Attributes:
        source, latent_avg: G and the mean of its w, see `EncodedFaces`.
        styled: G', which is trained.
        average: the running average of G', which draws results.
        discriminator: D.
        augmentation: of what D sees.
    """

    formats = {"rosinality": "stylegan2.pt", "safetensors": "stylegan2.safetensors"}
    path_mean: Tensor

    def configure_model(self) -> None:
        if hasattr(self, "styled"):
            return
        h, model = self.hparams, self.load_source(finetune=self.hparams.discriminator is None)
        self.styled = copy.deepcopy(model.trained or model.generator).requires_grad_(True)
        self.average = copy.deepcopy(model.generator)
        if h.discriminator:
            model.discriminator = load_discriminator(locate(h.discriminator, "stylegan2"))
        assert model.discriminator is not None
        if model.discriminator.size != model.generator.size:
            raise UserError(
                f"discriminator {h.discriminator} judges {model.discriminator.size} px, {h.source} draws "
                f"{model.generator.size} px; give the one that was trained with it."
            )
        self.discriminator = model.discriminator.requires_grad_(True)
        layers = self.discriminator.layers()
        if h.freeze_d >= len(layers):
            raise UserError(f"freeze_d is {h.freeze_d}; the discriminator has {len(layers)} layers, freeze fewer.")
        for layer in layers[: h.freeze_d]:
            layer.requires_grad_(False)
        for part, original in zip(self.styled.modules(), model.generator.modules(), strict=True):
            noise_of_layer = isinstance(part, NoiseInjection)
            if (noise_of_layer and h.freeze_noise) or (part is self.styled.style and h.freeze_mapping):
                part.load_state_dict(original.state_dict())  # G's own, not those of its training copy
                part.requires_grad_(False)
        self.augmentation = Augmentation(
            h.augment, h.policies or ["translation", "cutout"], h.ada_start, h.ada_target, h.ada_ramp
        )
        self.register_buffer("path_mean", torch.zeros(()))

    def named_optimizers(self) -> dict[str, tuple[Optimizer, None]]:
        h = self.hparams
        lr, betas = lazy_adam(h.lr, h.path_every if h.path else None)
        lr_d, betas_d = lazy_adam(h.lr, h.r1_every if h.r1 else None)
        return {
            "generator": (Adam(trained(self.styled), lr, betas), None),
            "discriminator": (Adam(trained(self.discriminator), lr_d, betas_d), None),
        }

    # ---- the steps

    def train_discriminator(self, real: Tensor, fake: Tensor) -> None:
        """A step towards telling `real` from `fake`, both (B, 3, H, W)."""
        judged = self.judged(real, "real")
        loss = discriminator_loss(judged, self.judged(fake, "fake"))
        self.augmentation.observe(judged, self.iteration, self._sum)
        self.log_losses({"discriminator": loss})
        if self.hparams.augment == "ada":
            self.log("train/ada_p", self.augmentation.p)
        self.optimize("discriminator", loss)

    def regularize_discriminator(self, real: Tensor) -> None:
        """The gradient penalty of all iterations since its last step."""
        with full_precision(real):
            image = real.detach().float().requires_grad_(True)
            penalty = r1_penalty(self.judged(image, "real"), image)
            self.log_losses({"r1": penalty})
            self.optimize("discriminator", self.hparams.r1 / 2 * self.hparams.r1_every * penalty)

    def regularize_generator(self, count: int) -> None:
        """The path-length penalty of all iterations since its last step, on `count` pictures."""
        with full_precision(self.path_mean):
            w = self.styled.mapping(self.draw_codes(count, "path/codes"))
            if not w.requires_grad:
                w.requires_grad_(True)
            image = self.styled(w, self.draw_noise(count, "path/noise"))
            direction = torch.empty_like(image).normal_(generator=self.device_generator("path/direction"))
            penalty, mean = path_penalty(path_lengths(image, w, direction), self.path_mean.clone())
            self.path_mean.copy_(self.trainer.strategy.reduce(mean, reduce_op="mean"))
            self.log_losses({"path": penalty})
            self.optimize("generator", self.hparams.path * self.hparams.path_every * penalty)

    @torch.no_grad()
    def update_average(self) -> None:
        """One iteration of the average of G'; noise maps are no part of it."""
        ours, theirs = ([p.data for p in g.parameters()] for g in (self.average, self.styled))
        torch._foreach_lerp_(ours, theirs, 1 - self.hparams.ema)  # type: ignore[reportPrivateImportUsage]

    def judged(self, image: Tensor, purpose: str) -> Tensor:
        """Logits (B, 1) of `image` (B, 3, H, W), augmented."""
        return self.discriminator(self.augmentation(image, self.generator(f"augment/{purpose}")))

    # ---- what is drawn

    def draw_codes(self, batch: int, purpose: str) -> Tensor:
        """z+ (B, L, D): one style for all layers, two (`mixing`), or L of them (`z_plus`)."""
        h, draw, layers = self.hparams, self.generator(purpose), self.styled.n_latent
        apart = torch.randn(batch, layers, self.styled.style_dim, generator=draw)
        mixes = torch.rand((), generator=draw).item() < h.mixing
        crossover = int(torch.randint(1, layers, (), generator=draw)) if mixes else layers
        together = apart[:, (torch.arange(layers) >= crossover).long()]
        is_apart = torch.rand(batch, 1, 1, generator=draw) < h.z_plus
        return torch.where(is_apart, apart, together).to(self.device)

    def draw_noise(self, batch: int, purpose: str) -> list[Tensor]:
        """Noise maps of `batch` pictures."""
        return self.styled.draw_noise(batch, self.device_generator(purpose))

    def device_generator(self, purpose: str) -> torch.Generator:
        """The generator of this purpose where the networks are: megabytes of noise are slow to draw elsewhere."""
        draw = self.generator(purpose)
        if self.device.type == "cpu":
            return draw
        return torch.Generator(self.device).manual_seed(draw.initial_seed())

    def _sum(self, x: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(x, reduce_op="sum")  # type: ignore[return-value]

    # ---- what comes of it

    @property
    def mean(self) -> Tensor:
        """(D,), the mean of w of G'."""
        if self.hparams.freeze_mapping:
            return self.latent_avg
        return self.average.mean_latent(DRAWS, noise.generator(self.seed, "mean of w"))[0]

    def export(self, path: Path, layout: str) -> None:
        """Write the average of G' with G' and D, as `load_stylegan2` and rosinality's code read them."""
        model = StyleGAN2(self.average, self.mean, self.discriminator, self.styled)
        (save_rosinality if layout == "rosinality" else save_stylegan2)(path, model)


def trained(network: nn.Module) -> list[nn.Parameter]:
    """The parameters of `network` that are not frozen."""
    return [p for p in network.parameters() if p.requires_grad]


@contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Within the block no parameter of `network` gets a gradient."""
    free = trained(network)
    network.requires_grad_(False)
    try:
        yield
    finally:
        for p in free:
            p.requires_grad_(True)
