"""A Stable Diffusion base in the layout of diffusers: folder or single file -> frozen parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.pretrained import fingerprint, locate

SINGLE_FILE = "model.diffusion_model."  # what the UNet's tensors are called in a single file


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
        cause = f"{error} is missing" if isinstance(error, KeyError) else str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} is not a Stable Diffusion base in diffusers layout: {cause.rstrip('.')}; "
            "download it again, or give the path of another one."
        ) from error
    check_parts(path, parts)
    for part in ("unet", "vae", "text_encoder"):
        parts[part].eval().requires_grad_(False)
    return StableDiffusion(**parts, sha256=fingerprint(path))


def check_parts(path: Path, parts: dict[str, Any]) -> None:
    """Refuse a base that is put together from parts of different models.

    Raises:
        UserError: naming the two parts and what differs.
    """
    unet, vae, text = (parts[part].config for part in ("unet", "vae", "text_encoder"))
    pairs = (
        ("the UNet's text embedding", unet.cross_attention_dim, "the text encoder's width", text.hidden_size),
        ("the UNet's latent channels", unet.in_channels, "the autoencoder's", vae.latent_channels),
    )
    for first, one, second, other in pairs:
        if one != other:
            raise UserError(f"{path} mixes two models: {first} is {one}, {second} {other}; take all from one model.")
    words = max(parts["tokenizer"].get_vocab().values(), default=-1) + 1
    if not 2 < words <= text.vocab_size:
        raise UserError(
            f"{path} has a foreign tokenizer: its words are numbered up to {words}, the text encoder knows "
            f"{text.vocab_size}; take both from one model."
        )


def _from_folder(path: Path) -> dict[str, Any]:
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    if not any((path / "tokenizer" / file).is_file() for file in ("vocab.json", "tokenizer.json")):
        raise FileNotFoundError("it has no tokenizer/vocab.json")  # transformers would make one without words
    local: dict[str, Any] = {"local_files_only": True}
    # Never a pickle, which may run code.
    weights: dict[str, Any] = local | {"use_safetensors": True, "output_loading_info": True}
    return {
        "unet": _whole("unet", UNet2DConditionModel.from_pretrained(path, subfolder="unet", **weights)),
        "vae": _whole("vae", AutoencoderKL.from_pretrained(path, subfolder="vae", **weights)),
        "text_encoder": _whole(
            "text_encoder",
            CLIPTextModel.from_pretrained(path, subfolder="text_encoder", dtype=torch.float32, **weights),
        ),
        "tokenizer": CLIPTokenizer.from_pretrained(path, subfolder="tokenizer", **local),
        "scheduler": dict(DDIMScheduler.load_config(path, subfolder="scheduler", **local)),  # type: ignore[arg-type]
    }


def _whole(part: str, loaded: Any) -> Any:
    """The network of `from_pretrained`, unless the file lacks weights: diffusers would leave them random."""
    network, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"its {part} lacks {len(missing)} tensors, the first is {missing[0]}")
    return network


def _from_single_file(path: Path) -> dict[str, Any]:
    from diffusers import StableDiffusionPipeline
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file; a pickle may run code and is not opened. "
            "Download the .safetensors file of the same model."
        )
    with safe_open(path, framework="pt") as file:
        if not any(key.startswith(SINGLE_FILE) for key in file.keys()):  # noqa: SIM118 - it is no dict
            raise ValueError(f"it has no tensors of a UNet ({SINGLE_FILE}...)")
    # Single files hold no configuration: it is read from the registered SD 1.5 folder, which must be present.
    config = locate("stable-diffusion-v1-5", "stable-diffusion")
    unused = {"safety_checker": None, "feature_extractor": None}  # would be looked for in that folder too
    pipeline = StableDiffusionPipeline.from_single_file(path, config=str(config), local_files_only=True, **unused)
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
