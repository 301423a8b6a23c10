"""A procedural world: scenes that are pure functions of a seed, drawn in several styles, with known truth.

A scene is a set of attributes; a kind turns it into layers of signed-distance shapes, bent by a style's geometry; a
style composes the layers into a picture. So every photo has its exact stylised twin.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.scenes import animal, landscape, palette, portrait, portrait_attributes, styles
from datamodules.scenes.captions import captions
from datamodules.scenes.layers import Geometry, Stage
from datamodules.scenes.sampling import Draw, Scenes, scene_keys

__all__ = [
    "KINDS",
    "LABELS",
    "STYLES",
    "Scenes",
    "attributes",
    "captions",
    "features",
    "latents",
    "render",
    "sample_scenes",
    "segmentation",
]


@dataclass(frozen=True)
class _Kind:
    lasting: Callable[[Draw], None]
    passing: Callable[[Draw], None]
    layers: Callable[[Stage], None]
    labels: tuple[str, ...]


_KINDS = {
    "portrait": _Kind(
        portrait_attributes.draw_person,
        portrait_attributes.draw_moment,
        portrait.draw_portrait,
        palette.PORTRAIT_LABELS,
    ),
    "animal": _Kind(animal.draw_animal, animal.draw_pose, animal.draw_animal_head, palette.ANIMAL_LABELS),
    "landscape": _Kind(landscape.draw_land, landscape.draw_weather, landscape.draw_landscape, palette.LANDSCAPE_LABELS),
}
KINDS = tuple(_KINDS)
STYLES = tuple(styles.STYLES)
MOST_CLASSES = len(palette.COLOURS)  # of any attribute
LABELS = {name: kind.labels for name, kind in _KINDS.items()}


def sample_scenes(
    seed: int, indices: Sequence[int], kind: str = "portrait", view: int | None = None, **overrides: Any
) -> Scenes:
    """Scenes whose attributes are functions of (seed, index) alone, whatever else is in the batch.

    Args:
        seed: the world.
        indices: which scenes, any integers.
        kind: one of KINDS.
        view: with a number, what lasts (face, hair, beard, glasses; fur; place) stays that of the index, and what
            passes (pose, light, expression, clothes, backdrop; time of day) is drawn anew for this view.
        overrides: attribute name -> class number or amount for all scenes, for example `hat=1, glasses=0`.

    Raises:
        ValueError: unknown kind, or an override that the kind does not have.
    """
    if kind not in _KINDS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
    index, lasting, passing = scene_keys(seed, indices, view)
    draw = Draw(lasting, overrides)
    _KINDS[kind].lasting(draw)
    _KINDS[kind].passing(draw.rekey(passing))
    unknown = sorted(set(overrides) - {name for name, value in draw.values.items() if value.dim() == 1})
    if unknown:
        raise ValueError(f"{kind} scenes have no attribute {', '.join(unknown)}")
    return Scenes(kind, index, passing, torch.stack(list(draw.uniforms.values()), 1), draw.values)


def _stage(scenes: Scenes, pixels: int, geometry: Geometry) -> Stage:
    stage = Stage(scenes, pixels, geometry)
    _KINDS[scenes.kind].layers(stage)
    return stage


def _chunks(scenes: Scenes, size: int) -> list[Scenes]:
    """Few scenes at a time, so that the fields stay in the cache of a CPU."""
    count = max(1, 4 * 64 * 64 // (size * size)) if scenes.identity.device.type == "cpu" else 64
    return [scenes[start : start + count] for start in range(0, len(scenes), count)]


@torch.no_grad()
def render(scenes: Scenes, style: str, size: int = 64) -> Tensor:
    """Draw scenes in a style.

    Args:
        scenes: B scenes.
        style: one of STYLES.
        size: height and width in pixels, 64 to 256.

    Returns:
        (B, 3, size, size) float32 in [-1, 1] on the scenes' device; each picture depends on its scene alone.
    """
    if style not in styles.STYLES:
        raise ValueError(f"unknown style {style!r}: expected one of {', '.join(STYLES)}")
    parts = [
        styles.finish(style, lambda pixels, geometry, part=part: _stage(part, pixels, geometry), size)
        for part in _chunks(scenes, size)
    ]
    return torch.cat(parts) if parts else torch.empty(0, 3, size, size)


def latents(scenes: Scenes) -> Tensor:
    """Standard normal numbers (B, K) that a scene is a function of, but for its grain and attributes overridden."""
    middle = scenes.uniforms.cpu().double() + 2**-25  # of a uniform's interval: never 0 or 1
    return torch.special.ndtri(middle).float().to(scenes.uniforms.device)


def features(scenes: Scenes) -> Tensor:
    """What a picture depends on as numbers of like size (B, F): classes one-hot, colours and uniforms in [-1, 1].

    Classes that only say which colour was picked are left out, for the colours are there.
    """
    values = scenes.values
    told = {
        name for name in values if f"{name.removesuffix('_colour')}_rgb" in values and f"{name}_colour" not in values
    }
    classes = [F.one_hot(x, MOST_CLASSES) for k, x in values.items() if not x.is_floating_point() and k not in told]
    colours = [x * 2 - 1 for x in values.values() if x.ndim == 2]
    return torch.cat([*classes, *colours, scenes.uniforms * 2 - 1], 1)


def attributes(scenes: Scenes) -> dict[str, Tensor]:
    """All attributes that are classes, name -> (B,) int64; the tables of `palette` name the classes."""
    return {name: value for name, value in scenes.values.items() if not value.is_floating_point()}


@torch.no_grad()
def segmentation(scenes: Scenes, size: int, style: str = "photo") -> Tensor:
    """Classes of the pixels, (B, size, size) int64, numbered as LABELS[kind], in the geometry of a style."""
    geometry = styles.STYLES[style].geometry
    return torch.cat([_segment(_stage(part, size, geometry)) for part in _chunks(scenes, size)])


def _segment(stage: Stage) -> Tensor:
    labels = torch.zeros(len(stage.scenes), stage.pixels, stage.pixels, dtype=torch.int64, device=stage.x.device)
    for layer in stage.layers:
        region = layer.window.cut(labels)
        region[(layer.distance < 0) & (layer.opacity > 0.5)] = layer.label
    return labels
