"""What StyleGAN2's projector (arXiv 1912.04958, appendix D) does beside its loss: noise maps and schedules.

Noise maps are (B, 1, S, S), one tensor per layer.
"""

from collections.abc import Sequence
from math import cos, pi

import torch
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 8  # px, at which the pyramid of a noise map ends


def noise_regularizer(noise: Sequence[Tensor], together: bool = False) -> Tensor:
    """How much noise maps resemble themselves shifted by 1 px, at all scales: 0 for white noise.

    Args:
        noise: the maps.
        together: average products over the batch before they are squared, as the reference does, which couples its
            pictures; the result is then a scalar, otherwise (B,).
    """
    axes = (0, 1, 2, 3) if together else (1, 2, 3)
    terms = []
    for x in noise:
        while True:
            terms += [(x * x.roll(1, axis)).mean(axes).square() for axis in (3, 2)]
            if x.shape[-1] <= SMALLEST:
                break
            x = F.avg_pool2d(x, 2)
    return torch.stack(terms).sum(0)


@torch.no_grad()
def normalize_noise(noise: Sequence[Tensor], together: bool = False) -> None:
    """Give noise maps mean 0 and deviation 1, in place; each picture's by itself, or the batch's `together`."""
    for x in noise:
        axes = (0, 1, 2, 3) if together else (1, 2, 3)
        x.sub_(x.mean(axes, keepdim=True)).div_(x.std(axes, keepdim=True))


def ramp(progress: float, up: float = 0.05, down: float = 0.25) -> float:
    """Factor of the learning rate: up linearly, at last down by a cosine.

    Args:
        progress: the step over the number of steps.
        up, down: parts of the run that each takes.
    """
    falling = 0.5 - 0.5 * cos(pi * min(1.0, (1 - progress) / down))
    return falling * min(1.0, progress / up)


def code_noise(progress: float, strength: float = 0.05, until: float = 0.75) -> float:
    """Deviation of the noise on the codes, in units of that of w: falls to 0 at the part `until` of the run."""
    return strength * max(0.0, 1 - progress / until) ** 2
