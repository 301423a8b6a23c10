"""Style LoRA files (kohya / Civitai, diffusers, PEFT) as unmerged adapters of a UNet.

Diffusers translates the foreign names and creates the layers. Around that, every layer is checked against the
UNet, and alpha comes folded into the up matrix (`lora_files`), so that each format, each missing alpha and
each mixture of ranks comes down to W + strength * up @ down.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.models.adapters import adapter_parameters, adding_adapters, lora_layers
from lightning_styles.pretrained.lora_files import (
    BASES,
    find_file,
    layer_of,
    names_of,
    read_lora,
    translate,
)

SHARE = 0.9  # of a file's layers that must exist here; of a LoRA that was made for the base all do


@dataclass(frozen=True)
class LoraReport:
    """What a style LoRA file held and what became of it.

    Attributes:
        path: the file.
        used: modules of the UNet, and `text_encoder.` and `text_encoder_2.` ones, that carry a layer of the file.
        unused: layers for which the UNet has no module.
        skipped: layers of text encoders that were left out.
        ranks: the different ranks.
        alphas: the different alphas; equal to the rank where the file has none or 0.
        base: the base model it was trained on, as far as the file tells.
    """

    path: str
    used: tuple[str, ...]
    unused: tuple[str, ...]
    skipped: tuple[str, ...]
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    base: str

    def __str__(self) -> str:
        ranks, alphas = (", ".join(f"{x:g}" for x in values) for values in (self.ranks, self.alphas))
        return (
            f"{Path(self.path).name}: {len(self.used)} layers used, {len(self.unused)} unused, "
            f"{len(self.skipped)} of text encoders skipped; rank {ranks}, alpha {alphas}; base: {self.base}"
        )


def load_style_lora(
    unet: nn.Module,
    path: str | Path,
    *,
    text_encoder: nn.Module | None = None,
    text_encoder_2: nn.Module | None = None,
    name: str = "style",
    strength: float = 0.8,
    merge: Literal["none", "reference"] = "none",
    partial: bool = False,
) -> LoraReport:
    """Add a style LoRA to a UNet as a frozen adapter in its precision: W + strength alpha / rank up @ down.

    Args:
        unet: `UNet2DConditionModel`; reached by `routed(unet, name)` afterwards.
        path: a safetensors file, or a folder with one written by diffusers or PEFT.
        text_encoder: a `CLIPTextModel` that receives the file's text-encoder part; None leaves it out, as the
            official code of SMS (arXiv 2503.07601) does.
        text_encoder_2: likewise, the `CLIPTextModelWithProjection` of SDXL.
        name: of the adapter.
        strength: multiplier of the whole LoRA; SMS takes 0.8.
        merge: "none" (default) leaves the base weights alone; "reference" adds the product, rounded to
            float16 as in the official code of SMS, to the UNet's weights (kohya files, no text encoder).
        partial: take a file too of which less than `SHARE` of the layers exist here.

    Raises:
        UserError: an unreadable, pickled or unsupported file, or a LoRA for another base model, wholly or in part.
    """
    path = find_file(Path(path))
    file = read_lora(path)
    ranks, alphas, base = file.ranks, file.alphas, file.base
    if merge == "reference":
        used, unused, skipped = merge_reference(unet, file.raw, path, base, strength, partial)
        return LoraReport(str(path), tuple(used), tuple(unused), tuple(skipped), ranks, alphas, base)
    layers = translate(file.state, unet, path, base)
    used, unused = fit(layers["unet"], unet, path, base, partial)
    found: list[str] = []
    skipped: list[str] = []
    for part, encoder in (("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2)):
        text, left = layers[part], names_of(layers[part])
        if encoder is not None and text:
            prefix = "" if hasattr(encoder, "text_model") else "text_model."  # gone in newer transformers
            text = {key.removeprefix(prefix): value for key, value in text.items()}
            reached, left = fit(text, encoder, path, base, partial)
            add_adapter(encoder, only(text, reached), name, strength, part)
            found += [f"{part}.{module}" for module in reached]
        skipped += left
    add_adapter(unet, only(layers["unet"], used), name, strength, "unet")
    return LoraReport(str(path), tuple(used + found), tuple(unused), tuple(skipped), ranks, alphas, base)


def merged_delta(
    up: Tensor, down: Tensor, alpha: float | None, strength: float, dtype: torch.dtype = torch.float32
) -> Tensor:
    """strength * alpha / rank * up @ down with the product in `dtype` (float16: official code of SMS).

    Args:
        up: (out, rank) or (out, rank, 1, 1).
        down: (rank, in) or (rank, in, kh, kw).
        alpha: None and 0 stand for the rank.
        strength: multiplier.
        dtype: of the product.

    Returns:
        (out, in) or (out, in, kh, kw) in `dtype`.
    """
    rank = up.shape[1]
    product = up.to(dtype).flatten(1) @ down.to(dtype).flatten(1)
    return strength * ((alpha or rank) / rank) * product.reshape(up.shape[0], *down.shape[1:])


def fit(
    layers: Mapping[str, Tensor], model: nn.Module, path: Path, base: str, partial: bool
) -> tuple[list[str], list[str]]:
    """Layers of the file that the model has and has not.

    Raises:
        UserError: one is of another size, or, unless `partial`, too few exist, which means another base model.
    """
    modules = dict(model.named_modules())
    used, unused, misfits = [], [], []
    for name in names_of(layers):
        weight = getattr(modules.get(name), "weight", None)
        down, up = layers.get(f"{name}.lora_A.weight"), layers.get(f"{name}.lora_B.weight")
        if weight is None or weight.ndim < 2 or down is None or up is None:
            unused.append(name)
        elif (up.shape[0], *down.shape[1:]) == weight.shape and up.shape[1] == down.shape[0]:
            used.append(name)
        else:
            misfits.append(f"{name} is {tuple(weight.shape)} here, {(up.shape[0], *down.shape[1:])} in the file")
    kind, own, every = type(model).__name__, base_of(model), len(used) + len(unused) + len(misfits)
    other = f"is a LoRA for {base}, this {kind} is for {own}" if base != own else f"does not fit this {kind} for {own}"
    if misfits or not used:
        first = f", the first is {unused[0]}" if unused else ""
        none = f"none of its {every} layers exists here{first}" if every else "it has no layers for it"
        detail = misfits[0] if misfits else none
        raise UserError(f"{path.name} {other} ({detail}); choose a LoRA that was made for this base model")
    if len(used) < SHARE * every and not partial:
        raise UserError(
            f"{path.name} {other}: {len(used)} of its {every} layers exist here, the first other is {unused[0]}; "
            "choose a LoRA that was made for this base model, or set lora_partial to true to use what fits"
        )
    return used, unused


def only(layers: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """The factors of the named layers."""
    return {key: value for key, value in layers.items() if layer_of(key) in set(names)}


def add_adapter(model: Any, layers: Mapping[str, Tensor], name: str, strength: float, part: str) -> None:
    """Create a frozen adapter with diffusers' loader; the scaling of every layer is `strength`."""
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin as Loader

    prefixed = {f"{part}.{key}": value for key, value in layers.items()}
    with adding_adapters(model):
        if part == "unet":
            Loader.load_lora_into_unet(prefixed, None, model, adapter_name=name)
        else:
            Loader.load_lora_into_text_encoder(prefixed, None, model, prefix=part, adapter_name=name)
    for _, layer in lora_layers(model):
        if name in layer.scaling:
            layer.scaling[name] = strength
    for p in adapter_parameters(model, name).values():
        p.data = p.data.to(model.dtype)
        p.requires_grad_(False)


