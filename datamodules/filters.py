"""Styles made by image filters: every photo has its exact stylised twin, from Pillow and a few lines.

Lengths are shares of the picture's shorter side, so that a style looks the same at 64 and at 1024 px.
"""

import random
from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
from PIL import Image, ImageChops, ImageDraw, ImageEnhance, ImageFilter
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.imaging import from_uint8, to_uint8

COLOURS = 8  # of `posterize`, as in the paper's data (PairCustomization, arXiv 2405.01536, section 4.1)
FLATS = 14  # colours of `cartoon`
BRUSHES = (0.1, 0.05, 0.022)  # widths of the brushes of `painting`
MISSED = 12  # levels of 255 off, from which on a finer stroke is worth while
LIGHT = 0.1  # added to both sides of the quotient of `sketch`, so that grain in dark places draws no lines
FINEST = 256  # smaller pictures are filtered at this shorter side: rank filters and strokes know whole px alone


def posterize(image: Image.Image) -> Image.Image:
    """The picture in at most 8 colours of its own, without dithering."""
    return _flattened(image, COLOURS)


def cartoon(image: Image.Image) -> Image.Image:
    """Few bright flat colours with smooth borders, and a dark line where colours meet."""
    smooth = image.resize(_sized(image, FINEST), Image.Resampling.LANCZOS)
    smooth = ImageEnhance.Color(smooth.filter(ImageFilter.MedianFilter(5))).enhance(1.5)
    even = smooth.filter(ImageFilter.MedianFilter(5)).filter(ImageFilter.ModeFilter(5))
    flat = _flattened(even.resize(image.size, Image.Resampling.BICUBIC), FLATS)
    smooth, side = smooth.resize(image.size, Image.Resampling.BICUBIC), min(image.size)
    fine, coarse = (smooth.filter(ImageFilter.GaussianBlur(radius * side)) for radius in (0.004, 0.012))
    # The dark side of an edge in any colour: a difference of Gaussians.
    darker = reduce(ImageChops.lighter, ImageChops.subtract(coarse, fine).split())
    lines = darker.point([min(255, max(0, 24 * (level - 5))) for level in range(256)])
    return Image.composite(Image.new("RGB", image.size, (28, 20, 32)), flat, lines)


def painting(image: Image.Image) -> Image.Image:
    """Brush strokes along the contours, coarse ones first and finer ones where they miss the picture.

    Straight strokes of Hertzmann's painterly rendering (SIGGRAPH 1998), with colours that vary a little.
    """
    side, rng = min(image.size), random.Random(0)
    image = ImageEnhance.Color(image).enhance(1.3)
    canvas = image.filter(ImageFilter.GaussianBlur(0.1 * side))
    for width in BRUSHES:
        reference = image.filter(ImageFilter.GaussianBlur(0.2 * width * side))
        _paint(canvas, reference, width * side, 0 if width == BRUSHES[0] else MISSED, rng)
    return canvas


def sketch(image: Image.Image) -> Image.Image:
    """Pencil on paper: the gray picture divided by its own blur (colour dodge), with a breath of its tones."""
    side = min(image.size)
    gray = image.convert("L").filter(ImageFilter.GaussianBlur(0.004 * side))
    around = gray.filter(ImageFilter.GaussianBlur(0.025 * side))
    tone, blurred = (np.asarray(level, np.float32) / 255 for level in (gray, around))
    dodged = (tone + LIGHT) / (blurred + LIGHT)
    lines = np.clip((dodged - 0.6) / (0.96 - 0.6), 0, 1) ** 1.5
    paper = np.array([252, 250, 244], np.float32)
    return Image.fromarray(np.uint8(paper * (lines * (0.8 + 0.2 * np.sqrt(tone)))[..., None]))


FILTERS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "posterize": posterize,
    "cartoon": cartoon,
    "painting": painting,
    "sketch": sketch,
}


def check_filter(name: str) -> None:
    """Raises UserError unless there is a filter of this name."""
    if name not in FILTERS:
        raise UserError(f"there is no filter '{name}'; expected one of {', '.join(FILTERS)}.")


def apply_filter(images: Tensor, name: str) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] in the style of a filter; each result depends on its own picture alone.

    Raises:
        UserError: there is no such filter.
    """
    check_filter(name)
    filtered = [from_uint8(np.asarray(_filtered(Image.fromarray(to_uint8(image)), name))) for image in images]
    return torch.stack(filtered).to(images)


def _filtered(image: Image.Image, name: str) -> Image.Image:
    if name == "posterize" or min(image.size) >= FINEST:
        return FILTERS[name](image)
    large = image.resize(_sized(image, FINEST), Image.Resampling.BICUBIC)
    return FILTERS[name](large).resize(image.size, Image.Resampling.BOX)


def _sized(image: Image.Image, side: int) -> tuple[int, int]:
    """(width, height) of the picture with `side` px on its shorter side."""
    return tuple(round(side * length / min(image.size)) for length in image.size)  # type: ignore[return-value]


def _flattened(image: Image.Image, colours: int) -> Image.Image:
    method, dither = Image.Quantize.MEDIANCUT, Image.Dither.NONE
    return image.quantize(colours, method=method, kmeans=2, dither=dither).convert("RGB")


def _paint(canvas: Image.Image, reference: Image.Image, width: float, miss: float, rng: random.Random) -> None:
    """One layer of strokes along the contours, `width` px broad, where the canvas is `miss` levels off or more."""
    wanted = np.asarray(reference, np.float32)
    missed = np.abs(wanted - np.asarray(canvas, np.float32)).mean(-1)
    # Smooth, so that the grain of an even place turns no stroke.
    smooth = reference.convert("L").filter(ImageFilter.GaussianBlur(width))
    down, right = np.gradient(np.asarray(smooth, np.float32))
    columns, rows = (max(1, round(length / (0.7 * width))) for length in canvas.size)
    cells = [(column, row) for row in range(rows) for column in range(columns)]
    rng.shuffle(cells)
    brush = ImageDraw.Draw(canvas)
    for column, row in cells:
        x = min(canvas.width - 1, int((column + rng.random()) * canvas.width / columns))
        y = min(canvas.height - 1, int((row + rng.random()) * canvas.height / rows))
        shade, turn, length = rng.gauss(0, 13), rng.gauss(0, 0.25), width * rng.uniform(1.0, 3.0)
        if missed[y, x] < miss:
            continue
        angle = np.arctan2(right[y, x], -down[y, x]) + turn
        dx, dy = length * np.cos(angle) / 2, length * np.sin(angle) / 2
        colour = tuple(int(min(255, max(0, level + shade))) for level in wanted[y, x])
        _stroke(brush, (x - dx, y - dy), (x + dx, y + dy), width, colour)


def _stroke(
    brush: ImageDraw.ImageDraw,
    start: tuple[float, float],
    end: tuple[float, float],
    width: float,
    colour: tuple[int, ...],
) -> None:
    """A line with round ends."""
    brush.line([start, end], fill=colour, width=max(1, round(width)))
    for x, y in (start, end):
        brush.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=colour)
