"""A sheet of results over two settings: one picture with labels, because that is how people choose."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.errors import UserError
from lightning_styles.imaging import from_uint8

LINE, GAP, WIDE = 12, 2, 112  # px: height of a line of text, white between pictures, width that labels need

Axis = tuple[str, Callable[[float], bool]]  # what values are allowed, in words and as a test


def check_axes(name: str, axes: Mapping[str, Any], allowed: Mapping[str, Axis]) -> None:
    """Refuse settings of a sheet that do not give each of `allowed` a list of allowed numbers.

    Raises:
        UserError: naming the axis.
    """
    if set(axes) != set(allowed):
        raise UserError(f"{name} has {', '.join(axes) or 'nothing'}; expected lists for {' and '.join(allowed)}.")
    for axis, (words, test) in allowed.items():
        values = axes[axis]
        if not isinstance(values, (list, tuple)) or not values:
            raise UserError(f"{name}.{axis} is {values}; expected a list of at least one number, each {words}.")
        if bad := [value for value in values if not test(value)]:
            raise UserError(f"{name}.{axis} holds {bad[0]}; expected numbers {words}.")


def labelled_sheets(
    photos: Sequence[Tensor] | Tensor,
    cells: Sequence[Sequence[Sequence[Tensor] | Tensor]],
    axes: Mapping[str, Sequence[float]],
) -> list[Tensor]:
    """For each photo one picture (3, H', W') on white: the photo at the top left, beside it its cells, labelled.

    Args:
        photos: P pictures (3, H, W) in [-1, 1].
        cells: their results, of the same sizes, for each value of the first axis and, in it, each of the second.
        axes: name of each of the two axes -> its values.
    """
    rows, columns = ([f"{name} {value:g}" for value in values] for name, values in axes.items())
    return [
        _sheet(photo, [[cell[i] for cell in row] for row in cells], rows, columns) for i, photo in enumerate(photos)
    ]


def _sheet(photo: Tensor, cells: list[list[Tensor]], rows: list[str], columns: list[str]) -> Tensor:
    lines = []
    for number, (row, pictures) in enumerate(zip(rows, cells, strict=True)):
        left = labelled(torch.ones_like(photo)) if number else labelled(photo, "photo")
        shown = [labelled(picture, row, column) for picture, column in zip(pictures, columns, strict=True)]
        lines.append(torch.cat([left, *shown], dim=-1))
    return torch.cat(lines, dim=-2)


def labelled_row(columns: Mapping[str, Tensor]) -> Tensor:
    """Pictures (3, H, W) side by side, each under its name; one picture (3, H', W')."""
    return torch.cat([labelled(picture, *name.split(" ", 1)) for name, picture in columns.items()], dim=-1)


def labelled(picture: Tensor, *lines: str) -> Tensor:
    """The picture (3, H, W), some whole times as large if small, with two lines of text above it and a white border."""
    times = -(-WIDE // picture.shape[-1])
    picture = picture.repeat_interleave(times, -1).repeat_interleave(times, -2)
    label = Image.new("RGB", (picture.shape[-1], 2 * LINE), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(label).text((1, number * LINE), line, fill="black")
    whole = torch.cat([from_uint8(np.asarray(label)), picture.float().cpu()], dim=-2)
    return F.pad(whole, (GAP, GAP, GAP, GAP), value=1.0)
