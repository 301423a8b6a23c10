"""The semantic distance of two generators."""

import pytest
import torch
from torch import Tensor

from lightning_styles.metrics.semantic import SemanticDistance


class Board:
    """Draws a chessboard of 512 px whose fields are one pixel, `contrast` strong."""

    style_dim = 4

    def __init__(self, contrast: float) -> None:
        self.contrast = contrast

    def draw_noise(self, batch: int, random: torch.Generator) -> list[Tensor]:
        return [torch.randn(batch, 1, 4, 4, generator=random)]

    def mapping(self, z: Tensor) -> Tensor:
        return z

    def __call__(self, w: Tensor, noise: list[Tensor]) -> Tensor:
        line = torch.arange(512)
        board = 1 - 2 * ((line[:, None] + line) % 2)
        return self.contrast * board.expand(len(w), 3, -1, -1)


@pytest.mark.parametrize(("contrasts", "expected"), [((0.0, 0.5), 0.5), ((0.0, 3.0), 1.0), ((0.25, -0.5), 0.75)])
def test_pictures_are_compared_in_range_and_at_their_own_size(contrasts: tuple[float, float], expected: float) -> None:
    metric = SemanticDistance(lambda x, y: (x - y).abs().mean((1, 2, 3)))  # type: ignore[arg-type]
    metric.update(*map(Board, contrasts), torch.zeros(4), range(3))  # type: ignore[arg-type]
    assert metric.compute().item() == pytest.approx(expected)
