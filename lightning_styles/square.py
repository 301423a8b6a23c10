"""Pictures of any aspect ratio in and out of networks that want squares of one size."""

from pathlib import Path
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from lightning_styles.imaging import read_image

Fit = Literal["letterbox", "crop", "squash"]


def to_square(images: Tensor, size: int, how: Fit) -> Tensor:
    """Squares (B, 3, size, size) of `images` (B, 3, H, W) in [-1, 1], resized with antialiasing.

    "letterbox" keeps everything and repeats the border where the picture is too short, "crop" keeps the middle,
    "squash" stretches.
    """
    if how == "squash":
        return _resize(images, size, size)
    height, width = images.shape[-2:]
    scale = size / (max(height, width) if how == "letterbox" else min(height, width))
    height, width = (max(1, round(side * scale)) for side in (height, width))
    images = _resize(images, height, width)
    top, left = (size - height) // 2, (size - width) // 2  # negative where crop cuts off
    borders = (left, size - width - left, top, size - height - top)
    return F.pad(images, borders, mode="replicate" if how == "letterbox" else "constant")


def open_square(path: str | Path, size: int, how: Fit) -> Tensor:
    """The picture of a file as a square (1, 3, size, size) in [-1, 1], see `to_square`."""
    return to_square(read_image(path)[None], size, how)


def from_square(squares: Tensor, height: int, width: int, how: Fit) -> Tensor:
    """The part of (B, 3, S, S) that shows a picture of `height` x `width` px, without what letterbox added.

    Squares that were cropped or squashed stay as they are.
    """
    if how != "letterbox":
        return squares
    size = squares.shape[-1]
    h, w = (max(1, round(side * size / max(height, width))) for side in (height, width))
    top, left = (size - h) // 2, (size - w) // 2
    return squares[..., top : top + h, left : left + w]


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return F.interpolate(images, (height, width), mode="bilinear", antialias=True, align_corners=False)
