"""The single-file layout of Stable Diffusion 1.x and XL, with the names of the original code, from a folder."""

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding",
    "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks",
    "layer_norm": "ln_",
    "self_attn": "attn",
    "fc1": "c_fc",
    "fc2": "c_proj",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_key(key: str, per_level: int, attention_up: list[bool]) -> str:
    """Name in a single file of the UNet's tensor `key`; `per_level` residual blocks lie on each level's way down."""
    for ours, theirs in OUTSIDE.items():
        if key.startswith(ours):
            return key.replace(ours, theirs, 1)
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", key):
        kind, number, rest = found.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(number)}.{inside(kind, rest)}"
    way, level, kind, number, rest = re.match(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", key).groups()  # type: ignore[union-attr]
    level, number = int(level), int(number)
    if way == "down":
        first = level * (per_level + 1) + 1
        if kind == "downsamplers":
            return f"input_blocks.{first + per_level}.0.{rest.replace('conv', 'op')}"
        return f"input_blocks.{first + number}.{int(kind == 'attentions')}.{inside(kind, rest)}"
    first = level * (per_level + 1)
    if kind == "upsamplers":
        return f"output_blocks.{first + per_level}.{1 + attention_up[level]}.{rest}"
    return f"output_blocks.{first + number}.{int(kind == 'attentions')}.{inside(kind, rest)}"


def inside(kind: str, rest: str) -> str:
    """Name inside a residual block; transformers keep theirs."""
    name, _, parameter = rest.rpartition(".")
    return f"{RESNET[name]}.{parameter}" if kind == "resnets" else rest


def vae_key(key: str, levels: int) -> str:
    """Name in a single file of the autoencoder's tensor `key`; the decoder's levels count from the other end there."""
    key = re.sub(r"down_blocks\.(\d)\.resnets\.", r"down.\1.block.", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    for way, name in (("resnets\\.", "block."), ("upsamplers\\.0", "upsample")):
        key = re.sub(rf"up_blocks\.(\d)\.{way}", lambda m, n=name: f"up.{levels - 1 - int(m[1])}.{n}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0" in key:
        key = key.replace("mid_block.attentions.0", "mid.attn_1")
        for ours, theirs in ATTENTION.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
    return key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def open_clip_state(text: CLIPTextModelWithProjection) -> dict[str, Tensor]:
    """A text encoder as open_clip names it: queries, keys and values are one matrix, the projection lies across."""
    state = {key.removeprefix("text_model."): value for key, value in text.state_dict().items()}
    result = {"text_projection": state.pop("text_projection.weight").T}
    for key, value in state.items():
        for ours, theirs in OPEN_CLIP.items():
            key = key.replace(ours, theirs)
        if "_proj." not in key or "out_proj" in key or "c_proj" in key:
            result[key] = value
        elif "q_proj" in key:
            layer, kind = key.split(".q_proj.")
            parts = [
                state[
                    f"{layer.replace('transformer.resblocks', 'encoder.layers')}.".replace(".attn.", ".self_attn.")
                    + f"{x}_proj.{kind}"
                ]
                for x in "qkv"
            ]
            result[f"{layer}.in_proj_{kind}"] = torch.cat(parts)
    return result


def write_single_file(folder: Path, path: Path) -> None:
    """Write the base in `folder` as one file."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    text = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
    up = [hasattr(block, "attentions") for block in unet.up_blocks]
    per_level = unet.config.layers_per_block
    state = {f"model.diffusion_model.{unet_key(k, per_level, up)}": v for k, v in unet.state_dict().items()}
    levels = len(vae.config.block_out_channels)
    for key, value in vae.state_dict().items():
        name = vae_key(key, levels)
        square = ".attn_1." in name and value.ndim == 2  # 1 x 1 convolutions there
        state[f"first_stage_model.{name}"] = value[..., None, None] if square else value
    is_xl = (folder / "text_encoder_2").is_dir()
    prefix = "conditioner.embedders.0" if is_xl else "cond_stage_model"
    for key, value in text.state_dict().items():
        state[f"{prefix}.transformer.text_model.{key.removeprefix('text_model.')}"] = value
    if is_xl:
        second = CLIPTextModelWithProjection.from_pretrained(folder, subfolder="text_encoder_2")
        state |= {f"conditioner.embedders.1.model.{key}": value for key, value in open_clip_state(second).items()}
    save_file({key: value.contiguous() for key, value in state.items()}, path)
