"""A Stable Diffusion base, 1.x or XL, in the layout of diffusers: folder or single file -> frozen parts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.pretrained import fingerprint, locate

SINGLE_FILE = "model.diffusion_model."  # what the UNet's tensors are called in a single file
SINGLE_FILE_XL = "conditioner.embedders.1."  # the second text encoder's, which only SDXL has


@dataclass(frozen=True)
class Text:
    """What a base model is told: states (B, L, D) of every token and, for SDXL, one vector (B, P) for all."""

    states: Tensor
    pooled: Tensor | None = None

    @classmethod
    def cat(cls, texts: list["Text"]) -> "Text":
        """Several as one batch."""
        pooled = [text.pooled for text in texts if text.pooled is not None]
        return cls(torch.cat([text.states for text in texts]), torch.cat(pooled) if pooled else None)

    def to(self, *args: Any, **kwargs: Any) -> "Text":
        """The same on another device or in another precision."""
        states = self.states.to(*args, **kwargs)
        return Text(states, None if self.pooled is None else self.pooled.to(*args, **kwargs))


@dataclass
class StableDiffusion:
    """The parts of a base model, all frozen and in eval mode, on the CPU in float32.

    SDXL has a second text encoder and tokenizer; both are None in Stable Diffusion 1.x.
    """

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: dict[str, Any]
    sha256: str
    text_encoder_2: Any = None
    tokenizer_2: Any = None

    @property
    def is_xl(self) -> bool:
        """Whether this is SDXL, which is told sizes and crops beside two texts."""
        return self.text_encoder_2 is not None

    @property
    def multiple(self) -> int:
        """Sides of pictures must be multiples of this: the VAE's factor times the UNet's."""
        return 2 ** (len(self.vae.config.block_out_channels) + len(self.unet.config.block_out_channels) - 2)

    def pipeline(self, **replace: Any) -> Any:
        """A diffusers StableDiffusionPipeline, or -XLPipeline, over the same parts, with `replace`d components."""
        from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

        return self.assemble(StableDiffusionXLPipeline if self.is_xl else StableDiffusionPipeline, **replace)

    def assemble(self, pipeline_class: Any, **replace: Any) -> Any:
        """The same as any subclass of diffusers' two pipelines; the scheduler is DDIM unless replaced."""
        from diffusers import DDIMScheduler

        parts = {
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            "tokenizer": self.tokenizer,
            "unet": self.unet,
            "scheduler": DDIMScheduler.from_config(self.scheduler),
        }
        if self.is_xl:
            parts |= {"text_encoder_2": self.text_encoder_2, "tokenizer_2": self.tokenizer_2}
            options: dict[str, Any] = {"add_watermarker": False}
        else:
            options = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = pipeline_class(**(parts | options | replace))
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_stable_diffusion(name: str, vae: str | None = None) -> StableDiffusion:
    """Load the base behind `name`: a diffusers folder, a single .safetensors file or a name of the registry.

    Args:
        name: of a Stable Diffusion 1.x or SDXL.
        vae: folder, or name, of an autoencoder that replaces the base's own.
    """
    from diffusers.utils import logging as diffusers_log
    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_log

    diffusers_log.set_verbosity_error()  # its remarks on precision do not apply: casts here are meant
    transformers_log.disable_progress_bar()
    path = locate(name, "stable-diffusion")
    try:
        parts = _from_single_file(path) if path.is_file() else _from_folder(path)
        if vae is not None:
            path = locate(vae, "vae")
            parts["vae"] = _load_vae(path, "")
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        cause = f"{error} is missing" if isinstance(error, KeyError) else str(error).strip().splitlines()[0]
        raise UserError(
            f"{path} is not a Stable Diffusion base in diffusers layout: {cause.rstrip('.')}; "
            "download it again, or give the path of another one."
        ) from error
    check_parts(path, parts)
    for part in ("unet", "vae", "text_encoder", "text_encoder_2"):
        if parts.get(part) is not None:
            parts[part].eval().requires_grad_(False)
    return StableDiffusion(**parts, sha256=fingerprint(locate(name, "stable-diffusion")))


