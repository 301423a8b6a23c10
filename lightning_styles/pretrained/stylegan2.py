"""Files of StyleGAN2: the rosinality `.pt`, NVIDIA's `.pkl` for PyTorch, and safetensors of this package.

All loaders read the architecture from the file, take every key or refuse it, and return frozen float32 networks on the
CPU. Filters and noise maps may be missing, as in some copies; filters are always the same, and noise maps are then
drawn, always alike.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.files import replacing
from lightning_styles.models.stylegan2 import Discriminator, Generator
from lightning_styles.models.stylegan2.ops import make_kernel
from lightning_styles.noise import generator as random
from lightning_styles.pretrained.nvidia import read_nvidia, rosinality_discriminator, rosinality_generator
from lightning_styles.pretrained.weights import as_state, as_vector, build, read_safetensors, read_torch

State = Mapping[str, Tensor]
PARTS = ("g_ema", "g", "d")
DRAWS = 10_000  # of z, for the mean of w that a file leaves out


@dataclass
class StyleGAN2:
    """A trained pair.

    Attributes:
        generator: the averaged one, `g_ema`.
        latent_avg: (D,), the mean of w.
        discriminator: `d`, or None: then nothing can be finetuned.
        trained: `g`, of which `generator` is the average, or None.
    """

    generator: Generator
    latent_avg: Tensor
    discriminator: Discriminator | None = None
    trained: Generator | None = None


def load_stylegan2(path: Path, finetune: bool = False) -> StyleGAN2:
    """A rosinality checkpoint, NVIDIA's pickle (`.pkl`), or safetensors.

    Args:
        path: its file.
        finetune: the discriminator is needed.

    Raises:
        UserError: damaged, of another architecture (the first keys that differ are named), unsafe to open, or
            without what is needed.
    """
    parts, average = _read(path)
    if "g_ema" not in parts and "g" not in parts:
        raise UserError(f"{path.name} holds {_names(parts)}; expected g_ema of a StyleGAN2 checkpoint.")
    if finetune and "d" not in parts:
        raise UserError(f"{path.name} has no discriminator (d), which finetuning needs; get the whole checkpoint.")
    generator = build_generator(parts.get("g_ema", parts.get("g", {})), path.name)
    if average is None:
        average = generator.mean_latent(DRAWS, random("mean of w"))[0]
    return StyleGAN2(
        generator,
        as_vector(average, generator.style_dim, path.name, "latent_avg"),
        build_discriminator(parts["d"], path.name) if "d" in parts else None,
        build_generator(parts["g"], path.name) if "g" in parts and "g_ema" in parts else None,
    )


def load_discriminator(path: Path) -> Discriminator:
    """The discriminator of a file that holds one, for generators that come without.

    Raises:
        UserError: as `load_stylegan2`.
    """
    parts, _ = _read(path)
    if "d" not in parts:
        raise UserError(f"{path.name} holds {_names(parts)}; expected a discriminator (d).")
    return build_discriminator(parts["d"], path.name)


def save_rosinality(path: Path, model: StyleGAN2) -> None:
    """Write a `.pt` that rosinality's code and its descendants read; `g` is `g_ema` where there is no other."""
    with replacing(path) as temporary:
        torch.save(_parts(model) | {"latent_avg": model.latent_avg.detach().cpu()}, temporary)


def save_stylegan2(path: Path, model: StyleGAN2, dtype: torch.dtype = torch.float32) -> None:
    """Write safetensors that `load_stylegan2` reads; half precision halves them."""
    from safetensors.torch import save_file

    parts = _parts(model)
    if model.trained is None:
        del parts["g"]
    state = {f"{part}.{key}": tensor for part, tensors in parts.items() for key, tensor in tensors.items()}
    state["latent_avg"] = model.latent_avg.detach().cpu()
    with replacing(path) as temporary:
        save_file({key: tensor.to(dtype).contiguous() for key, tensor in state.items()}, temporary)


