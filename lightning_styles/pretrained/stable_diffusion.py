"""A Stable Diffusion base in the layout of diffusers: folder or single file -> frozen parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.pretrained import fingerprint, locate


@dataclass
class StableDiffusion:
    """The parts of a base model, all frozen and in eval mode, on the CPU in float32."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: dict[str, Any]
    sha256: str

    @property
    def multiple(self) -> int:
        """Sides of pictures must be multiples of this: the VAE's factor times the UNet's."""
        return 2 ** (len(self.vae.config.block_out_channels) + len(self.unet.config.block_out_channels) - 2)

    def pipeline(self, **replace: Any) -> Any:
        """A diffusers StableDiffusionPipeline over the same parts, with `replace`d components."""
        from diffusers import DDIMScheduler, StableDiffusionPipeline

        parts = {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": self.unet,
            "scheduler": DDIMScheduler.from_config(self.scheduler),
            "safety_checker": None,
            "feature_extractor": None,
        }
        pipeline = StableDiffusionPipeline(**(parts | replace), requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_stable_diffusion(name: str) -> StableDiffusion:
    """Load the base behind `name`: a diffusers folder, a single .safetensors file or a name of the registry."""
    from diffusers.utils import logging as diffusers_log
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_log

    diffusers_log.set_verbosity_error()  # its remarks on precision do not apply: casts here are meant
    transformers_log.disable_progress_bar()
    path = locate(name, "stable-diffusion")
    try:
        parts = _from_single_file(path) if path.is_file() else _from_folder(path)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"{path} is not a Stable Diffusion base in diffusers layout: {error}") from error
    for part in ("unet", "vae", "text_encoder"):
        parts[part].eval().requires_grad_(False)
    return StableDiffusion(**parts, sha256=fingerprint(path))


def _from_folder(path: Path) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    if not any((path / "tokenizer" / file).is_file() for file in ("vocab.json", "tokenizer.json")):
        raise FileNotFoundError("it has no tokenizer/vocab.json")  # transformers would make one without words
    local: dict[str, Any] = {"local_files_only": True}
    return {
        "unet": UNet2DConditionModel.from_pretrained(path, subfolder="unet", **local),
        "vae": AutoencoderKL.from_pretrained(path, subfolder="vae", **local),
        "text_encoder": CLIPTextModel.from_pretrained(
            path, subfolder="text_encoder", dtype=torch.float32, use_safetensors=True, **local
        ),
        "tokenizer": CLIPTokenizer.from_pretrained(path, subfolder="tokenizer", **local),
        "scheduler": dict(DDIMScheduler.load_config(path, subfolder="scheduler", **local)),  # type: ignore[arg-type]
    }


def _from_single_file(path: Path) -> dict[str, Any]:
    from diffusers import StableDiffusionPipeline

    if path.suffix != ".safetensors":
        raise UserError(f"{path} is not a .safetensors file; a pickle may run code and is not opened here.")
    # Single files hold no configuration: it is read from the registered SD 1.5 folder, which must be present.
    config = locate("stable-diffusion-v1-5", "stable-diffusion")
    pipeline = StableDiffusionPipeline.from_single_file(path, config=str(config), local_files_only=True)
    return {
        "unet": pipeline.unet,
        "vae": pipeline.vae,
        "text_encoder": pipeline.text_encoder,
        "tokenizer": pipeline.tokenizer,
        "scheduler": dict(pipeline.scheduler.config),
    }


def encode_prompts(text_encoder: nn.Module, tokenizer: Any, prompts: list[str]) -> Tensor:
    """Last hidden states (B, L, D) of `prompts`, padded or cut to the tokenizer's length L.

    In the encoder's own precision, whether asked inside or outside of autocast, and one prompt after the other: the
    last bits depend on neither, so a resumed run may ask in another order.
    """
    device = next(text_encoder.parameters()).device
    tokens = tokenizer(
        prompts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    )
    with torch.autocast(device.type, enabled=False):
        return torch.cat([text_encoder(ids)[0] for ids in tokens.input_ids.to(device).split(1)])
