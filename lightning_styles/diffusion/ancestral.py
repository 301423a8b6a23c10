"""Ancestral sampling with a learned range of variances (improved DDPM, arXiv 2102.09672).

Notation as in `ddim`; the network gives eps and v together, (B, 2 C, ...), v in [-1, 1] between two variances.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_styles.diffusion.ddim import Network, predicted_x0
from lightning_styles.diffusion.respacing import Respaced


class Posterior(NamedTuple):
    """p(x_{i-1} | x_i): mean, logarithm of the variance and predicted x_0, each (B, C, ...)."""

    mean: Tensor
    log_variance: Tensor
    x_0: Tensor


def variance_range(process: Respaced, i: int) -> tuple[float, float]:
    """Logarithms of the smallest and largest variance of step i: that of q(x_{i-1} | x_i, x_0), and beta_i.

    The former is zero at i = 0 and taken from i = 1 there.
    """
    k = max(i, 1) if len(process) > 1 else i
    low = process.betas[k] * (1 - process.alpha_bar_prev[k]) / (1 - process.alpha_bar[k])
    return float(low.log()), float(process.betas[i].log())


def posterior(process: Respaced, i: int, x_i: Tensor, output: Tensor) -> Posterior:
    """p(x_{i-1} | x_i) from the network's output (B, 2 C, ...) (arXiv 2006.11239, eq. 7; arXiv 2102.09672, eq. 15)."""
    eps, v = output.float().chunk(2, dim=1)
    x_0 = predicted_x0(process, i, x_i, eps)
    beta, a, a_prev = (float(table[i]) for table in (process.betas, process.alpha_bar, process.alpha_bar_prev))
    mean = beta * a_prev**0.5 / (1 - a) * x_0 + (1 - a_prev) * (1 - beta) ** 0.5 / (1 - a) * x_i
    low, high = variance_range(process, i)
    share = (v + 1) / 2
    return Posterior(mean, share * high + (1 - share) * low, x_0)


def ancestral_step(process: Respaced, i: int, x_i: Tensor, output: Tensor, noise: Tensor | None) -> Tensor:
    """x_{i-1} drawn from the posterior with standard normal `noise`; the mean alone at i = 0."""
    p = posterior(process, i, x_i, output)
    return p.mean if i == 0 or noise is None else p.mean + (0.5 * p.log_variance).exp() * noise


@torch.no_grad()
def ancestral_sample(
    network: Network, x: Tensor, process: Respaced, indices: Iterable[int], noise: Callable[[int], Tensor]
) -> Tensor:
    """Denoise x (B, C, ...) along the steps `indices`, descending, with noise(i) of x's shape for each i > 0."""
    for i in indices:
        output = network(x, process.t(i, x))
        x = ancestral_step(process, i, x, output, noise(i) if i else None)
    return x
