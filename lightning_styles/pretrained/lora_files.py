"""LoRA files of other tools: read without pickle, named as diffusers names modules, alpha folded in.

In a key `<layer>.<factor>.weight` the two factors are called lora_down and lora_up (kohya), lora.down and
lora.up (diffusers) or lora_A and lora_B (PEFT).
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.pretrained.lora_alpha import CONFIGURED, FACTOR, adapter_config, fold_alphas
from lightning_styles.pretrained.weights import read_safetensors, remedy

# By the width of the text embedding.
BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
FILES = ("pytorch_lora_weights.safetensors", CONFIGURED)  # in folders of diffusers and PEFT
TENSOR = re.compile(r"(\.\w+)?\.(weight|bias)")  # what follows; PEFT puts the adapter's name in between
REFUSED = {
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.oft_": "OFT",
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"\.lora_mid\.": "LoCon with a core tensor",
    r"\.diff(_b)?$": "full weight difference",
    r"\.lora_(B|up)(\.\w+)?\.bias$": "LoRA with biases",
    r"\.lora_embedding_": "LoRA of embeddings",
    r"scale_weight$|weight_scale$|scaled_fp8": "LoRA of scaled 8-bit numbers",
}


def find_file(path: Path) -> Path:
    """The safetensors file that `path` names, or that lies in the folder it names."""
    if path.is_dir():
        found = [path / file for file in FILES if (path / file).is_file()]
        if not found:
            raise UserError(f"no LoRA in the folder {path}, expected {' or '.join(FILES)}; give the file itself")
        path = found[0]
    if not path.is_file():
        raise UserError(f"no LoRA file at {path}; check the path")
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path.name} is a {path.suffix or 'nameless'} file, and pickles can run code when opened; "
            "download the LoRA as .safetensors"
        )
    return path


class LoraFile(NamedTuple):
    """A LoRA file with its alphas folded in.

    Attributes:
        state: all factors in float32, alpha / rank multiplied into every up matrix.
        raw: the same without alpha, beside the alphas themselves.
        ranks, alphas: the different ones.
        base: the base model it was trained on, as far as it tells.
    """

    state: dict[str, Tensor]
    raw: dict[str, Tensor]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    base: str


def read_lora(path: Path) -> LoraFile:
    """Read a LoRA file.

    Raises:
        UserError: unreadable, damaged, or no plain LoRA.
    """
    raw, metadata = read_file(path)
    state, ranks, alphas = fold_alphas(raw, adapter_config(path, metadata), path.name)
    return LoraFile(state, raw, ranks, alphas, base_hint(raw, metadata))


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, in float32, and header of a LoRA file; formats that are no plain LoRA are refused by name."""
    state, metadata = read_safetensors(path)
    for pattern, kind in REFUSED.items():
        if any(re.search(pattern, key) for key in state):
            raise UserError(f"{path.name} is a {kind} file, expected a plain LoRA; choose or extract a LoRA instead")
    if not any(FACTOR.search(key) for key in state):
        raise UserError(f"{path.name} holds no LoRA layers (first key: {min(state, default='none')}); choose another")
    for key, value in state.items():
        if FACTOR.search(key):
            check_factor(key, value, path)
    lonely = unpaired(state)
    if lonely:
        raise UserError(f"{path.name} is damaged: {lonely[0]} lacks a factor or its alpha; {remedy(path)}")
    return {key: value.float() for key, value in state.items()}, metadata


def check_factor(key: str, value: Tensor, path: Path) -> None:
    """Refuse a factor that cannot be multiplied: packed, of rank 0, or of values that half precision cannot hold."""
    if not value.is_floating_point():
        dtype = str(value.dtype).removeprefix("torch.")
        raise UserError(f"{path.name} is packed: {key} is {dtype}; choose a LoRA in floating point")
    if value.ndim < 2 or not value.numel():
        raise UserError(f"{path.name} is damaged: {key} is {tuple(value.shape)}, no matrix; {remedy(path)}")
    if not value.float().abs().max() <= torch.finfo(torch.float16).max:
        raise UserError(f"{path.name} is damaged: {key} is no matrix of finite numbers; {remedy(path)}")


def unpaired(state: Mapping[str, Tensor]) -> list[str]:
    """Layers that lack one of their two factors, or an alpha although others have one."""
    factors: dict[bool, set[str]] = {True: set(), False: set()}
    for key in state:
        factor = FACTOR.search(key)
        if factor and TENSOR.fullmatch(key, factor.end()):
            factors[factor[1] in ("up", "B")].add(layer_of(key))
    alphas = {key.removesuffix(".alpha") for key in state if key.endswith(".alpha")}
    lonely = factors[True] ^ factors[False]
    return sorted(lonely | (alphas ^ factors[True] if alphas else set()))


def translate(state: Mapping[str, Tensor], unet: Any, path: Path, base: str) -> dict[str, dict[str, Tensor]]:
    """Layers of "unet", "text_encoder", "text_encoder_2": `<module>.lora_A.weight` and lora_B."""
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin
    from diffusers.utils.state_dict_utils import (
        StateDictType,
        convert_state_dict_to_peft,
        convert_unet_state_dict_to_peft,
    )

    kohya = {key: value for key, value in state.items() if key.startswith(("lora_unet_", "lora_te"))}
    state = {key: value for key, value in state.items() if key not in kohya}
    try:
        if kohya:
            state |= StableDiffusionLoraLoaderMixin.lora_state_dict(kohya, unet_config=unet.config)[0]
    except (ValueError, KeyError) as error:
        raise UserError(f"{path.name} has layer names of another model ({base}): {str(error)[:120]}") from error
    parts: dict[str, dict[str, Tensor]] = {"unet": {}, "text_encoder": {}, "text_encoder_2": {}}
    for key, value in state.items():
        key = re.sub(r"(lora_[AB])\.\w+\.weight$", r"\1.weight", key.removeprefix("base_model.model."))
        part, _, rest = key.partition(".")
        if part in parts:
            parts[part][rest] = value
        else:
            parts["unet"][key] = value  # saved from the UNet alone, or foreign, which `fit` tells apart
    text = {
        part: convert_state_dict_to_peft(parts[part], original_type=StateDictType.DIFFUSERS_OLD)
        for part in ("text_encoder", "text_encoder_2")
    }
    return text | {"unet": convert_unet_state_dict_to_peft(parts["unet"])}


def layer_of(key: str) -> str:
    """The layer's name in a key of one of its factors."""
    factor = FACTOR.search(key)
    return key[: factor.start()] if factor else key


def names_of(state: Mapping[str, Tensor]) -> list[str]:
    """The layers in a state dict."""
    return sorted({layer_of(key) for key in state})


def base_hint(state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The base model a LoRA was trained on, by its keys' shapes, else by its header."""
    for key, value in state.items():
        if re.search(r"attn2[._](processor\.)?to_[kv]\b.*(down|lora_A)|attn2_to_[kv]\.lora_down", key):
            return BASES.get(value.shape[1], f"a text embedding of width {value.shape[1]}")
    if any(key.startswith(("lora_te2_", "text_encoder_2.")) for key in state):
        return "SDXL"
    if any(re.search(r"double_blocks|single_(transformer_)?blocks|joint_blocks|^transformer\.", k) for k in state):
        return "a transformer (Flux or Stable Diffusion 3)"
    return metadata.get("modelspec.architecture") or metadata.get("ss_base_model_version") or "an unknown base model"
