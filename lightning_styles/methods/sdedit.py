"""SDEdit (arXiv 2108.01073, algorithm 1) with a style LoRA: noise a photo, then denoise it in style."""

import logging
from typing import Any

from lightning_styles import noise
from lightning_styles.batches import EVALUATION, Needs
from lightning_styles.errors import at_least, within
from lightning_styles.imaging import pad_to_multiple
from lightning_styles.module import StyleModule
from lightning_styles.pretrained import fingerprint, locate
from lightning_styles.prompts import check_prompts, fill

log = logging.getLogger(__name__)


class SDEdit(StyleModule):
    """Image-to-image through diffusers' pipeline; trains nothing, so `predict`, `test` and `validate` are its commands.

    Args:
        base: Stable Diffusion base: folder, single file or name.
        style_lora: style LoRA (kohya, diffusers or PEFT safetensors); None uses the base alone.
        style: the style in words.
        strength: how far the photo is noised, 0 (the photo itself) to 1 (nothing of it left).
        lora_strength: factor on the style LoRA.
        lora_partial: take a style LoRA too of which less than 90 % of the layers exist in the base.
        steps: DDIM steps from pure noise; strength * steps of them are taken.
        guidance: classifier-free guidance.
        target_prompt: prompt; {style} and {caption} are filled in.
        metrics: name -> network or folder for `validate` and `test`, see `lightning_styles.metrics`.
        seed: key of all randomness.
    """

    needs = dict.fromkeys(EVALUATION, (Needs(("image", "name", "caption")),))
    pipeline: Any

    def __init__(
        self,
        *,
        base: str,
        style_lora: str | None = None,
        style: str,
        strength: float = 0.5,
        lora_strength: float = 0.8,
        lora_partial: bool = False,
        steps: int = 50,
        guidance: float = 4.5,
        target_prompt: str = "{style}, {caption}",
        metrics: dict[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=1, seed=seed, metrics=metrics)
        check_prompts(target_prompt=target_prompt)
        within(1, 1000, steps=steps)
        at_least(0, guidance=guidance)
        within(0, 1, strength=strength)
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        lora = [(init_args["style_lora"], "lora")] if init_args.get("style_lora") else []
        return [(init_args["base"], "stable-diffusion"), *lora, *super().required_models(init_args)]

    def configure_model(self) -> None:
        if hasattr(self, "unet"):
            return
        from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

        from lightning_styles.pretrained.stable_diffusion import load_stable_diffusion
        from lightning_styles.pretrained.style_lora import load_style_lora

        h = self.hparams
        base = load_stable_diffusion(h.base, xl=False)
        self.base_models = {h.base: base.sha256}
        if h.style_lora:
            lora = locate(h.style_lora, "lora")
            options = {"strength": h.lora_strength, "partial": h.lora_partial}
            log.info("style LoRA %s", load_style_lora(base.unet, lora, **options))
            base.unet.set_adapter("style")
            self.base_models[h.style_lora] = fingerprint(lora)
        self.unet, self.vae, self.text_encoder, self.multiple = base.unet, base.vae, base.text_encoder, base.multiple
        self.__dict__["pipeline"] = StableDiffusionImg2ImgPipeline(
            vae=base.vae,
            text_encoder=base.text_encoder,
            tokenizer=base.tokenizer,
            unet=base.unet,
            scheduler=DDIMScheduler.from_config(base.scheduler),  # type: ignore[arg-type]
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:
        if self.finished.issuperset(batch["name"]):
            return None
        h, images = self.hparams, batch["image"]
        if h.strength > 0:
            padded, (height, width) = pad_to_multiple(images, self.multiple)
            prompts = [fill(h.target_prompt, h.style, caption) for caption in batch["caption"]]
            results = self.pipeline(
                prompts,
                image=(padded + 1) / 2,
                strength=h.strength,
                num_inference_steps=h.steps,
                guidance_scale=h.guidance,
                generator=[noise.generator(self.seed, name, "sdedit") for name in batch["name"]],
                output_type="pt",
            ).images
            images = (results * 2 - 1).float()[..., :height, :width]
        return {"image": list(images), "name": batch["name"], "settings": dict(h)}
