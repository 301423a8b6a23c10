"""Differentiable augmentation of real and generated pictures alike (DiffAugment, arXiv 2006.10738).

Unlike ADA it is always on and has no state. Pictures are (B, 3, H, W) in [-1, 1].
"""

from collections.abc import Iterable

import torch
from torch import Tensor

POLICIES = ("color", "translation", "cutout")
SHIFT, HOLE = 1 / 8, 1 / 2  # of the picture's sides


def draw(batch: int, generator: torch.Generator) -> Tensor:
    """The numbers of one batch, (B, 7) in [0, 1), on the device of `generator`."""
    return torch.rand(batch, 7, generator=generator, device=generator.device)


def diff_augment(image: Tensor, draws: Tensor, policies: Iterable[str] = POLICIES) -> Tensor:
    """`image` after the `policies`, in their order; equal `draws` of `draw` do the same to every picture."""
    draws = draws.to(image.device)
    apply = {"color": (_colour, 0, 3), "translation": (_translate, 3, 5), "cutout": (_cut_out, 5, 7)}
    for policy in policies:
        function, first, end = apply[policy]
        image = function(image, draws[:, first:end])
    return image


def _colour(image: Tensor, u: Tensor) -> Tensor:
    brightness, saturation, contrast = u.to(image.dtype)[:, :, None, None, None].unbind(1)
    image = image + (brightness - 0.5)
    grey = image.mean(1, keepdim=True)
    image = grey + (image - grey) * (2 * saturation)
    mean = image.mean((1, 2, 3), keepdim=True)
    return mean + (image - mean) * (0.5 + contrast)


def _translate(image: Tensor, u: Tensor) -> Tensor:
    """Shifts of up to 1/8 of a side by whole px, with zeros behind them."""
    height, width = image.shape[-2:]
    row, inside_row = _shifted(height, u[:, 0])
    column, inside_column = _shifted(width, u[:, 1])
    batch = torch.arange(len(image), device=image.device)[:, None, None, None]
    channel = torch.arange(image.shape[1], device=image.device)[:, None, None]
    moved = image[batch, channel, row[:, None, :, None], column[:, None, None, :]]
    return moved * (inside_row[:, None, :, None] & inside_column[:, None, None, :])


def _shifted(side: int, u: Tensor) -> tuple[Tensor, Tensor]:
    """Where each px (B, side) comes from, and whether that is inside."""
    most = int(side * SHIFT + 0.5)
    source = torch.arange(side, device=u.device) + ((2 * most + 1) * u).floor().long()[:, None] - most
    return source.clamp(0, side - 1), (source >= 0) & (source < side)


def _cut_out(image: Tensor, u: Tensor) -> Tensor:
    """A square of half the picture's sides is 0; its middle lies anywhere, so that a part may be outside."""
    height, width = image.shape[-2:]
    hidden_row, hidden_column = (_hidden(side, u[:, i], image.device) for i, side in enumerate((height, width)))
    return image * ~(hidden_row[:, None, :, None] & hidden_column[:, None, None, :])


def _hidden(side: int, u: Tensor, device: torch.device) -> Tensor:
    length = int(side * HOLE + 0.5)
    first = ((side + 1 - length % 2) * u).floor().long()[:, None] - length // 2
    place = torch.arange(side, device=device)
    return (place >= first) & (place < first + length)
