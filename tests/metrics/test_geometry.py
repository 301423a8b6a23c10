"""Twins whose lines lie elsewhere are told from those that only look different."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from datamodules import scenes
from datamodules.filters import FILTERS, apply_filter
from lightning_styles.metrics.geometry import DISPLACED, displacement

DRAWN = scenes.sample_scenes(1, range(6))


def photos() -> Tensor:
    return scenes.render(DRAWN, "photo", 128)


def moved(images: Tensor, field: Tensor) -> Tensor:
    """`images` (B, 3, H, W) whose point at x shows what was at x + field (h, w, 2), in shares of the side."""
    side = images.shape[-1]
    field = F.interpolate(field.permute(2, 0, 1)[None], (side, side), mode="bicubic")[0].permute(1, 2, 0)
    line = (torch.arange(side) + 0.5) / side * 2 - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1) + 2 * field
    return F.grid_sample(images, grid[None].expand(len(images), -1, -1, -1), padding_mode="border", align_corners=False)


@pytest.mark.parametrize("style", ["photo", "cartoon", "sketch", "watercolor", *FILTERS])
def test_exact_twins_of_every_style_lie_where_their_photos_do(style: str) -> None:
    photo = photos()
    twin = apply_filter(photo, style) if style in FILTERS else scenes.render(DRAWN, style, 128)
    assert displacement(photo, twin).max() < DISPLACED


@pytest.mark.parametrize("style", ["photo", "cartoon", "sketch"])
def test_shifted_and_enlarged_twins_do_not(style: str) -> None:
    photo, twin = photos(), scenes.render(DRAWN, style, 128)
    assert displacement(photo, moved(twin, torch.full((1, 1, 2), 0.03))).min() > DISPLACED
    line = (torch.arange(8) + 0.5) / 8 - 0.5
    inwards = -torch.stack(torch.meshgrid(line, line, indexing="xy"), -1)
    assert displacement(photo, moved(twin, 0.18 * inwards)).min() > DISPLACED


def test_a_shift_is_measured_in_shares_of_the_side() -> None:
    photo = photos()
    shifted = moved(photo, torch.tensor([[[3 / 64, 0.0]]]))
    torch.testing.assert_close(displacement(photo, shifted), torch.full((6,), 3 / 64), rtol=0.1, atol=0)
    assert displacement(photo, torch.zeros_like(photo)).max() < 1e-3, "nothing to match"
