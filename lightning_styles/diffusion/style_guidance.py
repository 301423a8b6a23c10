"""Style guidance (PairCustomization, arXiv 2405.01536, section 3.3) as pipelines of diffusers, usable on their own.

    pipeline = StyleGuidanceXLPipeline.from_pretrained("stabilityai/stable-diffusion-xl-base-1.0")
    pipeline.load_lora_weights("style.safetensors", adapter_name="art")
    pipeline("a photo of a dog", styles=[Style("art", "in digital art style", strength=3.0)]).images

The LoRA adds a direction to the guidance instead of a share of its weights, so that the base's own picture is what
gets styled. This module imports diffusers: import it inside functions.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.stable_diffusion.pipeline_output import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion_xl.pipeline_output import StableDiffusionXLPipelineOutput
from torch import Tensor

from lightning_styles.diffusion.guidance_rows import Rows
from lightning_styles.diffusion.latents import to_pixels
from lightning_styles.diffusion.styles import Mode, Style, check_control, check_prompts, check_styles
from lightning_styles.errors import UserError, at_least
from lightning_styles.models.adapters import Entry, Mix, routed
from lightning_styles.pretrained.stable_diffusion import Text

Sizes = tuple[tuple[int, int] | None, tuple[int, int] | None, tuple[int, int] | None]
Group = tuple[Entry, Text]
Callback = Callable[[Any, int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


def style_guidance(
    eps_empty: Tensor, eps_prompt: Tensor, eps_styles: Sequence[Tensor], guidance: float, strengths: Sequence[float]
) -> Tensor:
    """eps_0(0) + guidance (eps_0(c) - eps_0(0)) + sum_i strength_i (eps_i(c_i) - eps_0(c)) (arXiv 2405.01536, eq. 11).

    Args:
        eps_empty: the base's prediction (B, ...) without a prompt, or for the negative one.
        eps_prompt: the base's for the prompt c.
        eps_styles: those of the base with LoRA i for the styled prompt c_i.
        guidance: lambda_cfg.
        strengths: lambda_i.

    Raises:
        UserError: another number of strengths than of styles.
    """
    if len(eps_styles) != len(strengths):
        raise UserError(f"{len(strengths)} strengths for {len(eps_styles)} styles; give one for each style.")
    eps = eps_empty + guidance * (eps_prompt - eps_empty)
    for eps_style, strength in zip(eps_styles, strengths, strict=True):
        eps = eps + strength * (eps_style - eps_prompt)
    return eps


class StyleGuidance:
    """What both pipelines share: all but text, micro-conditioning and the filter on the way out."""

    @torch.no_grad()
    def __call__(
        self: Any,
        prompt: str | list[str],
        *,
        styles: Sequence[Style] = (),
        negative_prompt: str | list[str] | None = None,
        mode: Mode = "guidance",
        guidance_scale: float = 5.0,
        num_inference_steps: int = 50,
        style_start: int | None = 800,
        height: int | None = None,
        width: int | None = None,
        original_size: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        controlnet: ControlNetModel | None = None,
        control_image: Any = None,
        controlnet_scale: float = 0.5,
        output_type: Literal["pil", "pt", "latent"] = "pil",
        callback_on_step_end: Callback | None = None,
    ) -> Any:
        """Pictures of the prompts in the styles; what is not said here is as in the pipelines of diffusers.

        Args:
            prompt: without any words of style.
            styles: any number of them; one of strength 0 costs nothing.
            negative_prompt: in place of the empty one. To edit a real picture from its inverted latents, give the
                prompt itself or, which is the same and cheaper, `guidance_scale` 1.
            mode: "guidance" is equation 11; "scale" the baseline of equation 3: classifier-free guidance with the
                styled prompt and with every LoRA, times its style's strength, in both halves.
            guidance_scale: lambda_cfg.
            num_inference_steps: of whatever scheduler the pipeline has.
            style_start: styles are active at timesteps <= style_start; before that both modes draw what the base
                alone draws of the prompt without any words of style (section 3.3). None, from the first step on.
            height: px; by default the control image's, or the UNet's own size.
            width: px.
            original_size: (height, width) that SDXL is told, by default the picture's. SDXL only.
            target_size: likewise.
            crops_coords_top_left: (top, left) that SDXL is told, by default 0. SDXL only.
            num_images_per_prompt: pictures that follow one another for each prompt.
            generator: of the noise; a list has one for each picture.
            latents: noise to start from, or inverted latents.
            controlnet: a ControlNet for this base; it moves to the UNet's device and precision.
            control_image: what it is shown, one for all pictures or one for each prompt.
            controlnet_scale: factor on its residuals.
            output_type: "pil", "pt" ([0, 1]) or "latent".
            callback_on_step_end: called as (pipeline, step, t, {"latents": ...}); may return other latents.

        Returns:
            An output of diffusers with `images`.

        Raises:
            UserError: an unknown adapter, no prompt, or a ControlNet without a picture or for another base.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        negative = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else negative_prompt
        count = num_images_per_prompt
        at_least(1, num_inference_steps=num_inference_steps, num_images_per_prompt=count)
        check_prompts(prompts, negative)
        check_styles(self.unet, styles, mode)
        check_control(self.unet, controlnet, control_image)
        shown = None if controlnet is None else self._shown(control_image, height, width, len(prompts), count)
        height, width = self._size(height, width) if shown is None else shown.shape[-2:]
        text = self._groups(prompts, negative, styles, mode, guidance_scale, count)
        time_ids = self._time_ids((height, width), (original_size, crops_coords_top_left, target_size))
        rows = [Rows(self.unet, groups, time_ids) for groups in text]
        if controlnet is not None and shown is not None:
            for batch in rows:
                batch.use_control(controlnet.to(self._execution_device, self.unet.dtype), shown, controlnet_scale)
        dtype, pictures = text[0][0][1].states.dtype, len(prompts) * count
        if latents is not None and len(latents) != pictures:
            raise UserError(f"{len(latents)} latents for {pictures} pictures; give one for each picture.")
        self.scheduler.set_timesteps(num_inference_steps, device=self._execution_device)
        noise = self.prepare_latents(
            pictures, self.unet.config.in_channels, height, width, dtype, self._execution_device, generator,
            None if latents is None else latents.to(dtype),
        )  # fmt: skip
        strengths = [style.strength for style in styles if style.strength] if mode == "guidance" else []

        def predict(x: Tensor, t: Tensor, active: bool) -> Tensor:
            eps = rows[active].predict(x, t)
            eps = eps if guidance_scale != 1 else (eps[0], *eps)
            return style_guidance(eps[0], eps[1], eps[2:], guidance_scale, strengths if active else ())

        return self._finish(self._denoise(noise, predict, style_start, generator, callback_on_step_end), output_type)

    @torch.no_grad()
    def denoiser(
        self: Any,
        prompts: list[str],
        height: int,
        width: int,
        original_size: tuple[int, int] | None = None,
        target_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] | None = None,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """The base's eps_0(x, t, c) for B prompts, without guidance: x (B, ...), or (2 B, ...) for two sets of them."""
        check_prompts(prompts, None)
        with self._encoding(None, len(prompts)):
            text = self._encode(prompts, None, 1, False)[1]
        time_ids = self._time_ids((height, width), (original_size, crops_coords_top_left, target_size))
        rows = [Rows(self.unet, [(None, text)] * sets, time_ids) for sets in (1, 2)]
        return lambda x, t: rows[len(x) // len(prompts) - 1].evaluate(x, t)

    def _denoise(
        self: Any,
        latents: Tensor,
        predict: Callable[[Tensor, Tensor, bool], Tensor],
        style_start: int | None,
        generator: Any,
        callback: Callback | None,
    ) -> Tensor:
        """All steps of the scheduler, with `predict`(x_t, t, styles are active)."""
        scheduler, settings = self.scheduler, self.prepare_extra_step_kwargs(generator, 0.0)
        values = scheduler.timesteps.tolist()  # at once, since each would wait for the device
        self._num_timesteps, self._interrupt = len(values), False
        for i, t in enumerate(self.progress_bar(scheduler.timesteps)):
            if self.interrupt:
                break
            active = style_start is None or values[i] <= style_start
            eps = predict(scheduler.scale_model_input(latents, t), t, active)
            latents = scheduler.step(eps, t, latents, **settings, return_dict=False)[0].to(latents.dtype)
            if callback is not None:
                latents = callback(self, i, t, {"latents": latents}).get("latents", latents)
        return latents

    def _groups(
        self: Any,
        prompts: list[str],
        negative: list[str] | None,
        styles: Sequence[Style],
        mode: Mode,
        guidance: float,
        count: int,
    ) -> tuple[list[Group], list[Group]]:
        """Adapters and text of the groups before the styles come in, and of those from then on."""
        present, halves = [style for style in styles if style.strength], guidance != 1
        plain = self._encoded(None, prompts, negative, count, halves)
        if mode == "scale":
            mix = tuple((style.adapter, style.strength) for style in present) or None
            words = [" ".join([prompt, *(style.suffix for style in styles)]) for prompt in prompts]
            return plain, self._encoded(mix, words, negative, count, halves)
        styled: list[Group] = []
        for style in present:
            words = [f"{prompt} {style.suffix}" for prompt in prompts]
            styled += self._encoded(((style.adapter, 1.0),), words, None, count, False)
        return plain, plain + styled

    def _encoded(
        self: Any, entry: Mix | None, prompts: list[str], negative: list[str] | None, count: int, unconditional: bool
    ) -> list[Group]:
        """The groups of these adapters: the negative or empty prompts if `unconditional`, and the prompts."""
        with self._encoding(entry, len(prompts)):
            texts = self._encode(prompts, negative, count, unconditional)
        return [(entry, text) for text in texts if text is not None]

    @contextmanager
    def _encoding(self: Any, entry: Mix | None, prompts: int) -> Iterator[None]:
        """Text encoders take those of the adapters that reach them, which few LoRAs do."""
        with ExitStack() as stack:
            for part in ("text_encoder", "text_encoder_2"):
                encoder: Any = getattr(self, part, None)
                if known := getattr(encoder, "peft_config", None):
                    own = tuple(pair for pair in entry or () if pair[0] in known) or None
                    stack.enter_context(routed(encoder, [own] * prompts))
            yield

    def _size(self: Any, height: int | None, width: int | None) -> tuple[int, int]:
        side = self.unet.config.sample_size * self.vae_scale_factor
        size = height or side, width or side
        if any(one % self.vae_scale_factor for one in size):
            raise UserError(f"{size[0]} x {size[1]} px asked for; sides must be multiples of {self.vae_scale_factor}.")
        return size

    def _shown(self: Any, image: Any, height: int | None, width: int | None, prompts: int, count: int) -> Tensor:
        """Control pictures (B, 3, H, W) in [0, 1]."""
        processor = VaeImageProcessor(vae_scale_factor=self.vae_scale_factor, do_convert_rgb=True, do_normalize=False)
        shown = processor.preprocess(image, height=height, width=width).float()
        if len(shown) not in (1, prompts):
            raise UserError(f"{len(shown)} control pictures for {prompts} prompts; give one, or one for each prompt.")
        return shown.repeat_interleave(count if len(shown) == prompts else prompts * count, dim=0)

    def _finish(self: Any, latents: Tensor, output_type: str) -> Any:
        """Decode, filter and pack."""
        images, flags = latents, None
        if output_type != "latent":
            images, flags = self._screened(to_pixels(self.vae, latents))
            images = self.image_processor.postprocess(
                images, output_type=output_type, do_denormalize=[not flag for flag in flags or [False] * len(images)]
            )
        self.maybe_free_model_hooks()
        return self._packed(images, flags)


class StyleGuidanceXLPipeline(StyleGuidance, StableDiffusionXLPipeline):
    """Style guidance for SDXL."""

    def _encode(
        self: Any, prompts: list[str], negative: list[str] | None, count: int, unconditional: bool
    ) -> tuple[Text | None, Text]:
        """Text of the negative or empty prompts (zeros where the base was trained so) and of the prompts."""
        states, empty, pooled, pooled_empty = self.encode_prompt(
            prompts, num_images_per_prompt=count, do_classifier_free_guidance=unconditional, negative_prompt=negative
        )
        return Text(empty, pooled_empty) if unconditional else None, Text(states, pooled)

    def _time_ids(self, size: tuple[int, int], told: Sizes) -> Tensor:
        """Micro-conditioning (1, 6) of all rows, that of the empty prompt included (arXiv 2307.01952, section 2.2)."""
        original, crop, target = told
        ids = (*(original or size), *(crop or (0, 0)), *(target or size))
        return torch.tensor([ids], dtype=torch.float32, device=self._execution_device)

    def _screened(self, images: Tensor) -> tuple[Tensor, None]:
        return (images if self.watermark is None else self.watermark.apply_watermark(images)), None

    def _packed(self, images: Any, flags: None) -> StableDiffusionXLPipelineOutput:
        return StableDiffusionXLPipelineOutput(images=images)


class StyleGuidancePipeline(StyleGuidance, StableDiffusionPipeline):
    """Style guidance for Stable Diffusion 1.x."""

    def _encode(
        self: Any, prompts: list[str], negative: list[str] | None, count: int, unconditional: bool
    ) -> tuple[Text | None, Text]:
        """Text of the negative or empty prompts and of the prompts."""
        states, empty = self.encode_prompt(prompts, self._execution_device, count, unconditional, negative)
        return Text(empty, None) if unconditional else None, Text(states, None)

    def _time_ids(self, size: tuple[int, int], told: Sizes) -> None:
        if any(one is not None for one in told):
            raise UserError("original_size, target_size and crops_coords_top_left are for SDXL; leave them out.")

    def _screened(self, images: Tensor) -> tuple[Tensor, list[bool] | None]:
        return self.run_safety_checker(images, images.device, images.dtype)

    def _packed(self, images: Any, flags: list[bool] | None) -> StableDiffusionPipelineOutput:
        return StableDiffusionPipelineOutput(images=images, nsfw_content_detected=flags)
