"""Mixing of two styles, and of two generators that share a parent.

Notation: B batch, L styles of a picture, D length of a style.
"""

from collections.abc import Callable, Mapping, Sequence
from math import log2

import torch
from torch import Tensor

from lightning_styles.models.stylegan2.generator import Generator

MAPPING = "style."


def truncate(w: Tensor, mean: Tensor, psi: float) -> Tensor:
    """mean + psi (w - mean): towards the middle of w (..., D) for psi below 1."""
    return mean + psi * (w - mean)


def mix(content: Tensor, style: Tensor, index: int, layers: int | None = None) -> Tensor:
    """w+ (B, L, D) of `content` below layer `index`, of `style` from there on; the larger it is, the subtler the style.

    Args:
        content, style: w+ (B, L, D) or w (B, D).
        index: the first layer of the style.
        layers: L, needed if both are w.
    """
    count = layers or next(w.shape[1] for w in (content, style) if w.ndim == 3)
    first, second = (w[:, None].expand(-1, count, -1) if w.ndim == 2 else w for w in (content, style))
    return torch.cat([first[:, :index], second[:, index:]], 1)


def resolution_of(key: str) -> int | None:
    """Px of the layer that a key of a generator's state dict belongs to; None for the mapping network."""
    part, _, rest = key.partition(".")
    if part in ("input", "conv1", "to_rgb1"):
        return 4
    if part == "convs":
        return 2 ** (int(rest.split(".")[0]) // 2 + 3)
    if part == "to_rgbs":
        return 2 ** (int(rest.split(".")[0]) + 3)
    if part == "noises":
        return 2 ** ((int(rest.removeprefix("noise_")) + 5) // 2)
    return None


def blend(
    low: Mapping[str, Tensor], high: Mapping[str, Tensor], share: Callable[[int], float], mapping: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict of a generator between two of one architecture.

    Args:
        low, high: their state dicts.
        share: px of a layer -> how much of it is `high`, 0 to 1; see `swap_at`.
        mapping: the state dict whose mapping network is taken.
    """
    mixed = {}
    for key, weight in low.items():
        resolution = resolution_of(key)
        mixed[key] = mapping[key] if resolution is None else torch.lerp(weight, high[key], share(resolution))
    return mixed


def swap_at(resolution: int, ramp: int = 0) -> Callable[[int], float]:
    """The share of Toonify (arXiv 2010.05334): all of `high` from `resolution` px on.

    Args:
        resolution: px of the first layers of `high`.
        ramp: resolutions over which the share grows instead, of which `resolution` is the first.
    """
    return lambda side: min(max((log2(side) - log2(resolution) + 1) / (ramp + 1), 0.0), 1.0)


def interpolate(a: Mapping[str, Tensor], b: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """a + factor (b - a) of all weights, the mapping network included."""
    return {key: torch.lerp(weight, b[key], factor) for key, weight in a.items()}


def swap_features(
    source: Generator, target: Generator, content: Tensor, style: Tensor, index: int, noise: Sequence[Tensor] | None
) -> Tensor:
    """Layer swap of UI2I (arXiv 2010.05713): `source` draws the maps up to a block, `target` the rest.

    The colours of lower resolutions stay those of `target`, which draws them with its own maps.

    Args:
        source, target: the generator and its finetuned copy.
        content, style: w or w+ of the one and the other.
        index: layer of the block's first convolution: 1 for 8 px, 3 for 16 px and so on.
        noise: maps for both; None are those that each has stored.
    """
    resolution = 2 ** ((index + 1) // 2 + 2)
    maps = source.features(content, resolution, noise)
    return target(style, noise, {resolution: maps})
