"""Styles as compositors over the layers of a stage."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules.scenes.layers import Geometry, Layer, Stage
from datamodules.scenes.sampling import mix, unit

_SHADOW_TINT = (0.86, 1.06, 1.12)  # red stays longest where the light goes, as in skin


def cover(distance: Tensor, blur: float) -> Tensor:
    """Coverage in [0, 1] of a signed distance, linear over `blur` about the outline."""
    return (0.5 - distance / blur).clamp(0, 1)


def _rgb(colour: Tensor) -> Tensor:
    return colour if colour.dim() == 4 else colour[:, :, None, None]


def _put(canvas: Tensor, layer: Layer, alpha: Tensor, colour: Tensor) -> None:
    region = layer.window.cut(canvas)
    region += alpha[:, None] * (colour - region)


def photo(stage: Stage) -> Tensor:
    """Shading, soft edges, strands and gloss; returns (b, 3, n, n) in [0, 1]."""
    canvas = stage.backdrop.clone()
    pixel = 2.0 / stage.pixels
    tint = torch.tensor(_SHADOW_TINT, device=canvas.device).view(1, 3, 1, 1)
    for layer in stage.layers:
        alpha = cover(layer.distance, layer.soft + 1.5 * pixel) * layer.opacity
        colour = _rgb(layer.colour)
        light = layer.light
        if layer.texture is not None:
            strands = 0.11 * layer.texture
            light = strands + (1 if light is None else light)
        if light is not None:
            colour = colour * (1 + tint * (light - 1)[:, None])
        if layer.gloss is not None:
            colour = colour + layer.gloss[:, None]
        _put(canvas, layer, alpha, colour)
    return canvas.clamp(0, 1)


def cartoon(stage: Stage, line: float = 0.022) -> Tensor:
    """Flat colours in two tones, each shape in a dark outline."""
    backdrop = stage.backdrop
    tone = backdrop.mean(1, keepdim=True).clamp(min=0.02)
    canvas = backdrop * ((tone * 9).round().clamp(min=0.5) / 9 / tone)
    pixel = 2.0 / stage.pixels
    for layer in stage.layers:
        colour = _rgb(layer.colour)
        colour = (colour + 0.35 * (colour - colour.mean(1, keepdim=True))).clamp(0, 1)
        if layer.outline:
            rim = cover(layer.distance - line * layer.outline, 1.5 * pixel) * layer.opacity
            _put(canvas, layer, rim, colour * 0.18)
        if layer.light is not None and not layer.stroke:
            shade = cover(layer.light - 0.86, 0.04)[:, None]
            colour = colour * (1.04 - 0.24 * shade)
        if layer.gloss is not None:
            colour = colour + 0.16 * cover(0.075 - layer.gloss, 0.02)[:, None]
        _put(canvas, layer, cover(layer.distance, 1.5 * pixel) * layer.opacity, colour)
    return canvas.clamp(0, 1)


def _noise(stage: Stage, cells: int, salt: int, pixels: int | None = None) -> Tensor:
    """Smooth noise (b, n, n) in [-1, 1] from hashed values on a grid of cells x cells."""
    device = stage.x.device
    grid = torch.arange(cells * cells, device=device).view(1, -1) + (salt << 20)
    values = unit(mix(stage.scenes.key[:, None] ^ mix(grid))).view(-1, 1, cells, cells) * 2 - 1
    size = pixels or stage.pixels
    return F.interpolate(values, size=(size, size), mode="bicubic", align_corners=True)[:, 0].clamp(-1, 1)


def sketch(stage: Stage) -> Tensor:
    """Pencil on paper: one line around each shape, hatching where colours or light are dark."""
    pixel = 2.0 / stage.pixels
    wobble = _noise(stage, 14, 1)
    paper = 0.955 + 0.015 * _noise(stage, 48, 2)
    canvas = paper.clone()
    hatch_a = ((stage.x + stage.y) * 84 + 2.5 * wobble).sin()
    hatch_b = ((stage.x - 0.6 * stage.y) * 90 + 2.5 * wobble).sin()
    for layer in stage.layers:
        region, window = layer.window.cut(canvas), layer.window
        distance = layer.distance + 0.006 * window.cut(wobble)
        alpha = cover(distance, 1.5 * pixel) * layer.opacity
        if layer.stroke:
            ink = 0.16 + 0.35 * layer.colour.mean(-1).view(-1, 1, 1)
            region += alpha * 0.92 * (ink - region)
            continue
        if layer.outline:
            width = 0.013 * layer.outline * (1 + 0.45 * window.cut(wobble))
            rim = cover(distance - width, 1.5 * pixel) * layer.opacity
            region += rim * 0.85 * (0.2 - region)
        tone = layer.colour.mean(-1).view(-1, 1, 1) if layer.colour.dim() == 2 else layer.colour.mean(1)
        fill = window.cut(paper) - _pencil(layer, tone, window.cut(hatch_a), window.cut(hatch_b))
        region += alpha * (fill - region)
    return canvas[:, None].expand(-1, 3, -1, -1).clamp(0, 1)


def _pencil(layer: Layer, tone: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Darkness that pencil strokes leave inside a layer."""
    dark = 0.72 * (0.70 - tone).clamp(min=0)
    if layer.texture is not None:
        strokes = 0.55 + 0.45 * layer.texture
        return (dark * 1.3 + 0.10) * strokes
    strokes = dark * (0.55 + 0.40 * first)
    if layer.light is not None:
        shade = (0.88 - layer.light).clamp(0, 0.3)
        strokes = strokes + shade * (0.55 + 0.45 * second)
    return strokes


@dataclass(frozen=True)
class Style:
    """How a style is drawn: its compositor, the geometry of its shapes, and grain in the finished picture."""

    paint: Callable[[Stage], Tensor]
    geometry: Geometry = Geometry()
    grain: float = 0.0


DRAWN = Geometry(eye=1.36, head=1.05, nose=0.85)
STYLES: dict[str, Style] = {
    "photo": Style(photo, grain=0.018),
    "cartoon": Style(cartoon, DRAWN),
    "sketch": Style(sketch, Geometry(eye=1.12, head=1.0, nose=1.0)),
}
