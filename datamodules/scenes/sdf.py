"""Signed distances in two dimensions: negative inside, in the units of the coordinates that go in.

All arguments broadcast; the formulas are the standard closed forms (an ellipse's is its first-order
approximation, exact on the outline, which is where coverage and lines are taken).
"""

import torch
from torch import Tensor

Value = Tensor | float


def circle(x: Tensor, y: Tensor, radius: Value) -> Tensor:
    """Disc of the given radius about the origin."""
    return (x * x + y * y).sqrt() - radius


def ellipse(x: Tensor, y: Tensor, rx: Value, ry: Value) -> Tensor:
    """Axis-aligned ellipse about the origin: f / |grad f| with f = |p / r| - 1."""
    u, v = x / rx, y / ry
    scaled = (u * u + v * v + 1e-8).sqrt()
    u, v = u / rx, v / ry
    return scaled * (scaled - 1) / (u * u + v * v + 1e-8).sqrt()


def box(x: Tensor, y: Tensor, half_width: Value, half_height: Value, radius: Value = 0.0) -> Tensor:
    """Box about the origin with rounded corners."""
    u = x.abs() - half_width + radius
    v = y.abs() - half_height + radius
    outside = (u.clamp(min=0).square() + v.clamp(min=0).square()).sqrt()
    return outside + torch.maximum(u, v).clamp(max=0) - radius


def segment(x: Tensor, y: Tensor, start: tuple[Value, Value], end: tuple[Value, Value], radius: Value) -> Tensor:
    """Capsule from start to end."""
    px, py = x - start[0], y - start[1]
    dx, dy = end[0] - start[0], end[1] - start[1]
    along = ((px * dx + py * dy) / (dx * dx + dy * dy)).clamp(0, 1)
    return circle(px - along * dx, py - along * dy, radius)


def egg(x: Tensor, y: Tensor, top: Value, bottom: Value, height: Value) -> Tensor:
    """Hull of a disc of radius `top` about the origin and one of radius `bottom` at (0, height)."""
    x = x.abs()
    slope = (top - bottom) / height
    flat = (1 - slope * slope) ** 0.5
    along = y * flat - x * slope
    side = x * flat + y * slope - top
    lower = torch.where(along > flat * height, circle(x, y - height, bottom), side)
    return torch.where(along < 0, circle(x, y, top), lower)


def blend(a: Tensor, b: Tensor, radius: Value) -> Tensor:
    """Union with a fillet of about the given radius (quadratic smooth minimum)."""
    mixed = (radius - (a - b).abs()).clamp(min=0)
    return torch.minimum(a, b) - mixed * mixed / (4 * radius)


def carve(a: Tensor, b: Tensor, radius: Value) -> Tensor:
    """Intersection with a rounded edge."""
    return -blend(-a, -b, radius)


def bump(x: Tensor, y: Tensor, rx: Value, ry: Value) -> Tensor:
    """Gaussian hill of height 1 about the origin, for shading."""
    return torch.exp(-(x / rx).square() - (y / ry).square())


def smooth(x: Tensor, low: Value, high: Value) -> Tensor:
    """Cubic step from 0 at low to 1 at high."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