@torch.no_grad()
def merge_reference(
    unet: nn.Module, state: Mapping[str, Tensor], path: Path, base: str, strength: float, partial: bool
) -> tuple[list[str], list[str], list[str]]:
    """Add the float16 products of a kohya file to the UNet's weights; the layers used, unused and skipped."""
    names = {f"lora_unet_{name.replace('.', '_')}": name for name, _ in unet.named_modules()}
    found = sorted(key.removesuffix(".lora_up.weight") for key in state if key.endswith(".lora_up.weight"))
    skipped = [layer for layer in found if layer.startswith("lora_te")]
    layers = [layer for layer in found if layer not in skipped]
    factors = {
        f"{names.get(layer, layer)}.lora_{ours}.weight": state[f"{layer}.lora_{theirs}.weight"]
        for layer in layers
        for ours, theirs in (("A", "down"), ("B", "up"))
    }
    used, unused = fit(factors, unet, path, base, partial)
    for layer in layers:
        if layer in names:
            alpha = state.get(f"{layer}.alpha")
            up, down = state[f"{layer}.lora_up.weight"], state[f"{layer}.lora_down.weight"]
            delta = merged_delta(up, down, None if alpha is None else float(alpha), strength, torch.float16)
            weight = unet.get_submodule(names[layer]).get_parameter("weight")
            weight += delta.to(weight)
    return used, unused, skipped


def base_of(model: Any) -> str:
    """What a UNet or text encoder is for, by the width of the text embedding."""
    width = getattr(model.config, "cross_attention_dim", None) or getattr(model.config, "hidden_size", 0)
    width = width if isinstance(width, int) else width[0]
    return BASES.get(width, f"a text embedding of width {width}")
