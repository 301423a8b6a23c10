"""Codes of given pictures, found by optimisation as in StyleGAN2's projector (arXiv 1912.04958, appendix D).

Notation: B batch, D length of a style, L styles of a picture, S side of the generator's pictures.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_styles.losses.semantic import Judge, perceptual_distance, shrink
from lightning_styles.models.stylegan2.generator import Generator
from lightning_styles.models.stylegan2.projection import noise_regularizer, normalize_noise, ramp


class Inverted(NamedTuple):
    """What an inversion found.

    Attributes:
        code: as its start, one row per picture.
        noise: maps (B, 1, S, S) of the generator that go with it.
        distance: (B,) of each picture to its target in the last step.
    """

    code: Tensor
    noise: list[Tensor]
    distance: Tensor


def invert(
    generator: Generator,
    target: Tensor,
    judge: Judge,
    start: Tensor,
    to_w: Callable[[Tensor], Tensor] = lambda code: code,
    *,
    steps: int = 1000,
    lr: float = 0.1,
    pixel_weight: float = 0.0,
    noise_weight: float = 1e5,
    penalty: Callable[[Tensor], Tensor] | None = None,
    ramps: bool = True,
    seed: int = 0,
) -> Inverted:
    """Codes whose pictures look like `target`; every picture by itself, whatever the others of the batch are.

    Adam on the codes and on the noise maps, of which the regulariser keeps white what the codes could tell instead.

    Args:
        generator: stays as it is.
        target: (B, 3, S, S) in [-1, 1].
        judge: LPIPS or the small perceptual network.
        start: codes to begin with, (B, ...).
        to_w: codes -> w (B, D) or w+ (B, L, D), differentiable.
        steps: of Adam.
        lr: its learning rate.
        pixel_weight: weight of the mean squared error of pixels.
        noise_weight: weight of `noise_regularizer`; 0 leaves the noise maps as they are drawn.
        penalty: codes -> (B,), to be added.
        ramps: raise the learning rate at first and lower it at last, see `projection.ramp`.
        seed: of the noise maps to begin with, the same ones for each picture.
    """
    with torch.inference_mode(False), torch.enable_grad():
        target = target.detach().clone()
        with torch.no_grad():
            features, pixels = judge.embed(shrink(target)), shrink(target)
        code = start.detach().clone().requires_grad_(True)
        drawn = generator.draw_noise(1, torch.Generator().manual_seed(seed))
        noise = [x.repeat(len(target), 1, 1, 1).requires_grad_(noise_weight > 0) for x in drawn]
        moved = [code, *(noise if noise_weight else [])]
        optimizer, distance = torch.optim.Adam(moved, lr), target.new_zeros(len(target))
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = lr * (ramp(step / steps) if ramps else 1.0)
            image = generator(to_w(code), noise)
            distance = perceptual_distance(judge, image, features)
            if pixel_weight:
                distance = distance + pixel_weight * (shrink(image) - pixels).square().mean((1, 2, 3))
            loss = distance + (penalty(code) if penalty else 0.0)
            if noise_weight:
                loss = loss + noise_weight * noise_regularizer(noise)
            for tensor, gradient in zip(moved, torch.autograd.grad(loss.sum(), moved), strict=True):
                tensor.grad = gradient
            optimizer.step()
            if noise_weight:
                normalize_noise(noise)
        return Inverted(code.detach(), [x.detach() for x in noise], distance.detach())
