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
    strokes = dark * (0.58 + 0.28 * first)
    if layer.light is not None:
        shade = (0.88 - layer.light).clamp(0, 0.3)
        strokes = strokes + shade * (0.55 + 0.45 * second)
    return strokes


def watercolor(stage: Stage) -> Tensor:
    """Washes on paper: wandering soft edges, pigment that gathers there, granulation."""
    pixel = 2.0 / stage.pixels
    bleed = 0.65 * _noise(stage, 9, 3) + 0.35 * _noise(stage, 31, 4)
    pigment = 1 + 0.16 * _noise(stage, 6, 5) + 0.07 * _noise(stage, 24, 6)
    grain = _noise(stage, 64, 7)
    paper = torch.tensor([0.985, 0.975, 0.945], device=grain.device).view(1, 3, 1, 1)
    border = torch.maximum(stage.x.abs(), stage.y.abs()) - 0.91 + 0.07 * bleed
    wash = (0.85 * pigment).clamp(0, 1)[:, None]
    canvas = paper + wash * (0.2 + 0.8 * stage.backdrop - paper)
    for layer in stage.layers:
        window = layer.window
        distance = layer.distance + (0.006 if layer.stroke else 0.014) * window.cut(bleed)
        depth = window.cut(pigment)
        if layer.outline:
            depth = depth + 0.30 * torch.exp(-((distance + 0.012) / 0.013).square())
        if layer.light is not None:
            depth = depth + 1.5 * (0.97 - layer.light).clamp(-0.06, 0.45)
        if layer.texture is not None:
            depth = depth + 0.12 * layer.texture
        thin = _rgb(layer.colour) * 0.90 + 0.10
        colour = 1 - depth[:, None] * ((1 - thin) * (0.98 - 0.12 * thin))
        alpha = (
            cover(distance, 0.4 * layer.soft + 0.012 + 1.5 * pixel) * layer.opacity * (1.0 if layer.stroke else 0.95)
        )
        _put(canvas, layer, alpha, colour.clamp(min=0.02))
    canvas = paper + cover(border, 0.10)[:, None] * (canvas - paper)
    return (canvas * (1 - 0.035 * grain[:, None])).clamp(0, 1)


def pixel(stage: Stage) -> Tensor:
    """Cartoon with heavier lines in few colours; the grid comes from the size it is drawn at."""
    small = F.avg_pool2d(cartoon(stage, 0.034), 3)
    tone = (small.mean(1, keepdim=True) * 10).round() / 10
    chroma = ((small - small.mean(1, keepdim=True)) * 7).round() / 7
    return (tone + chroma).clamp(0, 1)


@dataclass(frozen=True)
class Style:
    """How a style is drawn: its compositor, the geometry of its shapes, and grain in the finished picture."""

    paint: Callable[[Stage], Tensor]
    geometry: Geometry = Geometry()
    grain: float = 0.0
    blocky: bool = False


DRAWN = Geometry(eye=1.36, head=1.05, nose=0.85)
STYLES: dict[str, Style] = {
    "photo": Style(photo, grain=0.018),
    "cartoon": Style(cartoon, DRAWN),
    "sketch": Style(sketch, Geometry(eye=1.12)),
    "watercolor": Style(watercolor, Geometry(eye=1.1)),
    "pixel": Style(pixel, Geometry(eye=1.5, head=1.08, nose=0.85), blocky=True),
}


def finish(style: str, stage_for: Callable[[int, Geometry], Stage], size: int) -> Tensor:
    """Picture (b, 3, size, size) in [-1, 1]: draw at twice the size, or on a coarse grid, and reduce."""
    chosen = STYLES[style]
    if chosen.blocky:
        grid = size // 2 if size < 128 else 64
        image = F.interpolate(chosen.paint(stage_for(3 * grid, chosen.geometry)), size=(size, size), mode="nearest")
        return image * 2 - 1
    stage = stage_for(2 * size, chosen.geometry)
    image = F.avg_pool2d(chosen.paint(stage), 2)
    if chosen.grain:
        cells = torch.arange(size * size, device=image.device)
        grain = unit(mix(mix(stage.scenes.key)[:, None] + cells)).view(-1, 1, size, size) * 2 - 1
        image = image + chosen.grain * grain
    return (image * 2 - 1).clamp(-1, 1)