def build_generator(state: State, source: str) -> Generator:
    """The frozen generator of a state dict under rosinality's names.

    Raises:
        UserError: another architecture.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    make = partial(Generator, 1024)  # of another architecture, loading names the keys that differ
    if len(shapes.get("input.input", ())) == 4 and len(shapes.get("style.1.weight", ())) == 2:
        channels = {4: shapes["input.input"][1]}
        while len(shapes.get(f"convs.{2 * len(channels) - 2}.conv.weight", ())) == 5:
            channels[2 ** (len(channels) + 2)] = shapes[f"convs.{2 * len(channels) - 2}.conv.weight"][1]
        layers = sum(key.startswith("style.") and key.endswith(".weight") for key in shapes)
        make = partial(Generator, max(channels), shapes["style.1.weight"][1], layers, channels=channels)
    return build(make, _completed(make, state), source)


def build_discriminator(state: State, source: str) -> Discriminator:
    """The frozen discriminator of a state dict under rosinality's names.

    Raises:
        UserError: another architecture.
    """
    blocks = sum(key.endswith("conv1.0.weight") for key in state)
    make = partial(Discriminator, 1024)
    if blocks and "convs.0.0.weight" in state:
        size = 4 * 2**blocks
        widths = [state["convs.0.0.weight"], *(state.get(f"convs.{j + 1}.conv2.1.weight") for j in range(blocks))]
        if all(tensor is not None and tensor.ndim == 4 for tensor in widths):
            make = partial(Discriminator, size, channels={size // 2**j: len(w) for j, w in enumerate(widths)})
    return build(make, _completed(make, state), source)


def _completed(make: Any, state: State) -> dict[str, Tensor]:
    """`state` with the filters and noise maps that it leaves out."""
    with torch.device("meta"):
        own: dict[str, Tensor] = make().state_dict()
    completed = dict(state)
    for key, tensor in own.items():
        if key in state:
            continue
        if key.startswith("noises."):
            completed[key] = torch.randn(tensor.shape, generator=random(key))
        elif key.endswith(".kernel"):
            up = ".blur." in key or ".upsample." in key
            completed[key] = make_kernel(gain=4.0 if up else 1.0)
    return completed


def _read(path: Path) -> tuple[dict[str, State], Tensor | None]:
    """The state dicts of a file under rosinality's names, and the mean of w."""
    if path.suffix == ".pkl":
        return _read_pickle(path)
    if path.suffix == ".safetensors":
        state, _ = read_safetensors(path)
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            part, _, rest = key.partition(".")
            parts.setdefault(part, {})[rest] = tensor
        return {part: parts[part] for part in PARTS if part in parts}, state.get("latent_avg")
    found = read_torch(path)
    if not isinstance(found, Mapping):
        raise UserError(f"{path.name} holds a {type(found).__name__}; expected g_ema of a StyleGAN2 checkpoint.")
    states: dict[str, State] = {
        part: as_state(found[part], path.name, part) for part in PARTS if found.get(part) is not None
    }
    return states or {str(key): {} for key in found}, found.get("latent_avg")


def _read_pickle(path: Path) -> tuple[dict[str, State], Tensor | None]:
    networks, parts, average = read_nvidia(path), {}, None
    try:
        for name, part in (("G", "g"), ("G_ema", "g_ema")):
            if name in networks:
                parts[part], average = rosinality_generator(networks[name], path.name)
        if "D" in networks:
            parts["d"] = rosinality_discriminator(networks["D"], path.name)
    except (ValueError, RuntimeError, IndexError, OverflowError) as error:  # of odd names and shapes
        raise UserError(f"{path.name} holds no StyleGAN2 in NVIDIA's layout ({error}).") from error
    return parts, average


def _parts(model: StyleGAN2) -> dict[str, dict[str, Tensor]]:
    networks: dict[str, nn.Module | None] = {
        "g": model.trained or model.generator, "g_ema": model.generator, "d": model.discriminator,
    }  # fmt: skip
    return {
        part: {key: tensor.detach().cpu() for key, tensor in network.state_dict().items()}
        for part, network in networks.items()
        if network is not None
    }


def _names(parts: Mapping[str, Any]) -> str:
    return ", ".join(list(parts)[:5]) or "nothing"
