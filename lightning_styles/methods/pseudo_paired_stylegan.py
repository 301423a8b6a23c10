"""Facial stylization by a finetuned StyleGAN2: semantic constraint and pseudo pairs (Lu and Zhou 2025).

Notation: G the frozen generator of photographs, G' its finetuned copy, G* one finetuned without constraints, D the
discriminator, S style pictures; B batch, L styles of a picture, D length of a style, z+ and w+ (B, L, D).
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_styles import noise
from lightning_styles.batches import Needs
from lightning_styles.errors import UserError, at_least, check_keys, weights_of, within
from lightning_styles.losses.gan import generator_loss
from lightning_styles.losses.semantic import perceptual_distance, semantic_distance, shrink
from lightning_styles.methods.finetuned_stylegan import without_gradients
from lightning_styles.methods.pseudo_pairs import Pairs, Targets
from lightning_styles.methods.pseudo_pairs_prepare import Preparation
from lightning_styles.methods.stylized_faces import StylizedFaces
from lightning_styles.metrics.perceptual import load_distance
from lightning_styles.metrics.semantic import SemanticDistance
from lightning_styles.models.augmentation import Kind as Augment
from lightning_styles.models.diff_augment import POLICIES
from lightning_styles.models.psp import Space
from lightning_styles.models.stylegan2.layers import full_precision
from lightning_styles.models.stylegan2.mixing import truncate
from lightning_styles.models.stylegan2.pairing import PairSettings

TERMS = {"adversarial": 1.0, "semantic": 1.0, "paired": 1.0}
PREVIEWS = 4


class PseudoPairedStyleGAN(StylizedFaces):
    """Finetune StyleGAN2 on style pictures until photographs encoded into its codes come out stylized.

    One iteration is one step of the discriminator and one of the generator, on one batch of styles: the pictures that
    the discriminator judges are those that the semantic constraint compares with G's. Regularisers are steps of their
    own. With all weights of constraints 0 it is plain finetuning. `prepare` makes the pseudo pairs, and G* before
    them; fit does it where they are missing. With several devices run `prepare` before fit.

    Args:
        source: G with its discriminator.
        discriminator: file of the discriminator, where that of `source` has none.
        encoder: of photographs and, for the pairs, of style pictures into Z+.
        encoder_space: where its codes lie, which `.pt` files do not say.
        refiner: encoder into W+ for level 3 of the pairs.
        content: which of the two encodes photographs in `predict`.
        lpips: trunk of LPIPS; None where `perceptual` is given instead.
        perceptual: small perceptual network in place of LPIPS.
        identity: identity network; None leaves its terms out.
        iterations: steps of the generator.
        weights: of the terms adversarial, semantic and paired; 1 each where left out.
        identity_weight: of the identity distance within the semantic term.
        pair_batch: pseudo pairs in each step.
        level: of the pseudo pairs; None takes the best of each style picture.
        pairs: how they are made, see `PairSettings`.
        finetuned: G*; None trains it.
        finetune_iterations: of G*.
        lr: Adam's learning rate of both networks.
        r1: gamma, weight of the gradient penalty on style pictures.
        r1_every: iterations between two of its steps.
        path: weight of the path-length penalty, 2 in StyleGAN2; 0 leaves it out.
        path_every: iterations between two of its steps.
        mixing: probability that the batch has two styles each, one above the other.
        z_plus: part of the pictures whose L styles are drawn apart, as those of encoded photographs are.
        freeze_mapping: keep the mapping network of G, so that G and G' share w.
        freeze_noise: keep the strengths of the noise in G. Where G hardly uses its noise, a short finetuning would
            draw with it what styles should draw.
        freeze_d: layers of the discriminator, from RGB on, that stay as they are (FreezeD, arXiv 2002.10964).
        augment: "ada", "diffaugment" or "none".
        policies: of DiffAugment.
        ada_start: ADA's first probability; 0.2 suits fewer than 200 style pictures.
        ada_target: mean sign of the logits of style pictures that ADA holds.
        ada_ramp: pictures in which its probability can move by 1.
        ema: decay of the average of G', per iteration.
        mode: of `predict` and `test`: "standard" draws photographs with their own styles, "multimodal" with random
            ones from `layer` on, "reference" with those of `reference` from there on.
        layer: the first one of the style; the larger, the subtler. Several come as one labelled picture. None: layer 9
            (multimodal) or 6 (reference) of 18, scaled to those of the generator.
        psi: truncation of the random styles (multimodal) or of the photographs' (else). None: 0.7 or 1.
        samples: results of each photograph (multimodal); several come as one labelled picture.
        reference: picture of a face in the style, aligned, or with landmarks beside it.
        reference_steps: of the search for its styles, which are then kept in `cache`.
        paste_back: put faces that were cut out of photographs back there.
        feature_cache: GB of memory for what the style pictures look like to the perceptual network.
        semantic_samples: pictures of the semantic distance of G and G' in `validate` and `test`; 0 leaves it out.
        cache: folder of G*, the pairs and the references.
        metrics: name -> network or folder for `validate` and `test`, see `lightning_styles.metrics`; the style pictures
            of the data are the style_images where it names none.
        seed: key of all randomness.
    """

    folders = ("cache",)
    needs = StylizedFaces.needs | {"fit": (Needs(("image",), ("squares",)),), "prepare": (Needs(data=("squares",)),)}
    fit_only = ("lpips", "perceptual", "identity", "finetuned")
    trained_first = True
    judge: Any
    judge_of_identity: Any

    def __init__(
        self,
        *,
        source: str,
        discriminator: str | None = None,
        encoder: str | None = None,
        encoder_space: Space | None = None,
        refiner: str | None = None,
        content: Literal["encoder", "refiner"] = "encoder",
        lpips: str | None = None,
        perceptual: str | None = None,
        identity: str | None = None,
        iterations: int = 1500,
        weights: dict[str, float] | None = None,
        identity_weight: float = 0.5,
        pair_batch: int = 4,
        level: Literal[1, 2, 3] | None = None,
        pairs: dict[str, Any] | None = None,
        finetuned: str | None = None,
        finetune_iterations: int = 2400,
        lr: float = 2e-3,
        r1: float = 10.0,
        r1_every: int = 16,
        path: float = 0.0,
        path_every: int = 4,
        mixing: float = 0.9,
        z_plus: float = 0.5,
        freeze_mapping: bool = True,
        freeze_noise: bool = False,
        freeze_d: int = 0,
        augment: Augment = "ada",
        policies: list[str] | None = None,
        ada_start: float = 0.0,
        ada_target: float = 0.6,
        ada_ramp: int = 100_000,
        ema: float = 0.9978,
        mode: Literal["standard", "multimodal", "reference"] = "standard",
        layer: int | list[int] | None = None,
        psi: float | None = None,
        samples: int = 1,
        reference: str | None = None,
        reference_steps: int = 1000,
        paste_back: bool = False,
        feature_cache: float = 8.0,
        semantic_samples: int = 0,
        cache: str = "runs/pseudo_pairs",
        metrics: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, metrics=metrics)
        check_keys("policies", policies or [], POLICIES)
        self.terms = weights_of(weights, TERMS)
        at_least(1, r1_every=r1_every, path_every=path_every, pair_batch=pair_batch, ada_ramp=ada_ramp)
        at_least(1, finetune_iterations=finetune_iterations)
        at_least(0, lr=lr, r1=r1, path=path, identity_weight=identity_weight, freeze_d=freeze_d)
        at_least(0, feature_cache=feature_cache, semantic_samples=semantic_samples)
        within(0, 1, mixing=mixing, z_plus=z_plus, ema=ema, ada_start=ada_start)
        within(-1, 1, ada_target=ada_target)
        if lpips is not None and perceptual is not None:
            raise UserError("set one of model.lpips (trunk of LPIPS) and model.perceptual, not both.")
        if lpips is None and perceptual is None and (self.terms["semantic"] or self.terms["paired"]):
            raise UserError("the semantic and the paired term need a judge: set model.lpips or model.perceptual.")
        if self.terms["paired"] and encoder is None:
            raise UserError("the paired term needs model.encoder, an encoder into Z+; or set its weight to 0.")
        if content == "refiner" and refiner is None:
            raise UserError("content is refiner, which encodes photographs, and there is none: set model.refiner.")
        if level == 3 and refiner is None:
            raise UserError("level is 3, but without model.refiner, an encoder into W+, there are 2.")
        self.pair_settings = PairSettings.of(pairs or {})
        self.save_hyperparameters()
        self.check_mode()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        kinds = {"discriminator": "stylegan2", "refiner": "psp", "finetuned": "file", "reference": "file"}
        kinds |= {key: key for key in ("lpips", "perceptual", "identity")}
        named = [(init_args[key], kind) for key, kind in kinds.items() if init_args.get(key)]
        return super().required_models(init_args) + named

    @property
    def content(self) -> str:
        return self.hparams.content

    # ---- networks

    def configure_model(self) -> None:
        if hasattr(self, "styled"):
            return
        super().configure_model()
        h, running = self.hparams, None if self._trainer is None else self.trainer.state.fn
        networks: dict[str, nn.Module | None] = {"judge": None, "judge_of_identity": None}
        if running == "fit" and (h.lpips or h.perceptual):
            networks["judge"] = load_distance(h.lpips, h.perceptual)
        if running == "fit" and h.identity:
            from lightning_styles.pretrained.networks import load_identity

            networks["judge_of_identity"] = load_identity(h.identity)
        for name, network in networks.items():
            self.__dict__[name] = network and network.to(self.run_device)

    # ---- pseudo pairs

    def prepare(self, datamodule: Any) -> None:
        """Make the pseudo pairs of the style pictures, and G* before them, unless they are there."""
        Preparation(self, datamodule).tell()

    def on_fit_start(self) -> None:
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        preparation = Preparation(self, datamodule)
        preparation.check()
        self.shown = self.styles_to_show()
        self.targets: Targets | None = None
        if not self.terms["paired"]:
            return
        if self.trainer.is_global_zero:
            preparation.find()
        self.trainer.strategy.barrier()
        self.pairs: Pairs = preparation.find().to(self.device)
        self.targets = Targets(self.judge, self.pairs.style, self.hparams.feature_cache)

    # ---- one iteration

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        h, real = self.hparams, batch["image"]
        z = self.draw_codes(len(real), "codes")
        maps = self.draw_noise(len(real), "noise")
        fake = self.styled(self.styled.mapping(z), maps)
        self.train_discriminator(real, fake.detach())
        if h.r1 and self.iteration % h.r1_every == 0:
            self.regularize_discriminator(real)
        lengthens = h.path > 0 and self.iteration % h.path_every == 0
        self.train_generator(fake, z, maps, ends_iteration=not lengthens)
        if lengthens:
            self.regularize_generator(max(1, len(real) // 2))
        self.update_average()

    def train_generator(self, fake: Tensor, z: Tensor, maps: list[Tensor], ends_iteration: bool) -> None:
        """A step of G', which drew `fake` (B, 3, H, W) from z+ and noise maps, by all terms."""
        losses = {}
        if self.terms["adversarial"]:
            with without_gradients(self.discriminator):
                losses["adversarial"] = generator_loss(self.judged(fake, "drawn"))
        if self.terms["semantic"]:
            losses["semantic"] = self.semantic_loss(fake, z, maps)
        if self.terms["paired"]:
            losses["paired"] = self.paired_loss()
        self.optimize("generator", self.total_loss(losses, self.terms), ends_iteration=ends_iteration)

    # ---- the terms

    def semantic_loss(self, image: Tensor, z: Tensor, maps: list[Tensor]) -> Tensor:
        """How far G'(z+) = `image` is from G(z+) with the same noise maps."""
        with torch.no_grad():
            original = self.source(self.source.mapping(z), maps)
        with full_precision(image):
            weight = self.hparams.identity_weight
            return semantic_distance(self.judge, self.judge_of_identity, image, original, weight).mean()

    def paired_loss(self) -> Tensor:
        """How far G' is from style pictures at the codes of their pseudo pairs."""
        assert self.targets is not None
        order = torch.randperm(len(self.pairs.w), generator=self.generator("pairs"))
        chosen = order[: self.hparams.pair_batch].tolist()
        image = self.styled(self.pairs.w[chosen], self.draw_noise(len(chosen), "pairs/noise"))
        with full_precision(image):
            return perceptual_distance(self.judge, image, self.targets.maps(chosen)).mean()

    # ---- evaluation

    def _log_evaluation(self, stage: str) -> None:
        super()._log_evaluation(stage)
        h, count = self.hparams, self.hparams.semantic_samples
        if not count:
            return
        named = self.metrics if {"lpips", "perceptual"} & self.metrics.keys() else h
        judge = load_distance(named.get("lpips"), named.get("perceptual"))
        distance = SemanticDistance(judge, self.seed).to(self.device)
        rank, world = self.global_rank, self.trainer.world_size
        distance.update(self.source, self.average, self.latent_avg, range(rank, count, world))
        self.log_dict({f"{stage}/semantic": distance.compute(), f"{stage}/semantic_n": float(count)})

    # ---- what comes of it

    @torch.no_grad()
    def styles_to_show(self) -> Tensor:
        """w (B, D) of the same photographs each time, at psi 0.7."""
        draw = noise.generator(self.seed, "previews")
        z = torch.randn(PREVIEWS, self.source.style_dim, generator=draw).to(self.device)
        return truncate(self.source.mapping(z), self.latent_avg, 0.7)

    @torch.no_grad()
    def preview(self) -> dict[str, Tensor]:
        """Photographs of G and what G' makes of their styles; some style pictures and their pseudo pairs."""
        if not hasattr(self, "shown"):
            return {}
        columns = {"source": self.source(self.shown), "result": self.average(self.shown)}
        if self.targets is not None:
            w = self.pairs.w[:PREVIEWS]
            columns |= {"pair": self.source(w), "pair result": self.average(w), "style": self.pairs.style[:PREVIEWS]}
        count = min(len(column) for column in columns.values())
        return {name: shrink(column[:count].float()).clamp(-1, 1) for name, column in columns.items()}

    def closing_lines(self) -> list[str]:
        if self._trainer is None or self.trainer.state.fn != "fit" or self.trainer.log_dir is None:
            return []
        return [f"Next: python -m lightning_styles stylize PHOTOS --style {self.trainer.log_dir} --out out"]
