"""LoRA files for other tools, from the adapters of a UNet."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles.files import replacing
from lightning_styles.models.adapters import lora_layers


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

    state = {f"unet.{k}": v.float() for k, v in get_peft_model_state_dict(unet, adapter_name=name).items()}
    scales = {f"unet.{path}": layer.scaling[name] for path, layer in lora_layers(unet) if name in layer.scaling}
    header = {"format": "pt"}
    if layout != "official":
        ranks = {path: state[f"{path}.lora_A.weight"].shape[0] for path in scales}
        alphas = {path: scale * ranks[path] for path, scale in scales.items()}
        header |= {"ss_network_dim": same(ranks.values()), "ss_network_alpha": same(alphas.values())}
        header |= {f"lightning_styles.{key}": value for key, value in (metadata or {}).items()}
    state = kohya(state, scales) if layout == "kohya" else without_alpha(state, scales)
    if layout == "official":
        state = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in state.items()}
    # Clones, because adapters may share a matrix and files may not. Alphas stay exact.
    state = {k: v.detach().to("cpu", dtype if v.ndim else v.dtype).contiguous().clone() for k, v in state.items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata=header)


def kohya(state: dict[str, Tensor], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """In the names of kohya, each layer with its alpha, which is rank times scale."""
    from diffusers.utils import convert_state_dict_to_kohya

    alphas = {
        f"lora_{path.replace('.', '_')}.alpha": torch.tensor(float(scale * state[f"{path}.lora_A.weight"].shape[0]))
        for path, scale in scales.items()
    }
    return convert_state_dict_to_kohya(state) | alphas


def without_alpha(state: dict[str, Tensor], scales: Mapping[str, float]) -> dict[str, Tensor]:
    """For layouts that know no alpha: the scale goes into the up matrices."""
    ups = {f"{path}.lora_B.weight": scale for path, scale in scales.items()}
    return {k: v * ups.get(k, 1.0) for k, v in state.items()}


def same(values: Iterable[float]) -> str:
    """The one value of all layers, or "Dynamic", as kohya's tools call it."""
    found = {f"{value:g}" for value in values}
    return found.pop() if len(found) == 1 else "Dynamic"
