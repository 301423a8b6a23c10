"""Deterministic DDIM in both directions, with predictions clamped to the range of pictures.

Notation: x_i (B, ...) at step i of a respaced process, eps(x_i, t) the network, t (B,) the training timestep of i,
x_0 the predicted clean sample. Arithmetic is float32; the network may be of any precision.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lightning_styles.diffusion.respacing import Respaced

Network = Callable[[Tensor, Tensor], Tensor]


def predicted_x0(process: Respaced, i: int, x_i: Tensor, eps: Tensor, clamp: bool = True) -> Tensor:
    """x_0 = (x_i - sqrt(1 - alpha_bar_i) eps) / sqrt(alpha_bar_i), clamped to [-1, 1] (arXiv 2010.02502, eq. 9)."""
    a = float(process.alpha_bar[i])
    x_0 = (1 / a) ** 0.5 * x_i - (1 / a - 1) ** 0.5 * eps.float()
    return x_0.clamp(-1, 1) if clamp else x_0


def move(process: Respaced, i: int, x_i: Tensor, x_0: Tensor, alpha_bar: float) -> Tensor:
    """x_i carried to the noise level `alpha_bar` along the eps that agrees with x_0 (arXiv 2010.02502, eq. 12).

    That eps differs from the network's wherever x_0 was clamped.
    """
    a = float(process.alpha_bar[i])
    eps = ((1 / a) ** 0.5 * x_i - x_0) / (1 / a - 1) ** 0.5
    return alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * eps


def step_down(process: Respaced, i: int, x_i: Tensor, eps: Tensor, clamp: bool = True) -> tuple[Tensor, Tensor]:
    """One decoding step: x_{i-1} and the predicted x_0; they are equal at i = 0."""
    x_0 = predicted_x0(process, i, x_i, eps, clamp)
    return move(process, i, x_i, x_0, float(process.alpha_bar_prev[i])), x_0


def step_up(process: Respaced, i: int, x_i: Tensor, eps: Tensor, clamp: bool = True) -> tuple[Tensor, Tensor]:
    """One encoding step: x_{i+1} and the predicted x_0 (DiffAE, arXiv 2111.15640, eq. 8)."""
    x_0 = predicted_x0(process, i, x_i, eps, clamp)
    return move(process, i, x_i, x_0, float(process.alpha_bar_next[i])), x_0


@torch.no_grad()
def encode(network: Network, x: Tensor, process: Respaced, indices: Iterable[int]) -> Tensor:
    """Noise a clean x (B, ...) deterministically along the steps `indices`, ascending."""
    for i in indices:
        x, _ = step_up(process, i, x, network(x, process.t(i, x)))
    return x


@torch.no_grad()
def decode(
    network: Network,
    x: Tensor,
    process: Respaced,
    indices: Iterable[int],
    offset: Callable[[int], Tensor] | None = None,
    clamp: bool = True,
) -> Tensor:
    """Denoise x (B, ...) along the steps `indices`, descending.

    Args:
        network: eps(x_i, t).
        x: at the level of the first step.
        process: the respaced process.
        indices: steps i, ending with 0 for a clean result.
        offset: added to x_i before each step i, such as OSASIS' lambda SPN(I, i); it stays in x.
        clamp: keep x_0 in [-1, 1]; right for pictures, wrong for codes.
    """
    for i in indices:
        if offset is not None:
            x = x + offset(i)
        x, _ = step_down(process, i, x, network(x, process.t(i, x)), clamp)
    return x


def sample_codes(network: Network, noise: Tensor, process: Respaced, mean: Tensor, std: Tensor) -> Tensor:
    """Codes z (B, D) of the latent prior (DiffAE, arXiv 2111.15640, section 4) from noise (B, D).

    Args:
        network: eps of normalised codes.
        noise: standard normal.
        process: respaced process of the prior, all of whose steps are taken.
        mean: of the training codes, (D,) or (1, D).
        std: of the training codes, same shape.
    """
    return decode(network, noise, process, reversed(range(len(process))), clamp=False) * std + mean
