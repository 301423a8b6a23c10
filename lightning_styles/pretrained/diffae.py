"""Files of diffusion autoencoders and P2 networks: the official checkpoints, and safetensors of this package.

All loaders read the architecture from the file, take every key or refuse it, and return frozen float32 networks on the
CPU. Official checkpoints hold `model.*`, `ema_model.*` and buffers; the networks used are those of `ema_model`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.files import replacing
from lightning_styles.models.diffae import DiffAE, DiffAEConfig
from lightning_styles.models.guided_unet import GuidedConfig, GuidedUNet
from lightning_styles.pretrained import locate
from lightning_styles.pretrained.architecture import diffae_config, from_json, guided_config, to_json
from lightning_styles.pretrained.weights import as_state, as_vector, build, read_safetensors, read_torch

STATISTICS = ("conds_mean", "conds_std")
BUFFERS = (*STATISTICS, "x_T")
ALIAS, NAME = ".cond_layers.1.", ".linear_emb."  # two names of one tensor in the latent prior

Config = TypeVar("Config", DiffAEConfig, GuidedConfig)


@dataclass
class CodeStatistics:
    """Mean and standard deviation of the training pictures' codes, (1, D) each: z = code * std + mean."""

    mean: Tensor
    std: Tensor


@dataclass
class Autoencoder:
    """A loaded autoencoder; its prior has no use without the statistics, which some files leave out."""

    model: DiffAE
    statistics: CodeStatistics | None


@cache
def frozen_diffae(name: str, dtype: torch.dtype = torch.float32) -> Autoencoder:
    """The autoencoder behind a path or a name of the registry, one for all who ask for this precision."""
    loaded = load_diffae(locate(name, "diffae"))
    loaded.model.to(dtype)
    return loaded


def load_diffae(path: Path) -> Autoencoder:
    """A diffusion autoencoder: `ffhq256_autoenc(_latent)/last.ckpt`, another size of it, or safetensors.

    Statistics of the codes that the file does not hold come from `latent.pkl` beside it, where there is one.

    Raises:
        UserError: damaged, of another architecture (the first keys that differ are named), or unsafe to open.
    """
    if path.suffix == ".safetensors":
        state, config = _read_own(path, DiffAEConfig)
        buffers = {key: state.pop(key) for key in STATISTICS if key in state}
    else:
        state, buffers = _read_lightning(path)
        config = None
    state = tied(state, path.name)
    model = build(partial(DiffAE, config or diffae_config(state)), state, path.name)
    statistics = _statistics(buffers, model.config.embedding, path)
    latents = path.with_name("latent.pkl")
    if statistics is None and latents.is_file():
        statistics = load_statistics(latents, model.config.embedding)
    return Autoencoder(model, statistics)


def save_diffae(
    path: Path, model: DiffAE, statistics: CodeStatistics | None = None, dtype: torch.dtype = torch.float16
) -> None:
    """Write an autoencoder as safetensors that `load_diffae` reads, in half precision unless `dtype` says otherwise."""
    state = {key: tensor for key, tensor in model.state_dict().items() if ALIAS not in key}
    if statistics is not None:
        state |= {"conds_mean": statistics.mean.reshape(1, -1), "conds_std": statistics.std.reshape(1, -1)}
    _write_own(path, state, model.config, dtype)


def load_statistics(path: Path, embedding: int) -> CodeStatistics:
    """Mean and deviation of `latent.pkl`, for codes of length `embedding`.

    Raises:
        UserError: not such a file, or of codes of another length.
    """
    found = read_torch(path)
    names = {"conds", *STATISTICS}
    if not isinstance(found, Mapping) or set(found) != names:
        has = ", ".join(sorted(map(str, found))[:5]) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"{path.name} holds {has}; expected {', '.join(sorted(names))} of a latent.pkl.")
    statistics = _statistics(found, embedding, path)
    assert statistics is not None
    return statistics


def load_guided_unet(path: Path) -> GuidedUNet:
    """A P2 network: `ffhq_p2.pt`, that of another domain, or safetensors.

    Raises:
        UserError: damaged, of another architecture (the first keys that differ are named), or unsafe to open.
    """
    if path.suffix == ".safetensors":
        state, config = _read_own(path, GuidedConfig)
    else:
        state, config = as_state(read_torch(path), path.name), None
    return build(partial(GuidedUNet, config or guided_config(state)), state, path.name)


def save_guided_unet(path: Path, model: GuidedUNet, dtype: torch.dtype = torch.float16) -> None:
    """Write a P2 network as safetensors that `load_guided_unet` reads."""
    _write_own(path, model.state_dict(), model.config, dtype)


def tied(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A state dict in which both names of each of the prior's conditioning layers hold its tensor.

    Raises:
        UserError: both are there and differ.
    """
    result = dict(state)
    for key, tensor in state.items():
        if not key.startswith("latent_net.layers.") or NAME not in key:
            continue
        alias = key.replace(NAME, ALIAS)
        if alias in state and not torch.equal(state[alias], tensor):
            raise UserError(
                f"{source} holds {key} and {alias} with different values; they are one layer. Use another copy of it."
            )
        result[alias] = tensor
    return result


def _read_lightning(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of `ema_model`, without prefix, and the buffers; `model` must name the same weights."""
    checkpoint = read_torch(path)
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("state_dict"), Mapping):
        raise UserError(f"{path.name} has no state_dict; expected a DiffAE checkpoint such as last.ckpt.")
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "ema_model": {}, "": {}}
    unused = {key: value for key, value in checkpoint["state_dict"].items() if key != "x_T"}
    for key, tensor in as_state(unused, path.name, "state_dict").items():
        part, _, rest = key.partition(".")
        if part in parts and rest:
            parts[part][rest] = tensor
        else:
            parts[""][key] = tensor
    if unknown := [key for key in parts[""] if key not in BUFFERS]:
        raise UserError(f"{path.name} does not fit a DiffAE: {len(unknown)} keys left over (first {unknown[0]}).")
    ema, plain = parts["ema_model"], parts["model"]
    differing = [k for k in ema.keys() ^ plain.keys() if plain] + [
        k for k in ema.keys() & plain.keys() if ema[k].shape != plain[k].shape
    ]
    if not ema or differing:
        first = f"first {min(differing)}" if differing else "there is no ema_model"
        raise UserError(f"{path.name}: model and ema_model do not hold the same weights ({first}); use another copy.")
    return ema, parts[""]


def _statistics(buffers: Mapping[str, Tensor], embedding: int, path: Path) -> CodeStatistics | None:
    found = {key: buffers[key] for key in STATISTICS if key in buffers}
    if not found:
        return None
    if len(found) < len(STATISTICS):
        raise UserError(f"{path.name} holds {', '.join(found)} alone; expected {' and '.join(STATISTICS)}.")
    return CodeStatistics(*(as_vector(value, embedding, path.name, key)[None] for key, value in found.items()))


def _read_own(path: Path, kind: type[Config]) -> tuple[dict[str, Tensor], Config | None]:
    state, metadata = read_safetensors(path)
    try:
        return state, from_json(kind, metadata["config"]) if "config" in metadata else None
    except (UserError, ValueError, TypeError, AttributeError) as error:
        cause = str(error).rstrip(".")
        raise UserError(f"{path.name} is not a {kind.__name__.removesuffix('Config')} network: {cause}.") from error


def _write_own(
    path: Path, state: Mapping[str, Tensor], config: DiffAEConfig | GuidedConfig, dtype: torch.dtype
) -> None:
    from safetensors.torch import save_file

    tensors = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in state.items()}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"config": to_json(config)})
