"""Style Matching Score, per image (arXiv 2503.07601), with VSD, SDS, DDS and PDS as options of the same loop.

Notation: P pictures optimised together, each with its own fake score; z (P, 4, h, w) latents; t, t_prev (P,)
timesteps; y prompts, embedded as (P, 2, L, D) pairs of prompt and empty prompt.
"""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles import noise
from lightning_styles.batches import EVALUATION, Needs
from lightning_styles.checkpoint_fields import ANOTHER, CHECKPOINT_KEY
from lightning_styles.diffusion import latents, timesteps
from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.diffusion.scores import Query, Scores
from lightning_styles.errors import UserError, at_least, weights_of, within
from lightning_styles.files import file_name
from lightning_styles.imaging import pad_to_multiple, save_png
from lightning_styles.losses import score_distillation as distill
from lightning_styles.losses import spectrum
from lightning_styles.models.adapters import MOST_RANK, enable_gradient_checkpointing
from lightning_styles.module import StyleModule
from lightning_styles.precision import LOSS_SCALE
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.prompts import check_prompts, fill
from lightning_styles.reading import expect

WEIGHTS = {"style": 1.0, "identity": 0.0005}
log = logging.getLogger(__name__)


class SMS(StyleModule):
    """Optimise a picture's latent until the style model and a fake score, learned along the way, agree on it.

    `fit` optimises the pictures of the data together, one size for all; `predict` runs the whole optimisation for
    each batch of pictures. Under DDP `fit` averages the gradients of independent (t, eps) draws of every rank.

    Args:
        base: Stable Diffusion base of the style model: folder, single file or name.
        style_lora: style LoRA (kohya, diffusers or PEFT safetensors); None uses the base alone.
        style: the style in words, as the LoRA knows it, such as "watercolor style".
        real: base of the real and fake scores; None is `base`.
        lora_strength: factor on the style LoRA.
        lora_partial: take a style LoRA too of which less than 90 % of the layers exist in the base.
        lora_text_encoder: also apply the LoRA's text-encoder part to the style model's prompts (official code: no).
        iterations: N of each picture.
        objective: the gradient g: "sms" and "vsd" match scores and learn a fake one, "sds", "dds" and "pds" do not.
        relevance: weigh g with the relevance map R (SMS); the other objectives' papers have none.
        identity: what ties the result to the source: "progressive" spectrum (SMS), "fixed" 30 % of the spectrum,
            "mse" of latents, or "none".
        spectrum_norm: "l1" (official code, to which the published weights belong) or the paper's squared "l2".
        weights: factors on the gradients of the terms `style` and `identity`; 1 and 0.0005 (official code) where left
            out.
        sampling: timesteps of the generator: adaptive "narrowing" (SMS), "uniform" below t_max, "linear" annealing, or
            the "full" range up to t = 979 whatever t_max is (VSD, SDS, DDS, PDS).
        fake_sampling: timesteps of the fake score: "code" stays below t_max, "paper" goes up to 979.
        t_min: smallest timestep t that is drawn, of 1000.
        t_max: end of the timesteps; at t_max the progressive spectrum term protects every frequency.
        grid_steps: L, length of the even grid from which t is drawn; the weight w_t looks one step of it back.
        fake_weight: weight of the fake score's loss: "alpha_bar_squared" (official code) or "none" (paper).
        guidance: classifier-free guidance of every score.
        edit_prompt: prompt of the relevance map; {style} and {caption} are filled in.
        target_prompt: prompt of style and fake scores (the paper's y_src would be "{caption}").
        source_prompt: prompt of the source in "dds" and "pds".
        optimizer: of the latents.
        lr: peak learning rate of the latents.
        eps: of AdamW. The gradient R g / numel is of the order of 1e-8 for 64 x 64 x 4 latents, so the default damps
            the steps; smaller latents want an eps larger by the ratio of their sizes to behave alike.
        weight_decay: of the latents under AdamW; pulls them towards 0, hence towards lower contrast.
        warmup: iterations of linear warm-up from 0.
        fake_lr: learning rate of the fake score's LoRA.
        rank: of the fake score's LoRA.
        alpha: of the fake score's LoRA; it is scaled by alpha / rank.
        posterior: take a "sample" (official code) or the "mode" of the VAE's posterior as source latent.
        frozen_precision: of the UNets' frozen weights, whatever the trainer's precision; "auto" is float16 on a GPU and
            float32 elsewhere. At guidance 4.5 float16 puts R g of the embedded models off by 0.7 to 3 %, bfloat16 by 5
            to 22 %, most where the fake score still equals the real one.
        compile: compile the UNets with torch.compile.
        gradient_checkpointing: recompute the UNet's activations in the fake score's backward: less memory, slower.
        metrics: name -> network or folder for `validate` and `test`, see `lightning_styles.metrics`.
        seed: key of all randomness.
    """

    needs = {"fit": (Needs(data=("pictures",)),)}
    needs |= dict.fromkeys(EVALUATION, (Needs(("image", "name", "caption")),))
    vae: Any
    encoders: dict[str, Any]
    z_src: Tensor

    def __init__(
        self,
        *,
        base: str,
        style_lora: str | None = None,
        style: str,
        real: str | None = None,
        lora_strength: float = 0.8,
        lora_partial: bool = False,
        lora_text_encoder: bool = False,
        iterations: int = 500,
        objective: Literal["sms", "vsd", "sds", "dds", "pds"] = "sms",
        relevance: bool = True,
        identity: Literal["progressive", "fixed", "mse", "none"] = "progressive",
        spectrum_norm: Literal["l1", "l2"] = "l1",
        weights: dict[str, float] | None = None,
        sampling: Literal["narrowing", "uniform", "linear", "full"] = "narrowing",
        fake_sampling: Literal["code", "paper"] = "code",
        t_min: int = 20,
        t_max: int = 500,
        grid_steps: int = 500,
        fake_weight: Literal["alpha_bar_squared", "none"] = "alpha_bar_squared",
        guidance: float = 4.5,
        edit_prompt: str = "Turn into {style}",
        target_prompt: str = "{style}, {caption}",
        source_prompt: str = "{caption}",
        optimizer: Literal["adamw", "sgd"] = "adamw",
        lr: float = 0.1,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        warmup: int = 100,
        fake_lr: float = 1e-3,
        rank: int = 8,
        alpha: float = 32.0,
        posterior: Literal["sample", "mode"] = "sample",
        frozen_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        compile: bool = False,
        gradient_checkpointing: bool = False,
        metrics: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, metrics=metrics)
        if not style.strip():
            raise UserError('style is empty; describe it in words, for example --model.style "watercolor style".')
        self.terms = weights_of(weights, WEIGHTS)
        check_prompts(edit_prompt=edit_prompt, target_prompt=target_prompt, source_prompt=source_prompt)
        timesteps.check_range(grid_steps, t_min, t_max)
        within(1, MOST_RANK, rank=rank)
        at_least(0, alpha=alpha)
        at_least(0, warmup=warmup, lr=lr, fake_lr=fake_lr, eps=eps, weight_decay=weight_decay, guidance=guidance)
        self.save_hyperparameters()
        self.names: list[str] = []
        self._restored = False

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        bases = [(init_args[key], "stable-diffusion") for key in ("base", "real") if init_args.get(key)]
        lora = [(init_args["style_lora"], "lora")] if init_args.get("style_lora") else []
        return bases + lora + super().required_models(init_args)

    # ---- networks

    def kept(self, name: str) -> bool:
        return name.startswith("z_") or (".lora_" in name and ".fake" in name)

    @property
    def learns_fake(self) -> bool:
        """Whether the objective matches the style score with a fake one."""
        return self.hparams.objective in ("sms", "vsd")

    def configure_model(self) -> None:
        if hasattr(self, "scores"):
            return
        self._load_networks()
        pictures = self.trainer.datamodule.pictures() if self.trainer.state.fn == "fit" else []  # type: ignore[attr-defined]
        if pictures:
            self._allocate(torch.stack(self._same_size(pictures)))

    def _load_networks(self) -> None:
        from lightning_styles.pretrained.stable_diffusion import load_stable_diffusion
        from lightning_styles.pretrained.style_lora import load_style_lora

        h = self.hparams
        base = load_stable_diffusion(h.base, xl=False)
        real = base if h.real in (None, h.base) else load_stable_diffusion(h.real, xl=False)
        self.base_models = {h.base: base.sha256} | ({h.real: real.sha256} if h.real else {})
        widths = [part.unet.config.cross_attention_dim for part in (base, real)]
        if widths[0] != widths[1]:
            raise UserError(
                f"base {h.base} and real {h.real} are of different kinds: their text embeddings have the widths "
                f"{widths[0]} and {widths[1]}; take both from one family of models."
            )
        self.vae, self.multiple = base.vae, base.multiple
        self.schedule = NoiseSchedule.from_config(base.scheduler).to(self.run_device)
        self.grid = self.schedule.grid(h.grid_steps)
        # A plain attribute: the text encoders stay on the CPU, prompts are embedded once.
        encoders = {"base": base.text_encoder, "style": base.text_encoder}
        self.__dict__["encoders"], self.tokenizer = encoders, base.tokenizer
        if h.style_lora:
            if h.lora_text_encoder:
                encoders["style"] = deepcopy(base.text_encoder)
            text_encoder = encoders["style"] if h.lora_text_encoder else None
            lora = locate(h.style_lora, "lora")
            options = {"strength": h.lora_strength, "partial": h.lora_partial}
            report = load_style_lora(base.unet, lora, text_encoder=text_encoder, **options)
            log.info("style LoRA %s", report)
            self.base_models[h.style_lora] = fingerprint(lora)
        self.scores = Scores(base.unet, real.unet, has_lora=h.style_lora is not None)
        self.scores.to(self.frozen_dtype(h.frozen_precision, torch.float16))
        if h.compile:
            for unet in {id(u): u for u in (base.unet, real.unet)}.values():
                unet.compile()

    def _allocate(self, images: Tensor) -> None:
        """Make room for the latents of `images` (P, 3, H, W) and a fake score for each of them."""
        h, w = (side // self.vae_factor for side in pad_to_multiple(images[:1], self.multiple)[0].shape[-2:])
        device = self.vae.device
        self.z_tgt = nn.Parameter(torch.zeros(len(images), self.vae.config.latent_channels, h, w, device=device))
        self.register_buffer("z_src", torch.zeros_like(self.z_tgt.data))
        if self.learns_fake:
            self.scores.add_fakes(len(images), self.hparams.rank, self.hparams.alpha)
        if self.hparams.gradient_checkpointing:
            enable_gradient_checkpointing(self.scores.real_unet)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    # ---- the pictures of a run

    def on_fit_start(self) -> None:
        pictures = self.trainer.datamodule.pictures()  # type: ignore[attr-defined]
        images = torch.stack(self._same_size(pictures)).to(self.device)
        names, captions = [p["name"] for p in pictures], [p["caption"] for p in pictures]
        if self._restored and names != self.names:
            raise UserError(f"The checkpoint belongs to {', '.join(self.names)}, the data has {', '.join(names)}.")
        self._prompt(names, captions, images)
        if not self._restored:
            self._start()

    def _same_size(self, pictures: list[dict[str, Any]]) -> list[Tensor]:
        images = [picture["image"] for picture in pictures]
        sizes = sorted({tuple(image.shape[-2:]) for image in images})
        if len(sizes) > 1:
            raise UserError(
                f"fit optimises pictures of one size together, these have {len(sizes)}: {sizes}; "
                "use predict, which takes any sizes one after the other."
            )
        return images

    @torch.no_grad()
    def _prompt(self, names: list[str], captions: list[str], images: Tensor) -> None:
        """Remember the pictures (P, 3, H, W) with their names, and embed every prompt once."""
        self.names, self.images, h = names, images, self.hparams
        roles = {"tgt_style": ("style", h.target_prompt), "tgt": ("base", h.target_prompt)}
        roles |= {"src": ("style", h.source_prompt), "edit": ("base", h.edit_prompt)}
        self.text = {
            role: self._embed(encoder, [fill(template, h.style, caption) for caption in captions])
            for role, (encoder, template) in roles.items()
        }

    def _embed(self, encoder: str, prompts: list[str]) -> Tensor:
        """Pairs (P, 2, L, D) of each prompt and the empty prompt."""
        from lightning_styles.pretrained.stable_diffusion import encode_prompts

        text = encode_prompts(self.encoders[encoder], self.tokenizer, [*prompts, ""])
        return torch.stack([text[:-1], text[-1:].expand_as(text[:-1])], dim=1).to(self.device)

    @torch.no_grad()
    def _start(self) -> None:
        """z_tgt = z_src = E(x), fake scores = real score."""
        padded, _ = pad_to_multiple(self.images, self.multiple)
        for i, name in enumerate(self.names):
            z, std = latents.posterior(self.vae, padded[i : i + 1])
            if self.hparams.posterior == "sample":
                z = z + std * torch.randn(z.shape, generator=noise.generator(self.seed, name, "posterior")).to(z)
            self.z_src[i] = z[0]
            if self.learns_fake:
                self.scores.reset_fake(i, noise.generator(self.seed, name, "fake"))
        self.z_tgt.data.copy_(self.z_src)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Pictures (P, 3, H, W) in [-1, 1] of latents, cropped to the size of the source."""
        images = torch.cat([latents.to_pixels(self.vae, one) for one in z.split(1)]).float().clamp(-1, 1)
        return images[..., : self.images.shape[-2], : self.images.shape[-1]]

    # ---- the algorithm

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        h = self.hparams
        generator: Optimizer = (
            AdamW([self.z_tgt], lr=h.lr, eps=h.eps, weight_decay=h.weight_decay)
            if h.optimizer == "adamw"
            else SGD([self.z_tgt], lr=h.lr)
        )
        schedule = LambdaLR(generator, lambda i: timesteps.generator_lr_factor(i, self.iterations, h.warmup))
        named: dict[str, tuple[Optimizer, LambdaLR | None]] = {"generator": (generator, schedule)}
        if self.learns_fake:
            fakes = self.scores.fake_parameters(len(self.z_tgt))
            named["fake"] = (AdamW(fakes, lr=h.fake_lr, eps=1e-8 * LOSS_SCALE, weight_decay=0.0), None)
        return named

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        self.iterate()

    def iterate(self) -> None:
        """One iteration of Algorithm 1: move the latents, then let the fake scores follow them."""
        index, eps = self.draw("generator", self.generator_range())
        t, t_prev = self.grid[index], self.grid[index - 1]
        g, R = self.distill(t, t_prev, eps)
        style, style_gradient = distill.style_loss(g, R)
        identity, identity_gradient = self.identity(t)
        losses = {"style": style.sum(), "identity": identity.sum()}
        gradient = self.terms["style"] * style_gradient + identity_gradient
        self.optimize("generator", self.z_tgt, gradient)
        if self.learns_fake:
            index, eps = self.draw("fake", self.fake_range())
            losses["fake"] = self.fake_step(self.grid[index], eps)
        self.log_losses(losses)

    @torch.no_grad()
    def distill(self, t: Tensor, t_prev: Tensor, eps: Tensor) -> tuple[Tensor, Tensor | float]:
        """The gradient g (P, 4, h, w) of the objective and the relevance map R (P, 1, h, w), or 1."""
        h, schedule = self.hparams, self.schedule
        z_t, z_t_src = (schedule.add_noise(z, eps, t) for z in (self.z_tgt, self.z_src))
        queries = {"style": Query("style", z_t, self.text["tgt_style"])}
        if self.learns_fake:
            queries["fake"] = Query("fake", z_t, self.text["tgt"])
        if h.objective in ("dds", "pds"):
            queries["src"] = Query("style", z_t_src, self.text["src"])
        if h.relevance:
            queries["real"] = Query("real", z_t_src, self.text["edit"])
        pairs = dict(zip(queries, self.scores(list(queries.values()), t), strict=True))
        eps_hat = {name: distill.cfg(pair[:, 0], pair[:, 1], h.guidance) for name, pair in pairs.items()}
        R = distill.relevance_map(pairs["real"][:, 0], pairs["real"][:, 1]) if h.relevance else 1.0
        alpha_bar_t = schedule.alpha_bar(t)
        match h.objective:
            case "sds":
                return distill.sds_gradient(eps_hat["style"], eps, alpha_bar_t), R
            case "dds":
                return distill.dds_gradient(eps_hat["style"], eps_hat["src"]), R
            case "pds":
                alpha_bar_prev, beta_t = schedule.alpha_bar(t_prev), schedule.beta(t)
                z, both = (self.z_tgt, self.z_src), (eps_hat["style"], eps_hat["src"])
                return distill.pds_gradient(*z, *both, beta_t, alpha_bar_t, alpha_bar_prev), R
        w_t = schedule.posterior_variance(t, t_prev)
        return distill.vsd_gradient(eps_hat["style"], eps_hat["fake"], w_t), R

    @torch.no_grad()
    def identity(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Value (P,) of the identity term, its weight included, and its gradient (P, 4, h, w)."""
        h, weight = self.hparams, self.terms["identity"]
        z_tgt, z_src = self.z_tgt, self.z_src
        rows, columns = z_tgt.shape[-2:]
        if h.identity == "none":
            return torch.zeros(len(t), device=t.device), torch.zeros_like(z_tgt)
        if h.identity == "mse":
            return spectrum.identity_loss(z_tgt, z_src, weight)
        if h.identity == "fixed":
            thr = torch.full_like(t, spectrum.fixed_threshold(rows, columns))
        else:
            thr = spectrum.threshold(t, rows, columns, h.t_max)
        mask = spectrum.low_pass_mask(rows, columns, thr)
        return spectrum.spectrum_loss(z_tgt, z_src, mask, weight, h.spectrum_norm)

    def fake_step(self, t: Tensor, eps: Tensor) -> Tensor:
        """Teach each fake score to denoise its own picture's latent; returns the loss, summed over pictures."""
        z_t = self.schedule.add_noise(self.z_tgt.detach(), eps, t)
        (eps_fake,) = self.scores([Query("fake", z_t, self.text["tgt"][:, :1])], t)
        weight = self.hparams.fake_weight
        loss = distill.fake_score_loss(eps_fake[:, 0], eps, self.schedule.alpha_bar(t), weight).sum()
        with torch.autocast(t.device.type, enabled=False):  # the way back, as the way there
            self.optimize("fake", LOSS_SCALE * loss)
        return loss

    def draw(self, purpose: str, bounds: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Grid indices (P,) in `bounds` and noise (P, 4, h, w); each picture's own, whatever it is batched with."""
        generators = [self.generator(f"{purpose}/{name}") for name in self.names]
        index = torch.cat([timesteps.draw(bounds, 1, generator) for generator in generators])
        eps = torch.stack([torch.randn(self.z_src.shape[1:], generator=generator) for generator in generators])
        return index.to(self.device, non_blocking=True), eps.to(self.device, non_blocking=True)

    def generator_range(self) -> tuple[int, int]:
        """Grid indices that the latents' step may draw."""
        return self._range(self.hparams.sampling)

    def fake_range(self) -> tuple[int, int]:
        """Grid indices that the fake scores' step may draw; up to the end wherever the latents' step goes there.

        The paper's U(t_min, t_max) has the two ratios of the official config. The official code never passes the bound
        of the latents' step, which overwrites that config; beyond it the fake score is never asked either.
        """
        full = self.hparams.sampling == "full" or self.hparams.fake_sampling == "paper"
        return self._range("full" if full else "uniform")

    def _range(self, strategy: timesteps.Strategy) -> tuple[int, int]:
        h = self.hparams
        bounds = {"L": h.grid_steps, "t_min": h.t_min, "t_max": h.t_max}
        return timesteps.index_range(strategy, self.iteration, self.iterations, **bounds)

    # ---- results

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:
        """Stylize one batch of pictures, a whole optimisation; None if all of them are finished.

        Validation during `fit` gets the pictures of the run as they stand.
        """
        if self.trainer.state.fn == "fit":
            current = self.decode(self.z_tgt)
            return {"image": [current[self.names.index(name)] for name in batch["name"]]}
        if self.finished.issuperset(batch["name"]):
            return None
        with torch.inference_mode(False):
            self._allocate(batch["image"].clone())
            self._prompt(batch["name"], batch["caption"], batch["image"].clone())
            self._start()
        with self.optimizing_alone(", ".join(self.names)):
            for i in range(self.iterations):
                self.iteration = i
                self.iterate()
        return {"image": list(self.decode(self.z_tgt)), "name": self.names, "settings": dict(self.hparams)}

    def preview(self) -> dict[str, Tensor]:
        return {"source": self.images, "result": self.decode(self.z_tgt)}

    def on_train_end(self) -> None:
        """Write every result alone at full resolution, and beside its source."""
        folder = self.trainer.log_dir  # finding it is a broadcast: every rank takes part
        if folder is not None and self.trainer.is_global_zero:
            self.results = Path(folder) / "results"
            for name, source, result in zip(self.names, self.images, self.decode(self.z_tgt), strict=True):
                save_png(self.results / file_name(name, ".png"), result, dict(self.hparams))
                save_png(self.results / file_name(name, "_before_after.png"), torch.cat([source, result], dim=-1))

    def closing_lines(self) -> list[str]:
        if not hasattr(self, "results"):
            return []
        shown = [self.results / file_name(self.names[0], end) for end in (".png", "_before_after.png")]
        return [
            f"stylized picture:  {shown[0]}",
            f"before and after:  {shown[1]}",
            f"TensorBoard:       tensorboard --logdir {self.results.parent}",
            f"Next:              python -m lightning_styles stylize PHOTOS --style {self.results.parent} --out out",
        ]

    # ---- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint[CHECKPOINT_KEY]["pictures"] = list(self.names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.trainer.state.fn != "fit":  # every other command starts each picture afresh
            checkpoint["state_dict"] = {}
            return
        super().on_load_checkpoint(checkpoint)
        expect(checkpoint[CHECKPOINT_KEY], {"pictures": [str]}, f"{self.trainer.ckpt_path}: {CHECKPOINT_KEY}", ANOTHER)
        self.names, self._restored = checkpoint[CHECKPOINT_KEY]["pictures"], True
