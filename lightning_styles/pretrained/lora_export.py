"""LoRA files for other tools, from the adapters of a UNet."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles.files import replacing


def save_lora(
    unet: Any,
    path: Path,
    layout: str,
    name: str = "style",
    metadata: dict[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write one adapter of a UNet as a safetensors file.

    Args:
        unet: a diffusers model with adapters.
        path: of the file.
        layout: "kohya"; "diffusers"; or "official", that of PairCustomization, which is an older one of diffusers.
        name: of the adapter.
        metadata: for the file's header, which the official layout keeps empty.
        dtype: of the tensors.
    """
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = unet.peft_config[name]
    state = {f"unet.{k}": v.float() for k, v in get_peft_model_state_dict(unet, adapter_name=name).items()}
    header = {"format": "pt"}
    if layout != "official":
        header |= {"ss_network_dim": str(config.r), "ss_network_alpha": f"{config.lora_alpha:g}"}
        header |= {f"lightning_styles.{key}": value for key, value in (metadata or {}).items()}
    state = kohya(state, config.lora_alpha) if layout == "kohya" else without_alpha(state, config.lora_alpha / config.r)
    if layout == "official":
        state = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in state.items()}
    # Clones, because adapters may share a matrix and files may not.
    state = {k: v.detach().to("cpu", dtype).contiguous().clone() for k, v in state.items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata=header)


def kohya(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """In the names of kohya, each layer with its alpha."""
    from diffusers.utils import convert_state_dict_to_kohya

    value = torch.tensor(float(alpha))
    return {k: value if k.endswith(".alpha") else v for k, v in convert_state_dict_to_kohya(state).items()}


def without_alpha(state: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """For layouts that know no alpha: alpha / rank goes into the up matrices."""
    return {k: v * factor if "lora_B" in k else v for k, v in state.items()}
