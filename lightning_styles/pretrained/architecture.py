"""The architecture of DiffAE and P2 networks, read off the names and shapes of their weights.

Shapes tell everything but the number of attention heads; files of this package say that in their metadata.
"""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import Tensor

from lightning_styles.models.diffae import DiffAEConfig, LatentConfig
from lightning_styles.models.guided_unet import GuidedConfig
from lightning_styles.pretrained.weights import parse_json

State = Mapping[str, Tensor]
Config = TypeVar("Config", DiffAEConfig, GuidedConfig)


def diffae_config(state: State) -> DiffAEConfig:
    """Architecture of an autoencoder's state dict; the official one if `state` is of something else."""
    try:
        embedding, channels = state["time_embed.time_embed.0.weight"].shape
        levels, res_blocks = _levels_and_blocks(state)
        encoder_levels = _stages(state, "encoder.input_blocks") // (res_blocks + 1)
        multipliers, attention = _down_path(state, "input_blocks", levels, res_blocks, channels)
        below, encoder_attention = _down_path(state, "encoder.input_blocks", encoder_levels, res_blocks, channels)
        latent = _latent_config(state, embedding) if "latent_net.time_embed.0.weight" in state else None
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        return DiffAEConfig()  # loading then names the keys that differ
    return DiffAEConfig(
        channels=channels,
        multipliers=multipliers,
        res_blocks=res_blocks,
        attention_levels=attention,
        encoder_multipliers=below,
        encoder_res_blocks=res_blocks,
        encoder_attention_levels=encoder_attention,
        embedding=embedding,
        latent=latent,
    )


def guided_config(state: State) -> GuidedConfig:
    """Architecture of a P2 network's state dict; the official one if `state` is of something else."""
    try:
        channels = state["time_embed.0.weight"].shape[1]
        levels, res_blocks = _levels_and_blocks(state)
        multipliers, attention = _down_path(state, "input_blocks", levels, res_blocks, channels)
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        return GuidedConfig()
    return GuidedConfig(channels, multipliers, res_blocks, attention)


def to_json(config: DiffAEConfig | GuidedConfig) -> str:
    """`config` as text for the metadata of a file."""
    return json.dumps(dataclasses.asdict(config))


def from_json(kind: type[Config], text: str) -> Config:
    """The config that `to_json` wrote.

    Raises:
        UserError, ValueError, TypeError, AttributeError: the text is no such config.
    """
    fields = _tuples(parse_json(text, "its header"))
    if isinstance(fields.get("latent"), dict):
        fields["latent"] = LatentConfig(**_tuples(fields["latent"]))
    return kind(**fields)


def _tuples(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _stages(state: State, path: str) -> int:
    depth = path.count(".") + 1
    return len({key.split(".")[depth] for key in state if key.startswith(f"{path}.")})


def _levels_and_blocks(state: State) -> tuple[int, int]:
    """Every level but the highest ends its way up with a second residual block, the doubling."""
    stages = range(_stages(state, "output_blocks"))
    doublings = sum(any(f"output_blocks.{i}.{k}.in_layers.0.weight" in state for k in (1, 2)) for i in stages)
    return doublings + 1, len(stages) // (doublings + 1) - 1


def _down_path(
    state: State, path: str, levels: int, res_blocks: int, channels: int
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Multipliers, and the levels with attention, from the first residual block of each level."""
    first = [f"{path}.{1 + level * (res_blocks + 1)}" for level in range(levels)]
    multipliers = tuple(state[f"{stage}.0.in_layers.2.weight"].shape[0] // channels for stage in first)
    return multipliers, tuple(level for level, stage in enumerate(first) if f"{stage}.1.qkv.weight" in state)


def _latent_config(state: State, embedding: int) -> LatentConfig:
    layers = _stages(state, "latent_net.layers")
    hidden = state["latent_net.layers.0.linear.weight"].shape[0]
    inputs = [state[f"latent_net.layers.{i}.linear.weight"].shape[1] for i in range(layers)]
    skips = tuple(i for i in range(1, layers) if inputs[i] == hidden + embedding)
    return LatentConfig(hidden, layers, skips, state["latent_net.time_embed.0.weight"].shape[1])
