"""Dis.: how far a finetuned generator has moved from its parent, by the same styles (Lu and Zhou 2025, table 4)."""

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_styles import noise
from lightning_styles.models.stylegan2.generator import Generator
from lightning_styles.models.stylegan2.mixing import truncate


class SemanticDistance(MeanMetric):
    """Mean perceptual distance of G(z) and G'(z), clamped to [-1, 1]; 0 for equal generators.

    At the size of the pictures, as `content` is: the paper's Perc. and Dis. are one measurement.

    Args:
        network: maps two batches (B, 3, H, W) in [-1, 1] to distances (B,).
        seed: of z and of the noise maps, which both generators share.
        psi: truncation.
    """

    higher_is_better = False

    def __init__(self, network: nn.Module, seed: int = 0, psi: float = 1.0) -> None:
        super().__init__(nan_strategy="disable")
        self.network, self.seed, self.psi = network, seed, psi

    @torch.no_grad()
    def update(self, source: Generator, styled: Generator, mean: Tensor, indices: range, batch: int = 2) -> None:  # type: ignore[override]
        """Add the samples of `indices`, each of which is always the same.

        Args:
            source, styled: G and G'; each with its own mapping network.
            mean: of w, for the truncation.
            indices: numbers of the samples, this rank's share.
            batch: samples at once.
        """
        for first in range(0, len(indices), batch):
            draws = [noise.generator(self.seed, "semantic", i) for i in indices[first : first + batch]]
            z = torch.stack([torch.randn(source.style_dim, generator=draw) for draw in draws]).to(mean)
            each = [source.draw_noise(1, draw) for draw in draws]
            maps = [torch.cat(some) for some in zip(*each, strict=True)]
            drawn = (g(truncate(g.mapping(z), mean, self.psi), maps) for g in (source, styled))
            original, image = (images.float().clamp(-1, 1) for images in drawn)
            super().update(self.network(image, original))