def check_parts(path: Path, parts: dict[str, Any]) -> None:
    """Refuse a base that is put together from parts of different models.

    Raises:
        UserError: naming the two parts and what differs.
    """
    unet, vae, text = (parts[part].config for part in ("unet", "vae", "text_encoder"))
    second = parts.get("text_encoder_2")
    width = text.hidden_size + (second.config.hidden_size if second is not None else 0)
    pairs = (
        ("the UNet's text embedding", unet.cross_attention_dim, "the text encoders' width", width),
        ("the UNet's latent channels", unet.in_channels, "the autoencoder's", vae.latent_channels),
    )
    for first, one, second, other in pairs:
        if one != other:
            raise UserError(f"{path} mixes two models: {first} is {one}, {second} {other}; take all from one model.")
    for suffix in ("", "_2"):
        if parts.get(f"tokenizer{suffix}") is not None:
            _check_words(path, parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"].config.vocab_size)


def _check_words(path: Path, tokenizer: Any, known: int) -> None:
    words = max(tokenizer.get_vocab().values(), default=-1) + 1
    if not 2 < words <= known:
        raise UserError(
            f"{path} has a foreign tokenizer: its words are numbered up to {words}, the text encoder knows "
            f"{known}; take both from one model."
        )


# Never a pickle, which may run code.
WEIGHTS: dict[str, Any] = {"local_files_only": True, "use_safetensors": True, "output_loading_info": True}


def _from_folder(path: Path) -> dict[str, Any]:
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    parts = {
        "unet": _whole("unet", UNet2DConditionModel.from_pretrained(path, subfolder="unet", **WEIGHTS)),
        "vae": _load_vae(path, "vae"),
        "text_encoder": _load_text_encoder(path, "text_encoder", CLIPTextModel),
        "tokenizer": _load_tokenizer(path, "tokenizer"),
        "scheduler": dict(DDIMScheduler.load_config(path, subfolder="scheduler", local_files_only=True)),  # type: ignore[arg-type]
    }
    if parts["unet"].config.addition_embed_type != "text_time":
        return parts
    second = {
        "text_encoder_2": _load_text_encoder(path, "text_encoder_2", CLIPTextModelWithProjection),
        "tokenizer_2": _load_tokenizer(path, "tokenizer_2"),
    }
    return parts | second


def _load_vae(path: Path, subfolder: str) -> Any:
    from diffusers import AutoencoderKL

    return _whole("vae", AutoencoderKL.from_pretrained(path, subfolder=subfolder or None, **WEIGHTS))


def _load_text_encoder(path: Path, part: str, text_class: Any) -> Any:
    return _whole(part, text_class.from_pretrained(path, subfolder=part, dtype=torch.float32, **WEIGHTS))


def _load_tokenizer(path: Path, part: str) -> Any:
    from transformers import CLIPTokenizer

    if not any((path / part / file).is_file() for file in ("vocab.json", "tokenizer.json")):
        raise FileNotFoundError(f"it has no {part}/vocab.json")  # transformers would make one without words
    return CLIPTokenizer.from_pretrained(path, subfolder=part, local_files_only=True)


def _whole(part: str, loaded: Any) -> Any:
    """The network of `from_pretrained`, unless the file lacks weights: diffusers would leave them random."""
    network, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"its {part} lacks {len(missing)} tensors, the first is {missing[0]}")
    return network


def _from_single_file(path: Path) -> dict[str, Any]:
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
    from safetensors import safe_open

    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is not a .safetensors file; a pickle may run code and is not opened. "
            "Download the .safetensors file of the same model."
        )
    with safe_open(path, framework="pt") as file:
        keys = list(file.keys())
    if not any(key.startswith(SINGLE_FILE) for key in keys):
        raise ValueError(f"it has no tensors of a UNet ({SINGLE_FILE}...)")
    is_xl = any(key.startswith(SINGLE_FILE_XL) for key in keys)
    # Single files hold no configuration: it is read from the registered base folder, which must be present.
    config = str(locate("stable-diffusion-xl" if is_xl else "stable-diffusion-v1-5", "stable-diffusion"))
    if is_xl:
        pipeline = StableDiffusionXLPipeline.from_single_file(path, config=config, local_files_only=True)
    else:
        unused = {"safety_checker": None, "feature_extractor": None}  # would be looked for in that folder too
        pipeline = StableDiffusionPipeline.from_single_file(path, config=config, local_files_only=True, **unused)
    names = ["unet", "vae", "text_encoder", "tokenizer"] + (["text_encoder_2", "tokenizer_2"] if is_xl else [])
    return {name: getattr(pipeline, name) for name in names} | {"scheduler": dict(pipeline.scheduler.config)}


def embed_prompts(base: StableDiffusion, prompts: list[str]) -> Text:
    """What the UNet of `base` is told for `prompts`, in float32 on the text encoders' device.

    Stable Diffusion 1.x takes the last states of its encoder; SDXL (arXiv 2307.01952, section 2.1) the last but
    one of both encoders side by side, and the projected end-of-text state of the second. One prompt after the
    other, as in `encode_prompts`.
    """
    if not base.is_xl:
        return Text(encode_prompts(base.text_encoder, base.tokenizer, prompts))
    device = next(base.text_encoder.parameters()).device
    parts: list[list[Tensor]] = []
    with torch.autocast(device.type, enabled=False):
        for prompt in prompts:
            first = base.text_encoder(token_ids(base.tokenizer, [prompt]).to(device), output_hidden_states=True)
            second = base.text_encoder_2(token_ids(base.tokenizer_2, [prompt]).to(device), output_hidden_states=True)
            states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
            parts.append([states, second.text_embeds])
    states, pooled = (torch.cat(part) for part in zip(*parts, strict=True))
    return Text(states, pooled)


def token_ids(tokenizer: Any, prompts: list[str]) -> Tensor:
    """Numbers (B, L) of the tokens of `prompts`, padded or cut to the tokenizer's length."""
    length = tokenizer.model_max_length
    return tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def encode_prompts(text_encoder: nn.Module, tokenizer: Any, prompts: list[str]) -> Tensor:
    """Last hidden states (B, L, D) of `prompts`, padded or cut to the tokenizer's length L.

    In the encoder's own precision, whether asked inside or outside of autocast, and one prompt after the other: the
    last bits depend on neither, so a resumed run may ask in another order.
    """
    device = next(text_encoder.parameters()).device
    tokens = token_ids(tokenizer, prompts).to(device)
    with torch.autocast(device.type, enabled=False):
        return torch.cat([text_encoder(ids)[0] for ids in tokens.split(1)])
