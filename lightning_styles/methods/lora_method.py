"""What methods share that teach a frozen text-to-image model a style by a LoRA: base, text, latents, drawing, files."""

import logging
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_styles import noise
from lightning_styles.batches import EVALUATION, Needs
from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.errors import at_least, within
from lightning_styles.imaging import pad_to_multiple
from lightning_styles.models.adapters import enable_gradient_checkpointing
from lightning_styles.module import StyleModule
from lightning_styles.pretrained.lora_export import save_lora
from lightning_styles.sheet import labelled_row

log = logging.getLogger(__name__)
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
PAIR = ("content", "style", "prompt", "content_size", "style_size", "crop")  # keys of a batch of pairs
STYLE = "style"  # the adapter that is kept
SCHEDULERS = {
    "ddim": "DDIMScheduler", "pndm": "PNDMScheduler", "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
}  # fmt: skip


class LoRAMethod(StyleModule):
    """A frozen Stable Diffusion 1.x or XL with adapters; pictures are drawn through the adapter "style".

    `predict` and `test` take prompts (`datamodules.Prompts`), or photos (`datamodules.Pictures`) that are inverted
    with DDIM and drawn again in the style.

    Args:
        base: Stable Diffusion base: folder, single file or name.
        vae: another autoencoder for the base: folder or name.
        iterations: of training.
        frozen_precision: of the UNet's frozen weights; "auto" is bfloat16 on a GPU and float32 elsewhere. The
            autoencoder stays in float32.
        compile: compile the UNet with torch.compile.
        gradient_checkpointing: recompute the UNet's activations in the backward: less memory, slower.
        style_phrase: words that stand behind a prompt where it is drawn in the style.
        mode: how the LoRA comes in: as style "guidance" (arXiv 2405.01536, equation 11), or at a "scale" of its
            weights (equation 3).
        strength: lambda_style of guidance, or the factor of mode "scale".
        strengths: several, for `test`, and for `predict`, which then shows them side by side; null is `strength`.
        guidance: classifier-free guidance, lambda_cfg, of pictures drawn from prompts. Photos are drawn without, since
            they were inverted without; so are those of the official code, whose negative prompt is the prompt.
        steps: of the sampler.
        style_start: in both modes the style comes in at timesteps up to this one, before that the base draws the prompt
            alone (section 3.3: from step 11 of 50 on); null, from the first step on.
        scheduler: "base" is the base's own; photos are always inverted and drawn with DDIM.
        inversion: of photos.
        photo_prompt: what a photo is inverted under; {caption} is filled in. Without a caption it is "a photo".
        size: height and width of pictures drawn from prompts, in px.
        preview_prompts: prompts of the preview pictures.
        metrics: name -> network or folder for `validate` and `test`, see `lightning_styles.metrics`.
        clip_norm: largest norm of the gradient; null is no limit.
        seed: key of all randomness.
    """

    needs = dict.fromkeys(EVALUATION, (Needs(("prompt", "name"), ("twin",)), Needs(("image", "name", "caption"))))
    base: Any
    unet: Any
    formats = {"kohya": "style_lora.safetensors", "diffusers": "pytorch_lora_weights.safetensors"}

    def __init__(
        self,
        *,
        base: str,
        vae: str | None = None,
        iterations: int,
        frozen_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        compile: bool = False,
        gradient_checkpointing: bool = False,
        style_phrase: str = "",
        mode: Literal["guidance", "scale"] = "guidance",
        strength: float = 3.0,
        strengths: list[float] | None = None,
        guidance: float = 5.0,
        steps: int = 50,
        style_start: int | None = 800,
        scheduler: Literal["base", "ddim", "pndm", "euler", "dpm++"] = "base",
        inversion: Literal["ddim", "renoise"] = "ddim",
        photo_prompt: str = "a photo of {caption}",
        size: int = 512,
        preview_prompts: list[str] = [],  # noqa: B006 - jsonargparse copies it
        metrics: dict[str, str] | None = None,
        clip_norm: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=clip_norm, metrics=metrics)
        within(1, 1000, steps=steps)
        within(16, 8192, size=size)
        within(0, 1000, style_start=style_start)
        at_least(0, strength=strength, guidance=guidance, **{"strengths": min(strengths)} if strengths else {})
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        vae = [(init_args["vae"], "vae")] if init_args.get("vae") else []
        return [(init_args["base"], "stable-diffusion"), *vae, *super().required_models(init_args)]

    @abstractmethod
    def add_adapters(self) -> None:
        """Add what is trained to `self.unet`, "style" among it."""
        raise NotImplementedError

    def kept(self, name: str) -> bool:
        return ".lora_" in name

    def configure_model(self) -> None:
        if hasattr(self, "unet"):
            return
        from lightning_styles.pretrained.stable_diffusion import load_stable_diffusion

        h = self.hparams
        base = load_stable_diffusion(h.base, h.vae)
        self.base_models = {h.base: base.sha256}
        self.__dict__["base"] = base  # not a submodule: encoders come to the device when they are needed
        self.unet = base.unet
        self.unet.to(self.frozen_dtype(h.frozen_precision))
        self.schedule = NoiseSchedule.from_config(base.scheduler).to(self.run_device)
        self.add_adapters()
        if h.gradient_checkpointing:
            enable_gradient_checkpointing(self.unet)
        if h.compile:
            self.unet.compile()
        self.text: dict[str, Any] = {}

    # ---- one prediction

    def in_style(self, prompt: str) -> str:
        """The prompt of the stylised picture."""
        return f"{prompt} {self.hparams.style_phrase}".strip()

    def time_ids(self, x: Tensor, size: Tensor | None = None, crop: Tensor | None = None) -> Tensor:
        """(B, 6): (height, width) of the files, (top, left) of the crops, (height, width) of x (arXiv 2307.01952)."""
        target = torch.tensor(x.shape[-2:], device=x.device).expand(len(x), 2)
        size = target if size is None else size
        crop = torch.zeros_like(target) if crop is None else crop
        return torch.cat([size.to(x.device), crop.to(x.device), target], dim=1)

    def denoise(self, z_t: Tensor, t: Tensor, prompts: list[str], time_ids: Tensor) -> Tensor:
        """eps (B, 4, h, w), float32, for noised latents; `time_ids` (B, 6) is what SDXL is told of sizes and crops."""
        from lightning_styles.pretrained.stable_diffusion import Text

        dtype = self.unet.conv_in.weight.dtype
        text = Text.cat([self.embed(prompt) for prompt in prompts]).to(self.device, dtype)
        told = None if text.pooled is None else {"text_embeds": text.pooled, "time_ids": time_ids}
        return self.unet(z_t.to(dtype), t, text.states, added_cond_kwargs=told).sample.float()

    @torch.no_grad()
    def embed(self, prompt: str) -> Any:
        """Text (1, L, D) of a prompt, which goes through the encoders once a run."""
        from lightning_styles.pretrained.stable_diffusion import embed_prompts

        if prompt not in self.text:
            self.text[prompt] = embed_prompts(self.base, [prompt])
        return self.text[prompt]

    @torch.no_grad()
    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation (B, 4, h, w) of the scaled latents of pictures (B, 3, H, W)."""
        from lightning_styles.diffusion.latents import posterior

        return posterior(self.base.vae.to(self.device), x)

    def sampled(self, mean: Tensor, std: Tensor, purpose: str) -> Tensor:
        """Latents drawn from their posterior."""
        return mean + std * self.randn_like(mean, purpose)

    # ---- drawing

    @contextmanager
    def pipeline(self, scheduler: str) -> Iterator[Any]:
        """The style-guidance pipeline over all parts on this device; in `fit` the encoders leave it again."""
        import diffusers

        from lightning_styles.diffusion.style_guidance import StyleGuidancePipeline, StyleGuidanceXLPipeline

        config = self.base.scheduler
        name: str = SCHEDULERS.get(scheduler) or config.get("_class_name", "DDIMScheduler")
        # What a DDIM that can be run backwards needs, whatever scheduler the base came with.
        changes = {"clip_sample": False, "timestep_spacing": "leading"} if scheduler == "ddim" else {}
        parts = [self.base.vae, self.base.text_encoder, *([self.base.text_encoder_2] if self.base.is_xl else [])]
        for part in parts:
            part.to(self.device)
        try:
            yield self.base.assemble(
                StyleGuidanceXLPipeline if self.base.is_xl else StyleGuidancePipeline,
                scheduler=getattr(diffusers, name).from_config(config, **changes),
            )
        finally:
            if self._trainer is not None and self.trainer.training:
                for part in parts:
                    part.to("cpu")

    def styled(self, strength: float) -> list[Any]:
        """The style at this strength, as the pipeline takes it."""
        from lightning_styles.diffusion.styles import Style

        return [Style(STYLE, self.hparams.style_phrase, strength)]

    def draw(self, prompts: list[str], names: list[str], strengths: list[float]) -> list[Tensor]:
        """Pictures (B, 3, H, W) in [-1, 1] of prompts at each strength, all from the noise of the names."""
        h = self.hparams
        with self.pipeline(h.scheduler) as pipeline:
            return [
                pipeline(
                    prompts,
                    styles=self.styled(strength),
                    mode=h.mode if strength else "guidance",  # 0 is the base's own picture of the prompt
                    guidance_scale=h.guidance,
                    num_inference_steps=h.steps,
                    style_start=h.style_start,
                    height=h.size,
                    width=h.size,
                    generator=[noise.generator(self.seed, name, "drawing") for name in names],
                    output_type="pt",
                ).images.float()
                * 2
                - 1
                for strength in strengths
            ]

    def redraw(self, images: Tensor, prompts: list[str], names: list[str], strengths: list[float]) -> list[Tensor]:
        """Photos (B, 3, H, W) in the style at each strength: inverted under their prompts, then drawn again."""
        from lightning_styles.diffusion.inversion import ReNoise, invert

        h = self.hparams
        padded, (height, width) = pad_to_multiple(images, self.base.multiple)
        with self.pipeline("ddim") as pipeline:
            renoise = ReNoise() if h.inversion == "renoise" else None
            z = [  # each alone, with noise of its own, so that none depends on its neighbours
                invert(pipeline, x[None], prompt, steps=h.steps, renoise=renoise, generator=generator)
                for x, prompt, generator in zip(
                    padded, prompts, (noise.generator(self.seed, name, "inversion") for name in names), strict=True
                )
            ]
            results = [
                pipeline(
                    prompts,
                    styles=self.styled(strength),
                    mode=h.mode if strength else "guidance",
                    guidance_scale=1.0,
                    num_inference_steps=h.steps,
                    style_start=h.style_start,
                    height=padded.shape[-2],
                    width=padded.shape[-1],
                    latents=torch.cat(z),
                    output_type="pt",
                ).images
                for strength in strengths
            ]
        return [(result.float() * 2 - 1)[..., :height, :width] for result in results]

    def preview(self) -> dict[str, Tensor]:
        prompts = list(self.hparams.preview_prompts)
        if not prompts:
            return {}
        base, result = self.draw(prompts, prompts, [0.0, self.hparams.strength])
        return {"base": base.clamp(-1, 1), "result": result.clamp(-1, 1)}

    # ---- predict and test

    @property
    def all_strengths(self) -> list[float]:
        """The strengths that `predict` and `test` go through."""
        return list(self.hparams.strengths or [self.hparams.strength])

    def results(self, batch: dict[str, Any], strengths: list[float]) -> list[Tensor]:
        """Pictures of a batch of prompts or photos at each strength."""
        if "prompt" in batch:
            return self.draw(batch["prompt"], batch["name"], strengths)
        form = self.hparams.photo_prompt
        prompts = [form.replace("{caption}", caption) if caption else "a photo" for caption in batch["caption"]]
        return self.redraw(batch["image"], prompts, batch["name"], strengths)

    def on_predict_batch_start(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> None:
        if batch_idx == 0 and "prompt" not in batch:
            log.info(
                "Photos are inverted and drawn again with DDIM at their own size, without classifier-free guidance: "
                f"guidance {self.hparams.guidance:g}, scheduler {self.hparams.scheduler} and size {self.hparams.size} "
                "are for prompts alone."
            )

    on_test_batch_start = on_validation_batch_start = on_predict_batch_start

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:
        if self.finished.issuperset(batch["name"]):
            return None
        if self.hparams.strengths:
            images = self.sweep(batch)
        else:
            images = list(self.results(batch, self.all_strengths)[0].clamp(-1, 1))
        return {"image": images, "name": batch["name"], "settings": dict(self.hparams)}

    def sweep(self, batch: dict[str, Any]) -> list[Tensor]:
        """For each prompt or photo one picture (3, H', W'): what it starts from, every strength, the twin if known."""
        source, results, twin = self.measured(batch)
        columns = {"base" if "prompt" in batch else "photo": source}
        columns |= {f"strength {s:g}": result for s, result in zip(self.all_strengths, results, strict=True)}
        if twin is not None:
            columns["exact twin"] = twin
        rows = ({name: column[i].clamp(-1, 1) for name, column in columns.items()} for i in range(len(source)))
        return [labelled_row(row) for row in rows]

    def measured(self, batch: dict[str, Any]) -> tuple[Tensor, list[Tensor], Tensor | None]:
        """Source (the base's own picture of a prompt, or the photo), results at every strength, twin if known."""
        if "prompt" not in batch:
            return batch["image"], self.results(batch, self.all_strengths), batch.get("twin")
        source, *results = self.results(batch, [0.0, *self.all_strengths])
        return source, results, self.trainer.datamodule.twin(source.clamp(-1, 1))  # type: ignore[attr-defined]

    def evaluated(self) -> list[str]:
        sets = getattr(self.trainer.datamodule, "sets", [""])  # type: ignore[attr-defined]
        return [self.version(part, strength) for part in sets for strength in self.all_strengths]

    def version(self, part: str, strength: float) -> str:
        """What stands behind the names of measures: of a set of prompts, and of one of several strengths."""
        return (f"_{part}" if part else "") + (f"@{strength:g}" if self.hparams.strengths else "")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Measure pictures of prompts against the base's own and its exact twin, redrawn photos against theirs."""
        if not self.evaluations:
            return
        source, results, twin = self.measured(batch)
        parts, group = batch.get("set", [""] * len(source)), batch.get("group")
        for part in dict.fromkeys(parts):
            rows = [i for i, own in enumerate(parts) if own == part]
            known = [None if x is None else x[rows] for x in (twin, group)]
            for strength, result in zip(self.all_strengths, results, strict=True):
                evaluation = self.evaluations[self.version(part, strength)]
                evaluation.update(result[rows].clamp(-1, 1), source[rows].clamp(-1, 1), *known)

    # ---- files

    def export(self, path: Path, layout: str) -> None:
        save_lora(self.unet, path, layout, STYLE, self.lora_metadata())

    def lora_metadata(self) -> dict[str, str]:
        """What the header of an exported file says of its origin."""
        names = ", ".join(f"{name} (sha256 {digest[:12]})" for name, digest in self.base_models.items())
        return {"base": names, "style_phrase": self.hparams.style_phrase, "iterations": str(self.iterations)}

    def closing_lines(self) -> list[str]:
        if self.trainer.state.fn != "fit":
            return []
        return [f"Next: python -m lightning_styles convert {self.trainer.log_dir} style_lora.safetensors --to kohya"]
