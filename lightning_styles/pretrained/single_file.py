"""Stable Diffusion 1.x or XL in one safetensors file, under the names of the original training code.

Such a file holds no configuration: architecture, tokenizers and schedule are those of the registered base folder, and
what the file tells against them refuses it.
"""

import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles.pretrained.weights import Entry, build, first_packed, read_header, read_safetensors

UNET, VAE = "model.diffusion_model.", ("first_stage_model.", "vae.")
TEXT, TEXT_XL = "cond_stage_model.transformer.", "conditioner.embedders.0.transformer."
TEXT_2 = "conditioner.embedders.1.model."  # in the layout of open_clip
INPUTS = {5: "depth", 7: "upscaling", 8: "InstructPix2Pix", 9: "inpainting"}  # by the UNet's input channels
WIDTHS = {1024: "Stable Diffusion 2.x", 1280: "the refiner of SDXL"}  # by the width of the UNet's text embedding
TRANSFORMER = re.compile(r"\.(joint|double|single|transformer)_blocks\.\d+\.(x_block|img_|linear|attn\.)")
# Tensors, most of them empty, by which trainers and user interfaces mark another prediction than that of noise.
MARKS = re.compile(r"(^|\.)(v_pred|ztsnr|edm_mean|edm_std|edm_vpred(\..+)?)$", re.IGNORECASE)
PREDICTION = re.compile(r"(prediction_type|predict(ion)?_key)$", re.IGNORECASE)
FLAGS = re.compile(r"(v_parameterization|v_pred|zero_terminal_snr|ztsnr)$", re.IGNORECASE)
ARCHITECTURES = re.compile(r"edm|v-?pred|768-v", re.IGNORECASE)


def check_single_file(path: Path) -> str:
    """The registered base whose configuration fits a file, unless its header shows that it is of no use here.

    Raises:
        UserError: it is damaged.
        ValueError: what is wrong with it.
    """
    if path.suffix != ".safetensors":
        raise ValueError(
            "it is not a .safetensors file; a pickle may run code and is not opened: download the .safetensors "
            "file of the same model"
        )
    entries, metadata = read_header(path)
    if wrong := _other_model(entries) or _other_prediction(entries, metadata) or _lacking(entries):
        raise ValueError(wrong)
    return "stable-diffusion-xl" if _is_xl(entries) else "stable-diffusion-v1-5"


def load_single_file(path: Path, base: Path) -> dict[str, Any]:
    """Its parts as in `StableDiffusion`, every tensor of the networks taken from the file.

    Args:
        path: the file.
        base: folder of the configuration.

    Raises:
        UserError, ValueError: tensors are missing or shaped differently.
    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    state, _ = read_safetensors(path)
    is_xl = _is_xl(state)
    parts: dict[str, Any] = {}
    for name, kind, convert in (
        ("unet", UNet2DConditionModel, convert_ldm_unet_checkpoint),
        ("vae", AutoencoderKL, convert_ldm_vae_checkpoint),
    ):
        config = kind.load_config(base, subfolder=name, local_files_only=True)
        converted = {key: tensor for key, tensor in convert(dict(state), config=config).items() if tensor is not None}
        make: Any = partial(kind.from_config, config)
        parts[name] = build(make, converted, f"its {name}")
    for suffix, kind in (("", CLIPTextModel), *([("_2", CLIPTextModelWithProjection)] if is_xl else [])):
        parts[f"text_encoder{suffix}"] = _text_encoder(kind, base / f"text_encoder{suffix}", state)
        parts[f"tokenizer{suffix}"] = CLIPTokenizer.from_pretrained(base / f"tokenizer{suffix}", local_files_only=True)
    scheduler = DDIMScheduler.load_config(base, subfolder="scheduler", local_files_only=True)
    return parts | {"scheduler": dict(scheduler)}  # type: ignore[arg-type]


def _text_encoder(kind: Any, folder: Path, state: Mapping[str, Tensor]) -> Any:
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint

    config = kind.config_class.from_pretrained(folder, local_files_only=True)
    if folder.name == "text_encoder":
        own = convert_ldm_clip_checkpoint(dict(state))
    else:
        with torch.device("meta"):
            shape = kind(config)
        own = convert_open_clip_checkpoint(shape, dict(state), prefix=TEXT_2)
    options = {"dtype": torch.float32, "output_loading_info": True}
    return whole(folder.name, kind.from_pretrained(None, config=config, state_dict=own, **options))


def whole(part: str, loaded: Any) -> Any:
    """The network of `from_pretrained`, unless the file lacks weights: they would be left random.

    Raises:
        ValueError: naming the first one.
    """
    network, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"its {part} lacks {len(missing)} tensors, the first is {missing[0]}")
    return network


def _is_xl(keys: Iterable[str]) -> bool:
    return any(key.startswith(f"{UNET}label_emb.") for key in keys)


def _other_model(entries: Mapping[str, Entry]) -> str | None:
    """Why these are not the tensors of Stable Diffusion 1.x or SDXL."""
    if transformer := next(filter(TRANSFORMER.search, entries), None):
        return f"it is a transformer such as Flux or Stable Diffusion 3 ({transformer}), not Stable Diffusion 1.x or XL"
    if not any(key.startswith(UNET) for key in entries):
        return f"it has no tensors of a UNet ({UNET}...)"
    own = (UNET, *VAE, TEXT, TEXT_XL, TEXT_2, "scaled_fp8")
    if packed := first_packed({key: entry for key, entry in entries.items() if key.startswith(own)}):
        return packed
    first = entries.get(f"{UNET}input_blocks.0.0.weight", Entry("", (0, 4)))
    inputs = first.shape[1] if len(first.shape) > 1 else 0
    if inputs != 4:
        use = INPUTS.get(inputs, "another use")
        return f"its UNet is for {use}: it takes {inputs} channels, expected 4"
    texts = {entry.shape[-1] for key, entry in entries.items() if key.endswith("attn2.to_k.weight") and entry.shape}
    if other := next((WIDTHS[width] for width in texts if width in WIDTHS), None):
        return f"it is {other}, expected Stable Diffusion 1.x or SDXL"
    return None


def _other_prediction(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> str | None:
    """Why the model predicts something else than noise, or at other noise levels, than Stable Diffusion 1.x and XL."""
    says = next(filter(MARKS.search, entries), None)
    for key, value in metadata.items():
        word = value.strip().lower()
        if (
            (PREDICTION.search(key) and word not in ("epsilon", "eps", ""))
            or (FLAGS.search(key) and word in ("true", "1", "yes"))
            or (key.endswith("architecture") and ARCHITECTURES.search(value))
        ):
            says = f"{key} {value[:40]}"
    if says is None:
        return None
    return f"it says {says}, so it predicts v, or at other noise levels; expected a model that predicts epsilon"


def _lacking(entries: Mapping[str, Entry]) -> str | None:
    """Which part is not there at all."""
    texts = (TEXT_XL, TEXT_2) if _is_xl(entries) else (TEXT,)
    for part, begins in (("autoencoder", VAE), *(("text encoder", (text,)) for text in texts)):
        if not any(key.startswith(begins) for key in entries):
            return f"it has no {part} ({begins[0]}...); give a file that holds UNet, autoencoder and text encoder"
    return None
