"""A procedural world: scenes that are pure functions of a seed, drawn in several styles, with known truth."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.scenes import palette, portrait_attributes, styles
from datamodules.scenes.layers import Geometry, Stage
from datamodules.scenes.portrait import draw_portrait
from datamodules.scenes.sampling import Draw, Scenes, mix, scene_keys, unit

STYLES = tuple(styles.STYLES)
KINDS = ("portrait",)
_DRAWERS = {"portrait": draw_portrait}


def sample_scenes(
    seed: int, indices: Sequence[int], kind: str = "portrait", view: int | None = None, **overrides: Any
) -> Scenes:
    index, lasting, passing = scene_keys(seed, indices, view)
    draw = Draw(lasting, overrides)
    portrait_attributes.draw_person(draw)
    portrait_attributes.draw_moment(draw.rekey(passing))
    unknown = set(overrides) - set(draw.values)
    if unknown:
        raise ValueError(f"unknown attributes {sorted(unknown)}")
    return Scenes(kind, index, passing, draw.values)


@torch.no_grad()
def render(scenes: Scenes, style: str, size: int = 64) -> Tensor:
    """Draw scenes, (B, 3, size, size) float32 in [-1, 1]."""
    chunk = max(1, 4 * 64 * 64 // (size * size))
    parts = [_render(scenes[i : i + chunk], style, size) for i in range(0, len(scenes), chunk)]
    return torch.cat(parts)


def _render(scenes: Scenes, style: str, size: int) -> Tensor:
    chosen = styles.STYLES[style]
    stage = Stage(scenes, 2 * size, chosen.geometry)
    _DRAWERS[scenes.kind](stage)
    image = F.avg_pool2d(chosen.paint(stage), 2)
    if chosen.grain:
        cells = torch.arange(size * size, device=image.device)
        grain = unit(mix(mix(scenes.key)[:, None] + cells)).view(-1, 1, size, size) * 2 - 1
        image = image + chosen.grain * grain
    return (image * 2 - 1).clamp(-1, 1)


def captions(scenes: Scenes, style: str) -> list[str]:
    names = ["woman", "man"]
    person = [names[int(g)] for g in scenes.values["gender"]]
    return [f"a photo of a {p}" if style == "photo" else f"a {p}, {style} style" for p in person]
