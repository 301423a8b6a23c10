"""Train StyleGAN2 (arXiv 1912.04958) on the pictures of one domain.

Notation: B batch, D length of a style, L styles of a picture, w+ (B, L, D).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, Optimizer

from lightning_styles.batches import Needs
from lightning_styles.errors import UserError, at_least, within
from lightning_styles.losses.gan import (
    discriminator_loss,
    generator_loss,
    lazy_adam,
    path_lengths,
    path_penalty,
    r1_penalty,
)
from lightning_styles.models.diff_augment import diff_augment, draw
from lightning_styles.models.stylegan2 import Discriminator, Generator
from lightning_styles.models.stylegan2.layers import full_precision
from lightning_styles.models.stylegan2.mixing import mix, truncate
from lightning_styles.module import StyleModule
from lightning_styles.pretrained import locate
from lightning_styles.pretrained.stylegan2 import DRAWS, StyleGAN2, load_stylegan2, save_stylegan2
from lightning_styles.pretrained.weights import check_fit

PREVIEWS = 8  # pictures of each column


class StyleGAN2Pretraining(StyleModule):
    """Generator and discriminator in turn; both regularisers are lazy, in optimizer steps of their own.

    One iteration draws one batch of pictures, which both networks learn from: the discriminator first, the generator
    from what the discriminator then says. The average of the generator is the callback `EMA` with `only: [G.]`.

    Args:
        iterations: steps of the generator.
        start: generator to go on from, of these widths and layers, such as `DrawnStyleGAN2Pretraining` exports; None
            starts from random weights.
        widths: channels of both networks at 4 px, at 8 px and so on up to the size of the pictures.
        style_dim: D, length of z and w.
        mapping_layers: layers from z to w.
        r1: gamma, weight of the gradient penalty on real pictures. It grows with the pictures' area: 10 at 1024 px.
        r1_every: iterations between two of its steps.
        path: weight of the path-length penalty, 2 in the paper; 0 leaves it out.
        path_every: iterations between two of its steps.
        mixing: probability that the batch has two styles each, one above the other.
        augment: policies of `diff_augment`, in their order, for a small set of pictures.
        lr: learning rate of both networks.
        lr_generator: that of the generator, if it is another; 0 keeps it as it is, and only the discriminator learns.
        seed: key of all randomness.
    """

    needs = {"fit": (Needs(("image",)),)}
    formats = {"safetensors": "stylegan2.safetensors"}
    path_mean: Tensor

    def __init__(
        self,
        *,
        iterations: int,
        widths: list[int],
        style_dim: int = 512,
        mapping_layers: int = 8,
        start: str | None = None,
        r1: float = 10.0,
        r1_every: int = 16,
        path: float = 0.0,
        path_every: int = 4,
        mixing: float = 0.9,
        augment: list[str] | None = None,
        lr: float = 2e-3,
        lr_generator: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed)
        at_least(1, style_dim=style_dim, mapping_layers=mapping_layers, r1_every=r1_every, path_every=path_every)
        at_least(0, r1=r1, path=path, lr=lr, lr_generator=lr_generator)
        within(0, 1, mixing=mixing)
        if lr_generator == 0 and start is None:
            raise UserError("with model.lr_generator 0 the generator stays random; set model.start to a trained one.")
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        return [(init_args["start"], "stylegan2")] if init_args.get("start") else []

    def configure_model(self) -> None:
        if hasattr(self, "G"):
            return
        h = self.hparams
        channels = {4 * 2**i: width for i, width in enumerate(h.widths)}
        self.G = Generator(max(channels), h.style_dim, h.mapping_layers, channels=channels)
        if h.start:
            started = load_stylegan2(locate(h.start, "stylegan2")).generator.state_dict()
            check_fit(self.G, started, h.start)
            self.G.load_state_dict(started)
        self.D = Discriminator(max(channels), channels=channels)
        self.register_buffer("path_mean", torch.zeros(()))

    def named_optimizers(self) -> dict[str, tuple[Optimizer, None]]:
        h = self.hparams
        chosen = h.lr if h.lr_generator is None else h.lr_generator
        lr, betas = lazy_adam(chosen, h.path_every if h.path else None)
        lr_d, betas_d = lazy_adam(h.lr, h.r1_every)
        optimizers: dict[str, tuple[Optimizer, None]] = {}
        if chosen > 0:  # the first one counts the iterations
            optimizers["generator"] = (Adam(self.G.parameters(), lr, betas), None)
        return optimizers | {"discriminator": (Adam(self.D.parameters(), lr_d, betas_d), None)}

    # ---- one iteration

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        h, real = self.hparams, batch["image"]
        stays = h.lr_generator == 0
        with torch.set_grad_enabled(not stays):
            fake = self.G(self.draw_styles(len(real), "styles"), self.draw_noise(len(real), "noise"))
        if self.iteration % h.r1_every == 0:
            self.regularize_discriminator(real)
        self.train_discriminator(real, fake.detach())
        if stays:
            return
        lengthens = h.path > 0 and self.iteration % h.path_every == 0
        self.train_generator(fake, ends_iteration=not lengthens)
        if lengthens:
            self.regularize_generator(max(1, len(real) // 2))

    def train_discriminator(self, real: Tensor, fake: Tensor) -> None:
        """A step towards telling `real` from `fake`, both (B, 3, H, W)."""
        judged = self.judge(real, "real")
        loss = discriminator_loss(judged, self.judge(fake, "fake"))
        self.log_losses({"discriminator": loss, "real_sign": judged.sign().mean()})
        self.optimize("discriminator", loss)

    def train_generator(self, fake: Tensor, ends_iteration: bool) -> None:
        """A step of the generator that drew `fake` towards what the discriminator takes for real."""
        self.D.requires_grad_(False)
        loss = generator_loss(self.judge(fake, "drawn"))
        self.D.requires_grad_(True)
        self.log_losses({"generator": loss})
        self.optimize("generator", loss, ends_iteration=ends_iteration)

    def regularize_discriminator(self, real: Tensor) -> None:
        """The gradient penalty of all iterations since its last step."""
        with full_precision(real):
            image = real.detach().float().requires_grad_(True)
            penalty = r1_penalty(self.judge(image, "real"), image)
            self.log_losses({"r1": penalty})
            loss = self.hparams.r1 / 2 * self.hparams.r1_every * penalty
            self.optimize("discriminator", loss, ends_iteration=False)

    def regularize_generator(self, count: int) -> None:
        """The path-length penalty of all iterations since its last step, on `count` pictures."""
        with full_precision(self.path_mean):
            w = self.draw_styles(count, "path/styles")
            image = self.G(w, self.draw_noise(count, "path/noise"))
            lengths = path_lengths(image, w, self.randn_like(image, "path/direction"))
            penalty, self.path_mean = path_penalty(lengths, self.path_mean)
            self.log_losses({"path": penalty})
            self.optimize("generator", self.hparams.path * self.hparams.path_every * penalty)

    def judge(self, image: Tensor, purpose: str) -> Tensor:
        """Logits (B, 1) of `image` (B, 3, H, W), augmented."""
        policies = self.hparams.augment
        if policies:
            image = diff_augment(image, draw(len(image), self.generator(f"augment/{purpose}")), policies)
        return self.D(image)

    def draw_styles(self, batch: int, purpose: str) -> Tensor:
        """w+ of `batch` random pictures: of two styles each with the probability `mixing`, else of one."""
        h, generator = self.hparams, self.generator(purpose)
        layers = self.G.n_latent
        first, second = self.G.mapping(torch.randn(2, batch, h.style_dim, generator=generator).to(self.device))
        mixes = torch.rand((), generator=generator).item() < h.mixing
        index = int(torch.randint(1, layers, (), generator=generator)) if mixes else layers
        return mix(first, second, index, layers)

    def draw_noise(self, batch: int, purpose: str) -> list[Tensor]:
        """Noise maps of `batch` pictures, on the device of the networks."""
        return self.G.draw_noise(batch, self.generator(purpose))

    # ---- what comes of it

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        """The same random pictures each time, at psi 0.7 and untruncated, and two with each other's fine layers."""
        generator = torch.Generator().manual_seed(self.seed)
        w = self.G.mapping(torch.randn(PREVIEWS, self.hparams.style_dim, generator=generator).to(self.device))
        mean = self.G.mean_latent(DRAWS, generator)
        near = truncate(w, mean, 0.7)
        columns = {"result": near, "psi 1": w, "mixed": mix(near, near.flip(0), self.G.n_latent // 2, self.G.n_latent)}
        return {name: self.G(styles).float().clamp(-1, 1) for name, styles in columns.items()}

    def export(self, path: Path, layout: str) -> None:
        """Save both networks and the mean of w in half precision, as `load_stylegan2` reads them."""
        mean = self.G.mean_latent(DRAWS, torch.Generator().manual_seed(self.seed))[0]
        save_stylegan2(path, StyleGAN2(self.G, mean, self.D), torch.half)
