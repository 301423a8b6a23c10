"""LoRA files of other tools: read without pickle, named as diffusers names modules, alpha folded in.

In a key `<layer>.<factor>.weight` the two factors are called lora_down and lora_up (kohya), lora.down and
lora.up (diffusers) or lora_A and lora_B (PEFT).
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles.errors import UserError

# By the width of the text embedding.
BASES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # in folders of diffusers and PEFT
FACTOR = re.compile(r"[._]lora(?:_linear_layer)?[._](up|down|A|B)\b")  # where the layer's name ends in a key
TENSOR = re.compile(r"(\.\w+)?\.(weight|bias)")  # what follows; PEFT puts the adapter's name in between
REFUSED = {
    r"\.hada_": "LoHa",
    r"\.lokr_": "LoKr",
    r"\.oft_": "OFT",
    r"dora_scale|lora_magnitude_vector": "DoRA",
    r"\.lora_mid\.": "LoCon with a core tensor",
    r"\.diff(_b)?$": "full weight difference",
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


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a LoRA file; formats that are no plain LoRA are refused by name."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is truncated or no safetensors file ({error}); download it again") from error
    for pattern, kind in REFUSED.items():
        if any(re.search(pattern, key) for key in state):
            raise UserError(f"{path.name} is a {kind} file, expected a plain LoRA; choose or extract a LoRA instead")
    if not any(FACTOR.search(key) for key in state):
        raise UserError(f"{path.name} holds no LoRA layers (first key: {min(state, default='none')}); choose another")
    for key, value in state.items():
        if FACTOR.search(key) and key.endswith(".weight") and (value.ndim < 2 or not torch.isfinite(value).all()):
            raise UserError(f"{path.name} is damaged: {key} is no matrix of finite numbers; download it again")
    lonely = unpaired(state)
    if lonely:
        raise UserError(f"{path.name} is damaged: {lonely[0]} lacks a factor or its alpha; download it again")
    return state, metadata


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


def adapter_config(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The PEFT configuration, which diffusers writes into the header and PEFT beside the file; else {}."""
    beside, text = path.with_name("adapter_config.json"), metadata.get("lora_adapter_metadata")
    try:
        if text is None and path.name == FILES[1] and beside.is_file():
            text = beside.read_text(encoding="utf-8")
        config = {} if text is None else json.loads(text)
    except ValueError as error:
        raise UserError(f"the configuration of {path.name} is no JSON ({error}); download the LoRA again") from error
    return config if isinstance(config, dict) else {}


def fold_alphas(
    state: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[dict[str, Tensor], tuple[int, ...], tuple[float, ...]]:
    """The tensors in float32 with alpha / rank multiplied into every up matrix; ranks and alphas seen."""
    folded = {key: value.float() for key, value in state.items() if not key.endswith(".alpha")}
    ranks, alphas = set(), set()
    for key, up in folded.items():
        factor = FACTOR.search(key)
        if factor is None or factor[1] not in ("up", "B"):
            continue
        layer, rank = key[: factor.start()], up.shape[1]
        stored = state.get(f"{layer}.alpha")
        alpha = float(stored) if stored is not None else configured_alpha(config, layer, rank)
        alpha = alpha or float(rank)
        folded[key] = up * (alpha / rank)
        ranks.add(rank)
        alphas.add(alpha)
    return folded, tuple(sorted(ranks)), tuple(sorted(alphas))


def configured_alpha(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """Alpha of a layer by its PEFT configuration; the rank if that says nothing."""
    part = "text_encoder." if layer.startswith("text_encoder.") else "unet."

    def setting(key: str) -> Any:
        return config.get(part + key, config.get(key))

    alpha = setting("lora_alpha") or rank
    for pattern, value in (setting("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            alpha = value
    return alpha * rank**0.5 if setting("use_rslora") else alpha


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
