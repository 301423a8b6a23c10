"""The photorealistic twin of a style image: noised half-way and denoised by a model of photos (OSASIS, 2402.17275)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lightning_styles import noise
from lightning_styles.diffusion.ancestral import ancestral_sample
from lightning_styles.diffusion.ddim import Network
from lightning_styles.diffusion.respacing import Respaced, linear_betas, sectioned_timesteps


def twin_candidates(
    network: Network, style: Tensor, count: int, *, steps: int = 50, t0: float = 0.5, seed: int = 0, batch: int = 10
) -> Iterator[Tensor]:
    """`count` candidates in batches (b, 3, H, W), each with noise of its own (OSASIS, equations 9 and 10).

    As in the official code the picture is noised to step int(steps t0) and denoised from the step below.

    Args:
        network: eps and v (B, 6, H, W) of noisy photos.
        style: I_B^style (1, 3, H, W) in [-1, 1].
        count: number of candidates.
        steps: of the ancestral sampler over all timesteps.
        t0: how far the picture is noised, in (0, 1).
        seed: candidate i is a function of (seed, i).
        batch: candidates that go through the network together.
    """
    process = Respaced.of(linear_betas(), sectioned_timesteps(steps))
    start = int(steps * t0)
    for first in range(0, count, batch):
        generators = [noise.generator(seed, i, "twin") for i in range(first, min(first + batch, count))]

        def draw(i: int, generators: list[torch.Generator] = generators) -> Tensor:
            drawn = [torch.randn(style.shape[1:], generator=generator) for generator in generators]
            return torch.stack(drawn).to(style)

        x = process.add_noise(style, draw(start), start)
        yield ancestral_sample(network, x, process, reversed(range(start)), draw)
