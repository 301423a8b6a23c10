"""Train a pSp encoder (arXiv 2008.00951) for a generator, on pictures that the generator draws itself.

Notation: B batch, D length of a style, L styles of a picture, S side of the generator's pictures, w+ (B, L, D).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles import noise
from lightning_styles.batches import EVALUATION, Needs
from lightning_styles.errors import UserError, at_least, check_keys, weights_of, within
from lightning_styles.losses.codes import kl_divergence, moment_penalty, w_norm
from lightning_styles.losses.semantic import SEEN, identity_distance, shrink
from lightning_styles.metrics.perceptual import load_distance
from lightning_styles.models.psp import GradualStyleEncoder, Space, sample_codes, to_w_plus
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.models.stylegan2.mixing import truncate
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.pretrained.psp import PSP, load_psp, save_psp, take_trunk
from lightning_styles.pretraining.base import Pretraining
from lightning_styles.square import Fit, from_square, to_square

WEIGHTS = {"mse": 1.0, "perceptual": 0.8, "identity": 0.1, "kl": 5e-4, "moments": 1e-3}
WEIGHTS |= {"codes": 0.0, "latents": 0.0, "w_norm": 0.0}
PICTURE = ("mse", "perceptual", "identity")
PREVIEWS = 8  # pictures of a preview


class PSpPretraining(Pretraining):
    """Encoder into W+ or Z+ of a frozen generator: what it encodes, the generator draws again.

    No data set is needed: an iteration draws `generated` pictures, whose styles and noise maps are known exactly. The
    pictures that the data module brings besides (`image`, any size) count as well; one that only counts iterations,
    such as `Pictures`, brings none. `predict` shows what becomes of photos, `test` measures it.

    Args:
        iterations: optimizer steps.
        stylegan2: the generator.
        space: where the codes lie: "w_plus" (offsets from the mean of w) or "z_plus" (through the mapping network).
        variational: put AgileGAN's head on top, into Z+ only.
        architecture: size (px of the encoder's pictures), widths, blocks and head_width of `GradualStyleEncoder`; the
            official ones where left out, 256 px or what the generator has.
        trunk: face recognition network whose weights an encoder of the official widths begins with.
        start: file of an encoder of this architecture to go on from; None starts from random weights.
        generated: pictures that an iteration draws.
        psi: truncation of these.
        mixing: share of these whose upper layers have another style, from a random layer on.
        weights: of the terms mse, perceptual, identity, kl (variational head), moments (plain codes in Z+), codes
            (squared error of w+ of what was drawn), latents (the same of the first numbers of z+, which the data bring,
            for the pictures of `DrawnStyleGAN2Pretraining`) and w_norm; those of the papers where left out, 0 for the
            last three. Where those of mse, perceptual and identity are 0, nothing is drawn again.
        lpips: trunk of LPIPS; None where `perceptual` is given instead.
        perceptual: small perceptual network in place of LPIPS.
        identity: identity network; None leaves its term out.
        lr: peak learning rate of Adam.
        warmup: iterations of linear warm-up.
        fit_to_square: how pictures of other aspect ratios become squares, see `to_square`.
        metrics: name -> network or folder for `validate` and `test`, see `lightning_styles.metrics`.
        seed: key of all randomness.
    """

    needs = {"fit": (Needs(),), **dict.fromkeys(EVALUATION, (Needs(("image", "name")),))}
    formats = {"safetensors": "psp.safetensors"}
    fit_only = ("lpips", "perceptual", "identity", "trunk", "start")
    weight_decay = 0.0

    G: Generator
    judge: Any
    recogniser: Any
    latent_avg: Tensor

    def __init__(
        self,
        *,
        iterations: int,
        stylegan2: str,
        space: Space = "z_plus",
        variational: bool = False,
        architecture: dict[str, Any] | None = None,
        trunk: str | None = None,
        start: str | None = None,
        generated: int = 8,
        psi: float = 1.0,
        mixing: float = 0.0,
        weights: dict[str, float] | None = None,
        lpips: str | None = None,
        perceptual: str | None = None,
        identity: str | None = None,
        lr: float = 1e-4,
        warmup: int = 0,
        fit_to_square: Fit = "crop",
        metrics: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, metrics=metrics)
        self.terms = weights_of(weights, WEIGHTS)
        check_keys("architecture", architecture or {}, ("size", "widths", "blocks", "head_width"))
        at_least(0, generated=generated, warmup=warmup, lr=lr, psi=psi)
        within(0, 1, mixing=mixing)
        if (lpips is None) == (perceptual is None):
            raise UserError("set one of model.lpips (trunk of LPIPS) and model.perceptual, not both or neither.")
        if variational and space != "z_plus":
            raise UserError(f"variational codes are normal as z+ is, but space is {space}; set space to z_plus.")
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        kinds = {"stylegan2": "stylegan2", "lpips": "lpips", "perceptual": "perceptual", "identity": "identity"}
        kinds |= {"trunk": "identity", "start": "psp"}
        named = [(init_args[key], kind) for key, kind in kinds.items() if init_args.get(key)]
        return named + super().required_models(init_args)

    # ---- networks

    def kept(self, name: str) -> bool:
        return name.startswith("encoder.")

    def configure_model(self) -> None:
        """Only the encoder is a submodule, so that no precision of a run casts the others."""
        if hasattr(self, "encoder"):
            return
        from lightning_styles.pretrained.stylegan2 import load_stylegan2

        h, path = self.hparams, locate(self.hparams.stylegan2, "stylegan2")
        self.base_models = {h.stylegan2: fingerprint(path)}
        base = load_stylegan2(path)
        self.__dict__["G"] = base.generator.to(self.run_device)
        self.__dict__["latent_avg"] = base.latent_avg.to(self.run_device)
        arguments: dict[str, Any] = {"size": min(SEEN, self.G.size)} | (h.architecture or {})
        if arguments["size"] > self.G.size:
            raise UserError(f"architecture.size is {arguments['size']}; {h.stylegan2} draws {self.G.size} px.")
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
        self.encoder = GradualStyleEncoder(self.G.n_latent, self.G.style_dim, variational=h.variational, **arguments)
        if self.terms["latents"]:  # random codes would first be shrunk to nothing, and the trunk with them
            for head in self.encoder.styles.children():
                head.get_submodule("linear").get_parameter("weight").data.mul_(1e-2)
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self._load_judges()

    def _load_judges(self) -> None:
        from lightning_styles.pretrained.judges import load_arcface
        from lightning_styles.pretrained.networks import load_identity

        h = self.hparams
        self.__dict__["judge"] = load_distance(h.lpips, h.perceptual).to(self.run_device)
        self.__dict__["recogniser"] = load_identity(h.identity).to(self.run_device) if h.identity else None
        if h.trunk:
            take_trunk(self.encoder, load_arcface(locate(h.trunk, "identity")))
        if h.start:
            self.encoder.load_state_dict(load_psp(locate(h.start, "psp")).encoder.state_dict())

    # ---- training

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        h = self.hparams
        brought = to_square(batch["image"], self.G.size, h.fit_to_square) if "image" in batch else None
        count = h.generated + (0 if brought is None else len(brought))
        if not count:
            raise UserError("there is nothing to encode: set model.generated, or give data that brings pictures.")
        maps = self.draw_noise(count)
        w, image = self.draw(h.generated, [x[: h.generated] for x in maps])
        image = image if brought is None else torch.cat([image, brought])
        codes, found, losses = self.encode(image)
        weights = self.terms
        if any(weights[name] for name in PICTURE):
            losses |= self.picture_terms(self.G(found, maps), image)
        if h.generated:
            losses["codes"] = F.mse_loss(found[: h.generated], w)
        if weights["latents"]:
            losses["latents"] = self.latents_term(codes[h.generated :], batch)
        self.optimize("network", self.total_loss(losses, weights))

    @torch.no_grad()
    def draw(self, count: int, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """w+ (count, L, D) of this iteration's styles, and their pictures (count, 3, S, S)."""
        random, layers = self.generator("styles"), self.G.n_latent
        z = torch.randn(2, count, self.G.style_dim, generator=random)
        index = torch.randint(1, layers, (count, 1, 1), generator=random)
        mixed = torch.rand(count, 1, 1, generator=random) < self.hparams.mixing
        index = torch.where(mixed, index, layers).to(self.device)
        below, above = truncate(self.G.mapping(z.to(self.device)), self.latent_avg, self.hparams.psi)[:, :, None]
        w = torch.where(torch.arange(layers, device=self.device)[:, None] < index, below, above)
        return w, self.G(w, maps).float()

    def draw_noise(self, count: int) -> list[Tensor]:
        """This iteration's noise maps of `count` pictures, drawn on the device: at 1024 px they are millions."""
        draw = self.generator("maps")
        if self.device.type != "cpu":
            draw = torch.Generator(self.device).manual_seed(draw.initial_seed())
        return self.G.draw_noise(count, draw)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Codes and w+ (B, L, D) of squares (B, 3, S, S), and the terms on them."""
        h, seen = self.hparams, shrink(image, self.encoder.size)
        if h.variational:
            mean, log_variance = (x.float() for x in self.encoder.posterior(seen))
            terms = {"kl": kl_divergence(mean, log_variance)}
            codes = sample_codes(mean, log_variance, self.randn_like(mean, "codes"))
        else:
            codes = self.encoder(seen).float()
            terms = {"moments": moment_penalty(codes)} if h.space == "z_plus" else {}
        w = to_w_plus(codes, h.space, self.G, self.latent_avg)
        return codes, w, terms | {"w_norm": w_norm(w, self.latent_avg)}

    def latents_term(self, codes: Tensor, batch: dict[str, Any]) -> Tensor:
        """Squared error of the first of `codes` (B, L, D) of the data's pictures against their latents (B, K)."""
        if self.hparams.space != "z_plus" or "latents" not in batch:
            raise UserError("the weight latents is for z_plus and data that bring latents, such as ScenePool's.")
        latents = batch["latents"][: len(codes), None]
        if latents.shape[2] > codes.shape[2]:
            raise UserError(f"a picture has {latents.shape[2]} latents, codes have {codes.shape[2]} numbers.")
        return F.mse_loss(codes[..., : latents.shape[2]], latents.expand(-1, codes.shape[1], -1))

    def picture_terms(self, image: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What `image` lacks of `target`, both (B, 3, S, S)."""
        image, target = shrink(image), shrink(target)
        terms = {"mse": F.mse_loss(image, target), "perceptual": self.judge(image, target).mean()}
        if self.recogniser is not None:
            terms["identity"] = identity_distance(self.recogniser, image, target).mean()
        return terms

    # ---- what comes of it

    @torch.no_grad()
    def reconstruct(self, image: Tensor) -> Tensor:
        """Squares (B, 3, S, S), encoded and drawn again with the stored noise maps."""
        codes = self.encoder(shrink(image, self.encoder.size)).float()
        return self.G(to_w_plus(codes, self.hparams.space, self.G, self.latent_avg)).float().clamp(-1, 1)

    def preview(self) -> dict[str, Tensor]:
        """The same random pictures each time, and what becomes of them."""
        z = torch.randn(PREVIEWS, self.G.style_dim, generator=noise.generator(self.seed, "preview")).to(self.device)
        image = self.G(truncate(self.G.mapping(z), self.latent_avg, self.hparams.psi)).float().clamp(-1, 1)
        return {"source": image, "result": self.reconstruct(image)}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:
        if self.finished.issuperset(batch["name"]):
            return None
        h, (height, width) = self.hparams, batch["image"].shape[-2:]
        squares = self.reconstruct(to_square(batch["image"], self.G.size, h.fit_to_square))
        shown = from_square(squares, height, width, h.fit_to_square)
        return {"image": list(shown), "name": batch["name"], "settings": dict(h)}

    def export(self, path: Path, layout: str) -> None:
        """Save the encoder in half precision, as `load_psp` reads it."""
        average = self.latent_avg.expand(self.G.n_latent, -1) if self.hparams.space == "w_plus" else None
        save_psp(path, PSP(self.encoder, self.hparams.space, average))
