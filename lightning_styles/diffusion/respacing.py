"""Respaced diffusion processes: which of the T training timesteps a sampler visits, and its tables.

A respaced process has N steps with index i = 0 ... N - 1; `timesteps[i]` is the training timestep that the network is
told. Tables are float64, as Python floats where a single step reads them. r = t0 / T is how far a picture is noised.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_styles.errors import UserError


def linear_betas(T: int = 1000, start: float = 1e-4, end: float = 2e-2) -> Tensor:
    """beta_t of the image processes: (T,) float64 (DDPM, arXiv 2006.11239, section 4)."""
    return torch.linspace(start, end, T, dtype=torch.float64)


def constant_betas(T: int = 1000, beta: float = 0.008) -> Tensor:
    """beta_t of the latent prior: (T,) float64 (DiffAE, arXiv 2111.15640)."""
    return torch.full((T,), beta, dtype=torch.float64)


def even_timesteps(N: int, T: int = 1000) -> list[int]:
    """0, s, 2s, ... with the smallest integer stride s that gives exactly N timesteps below T.

    Raises:
        UserError: no stride gives N.
    """
    for stride in range(1, T + 1) if 1 <= N <= T else ():
        count = len(range(0, T, stride))
        if count == N:
            return list(range(0, T, stride))
        if count < N:
            fewer, more = count, len(range(0, T, stride - 1))
            raise UserError(
                f"{N} steps do not divide {T} timesteps evenly; the nearest that do are {fewer} and {more}."
            )
    raise UserError(f"{N} steps asked for, expected 1 to {T}.")


def sectioned_timesteps(counts: int | Sequence[int], T: int = 1000) -> list[int]:
    """Timesteps from the first to the last of each section, a fractional stride apart and rounded.

    Args:
        counts: timesteps of each of the equal sections of [0, T); a number is one section.
        T: training timesteps.

    Raises:
        UserError: a section is asked for more timesteps than it has, or for none.
    """
    counts = [counts] if isinstance(counts, int) else list(counts)
    start, timesteps = 0, []
    for section, count in enumerate(counts):
        size = T // len(counts) + (section < T % len(counts))
        if not 1 <= count <= size:
            raise UserError(f"{count} steps asked for in a section of {size} timesteps, expected 1 to {size}.")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):
            timesteps.append(start + round(place))
            place += stride  # accumulated, not multiplied: ties of the rounding fall as in the official code
        start += size
    return timesteps


@dataclass(frozen=True, eq=False)
class Respaced:
    """Tables of a respaced process; alpha_bar of a kept timestep is that of the training process.

    Attributes:
        timesteps: the N training timesteps, ascending.
        alpha_bar: (N,) float64.
    """

    timesteps: tuple[int, ...]
    alpha_bar: Tensor

    @classmethod
    def of(cls, betas: Tensor, timesteps: Sequence[int]) -> "Respaced":
        """Keep `timesteps` of the process with the given `betas` (T,)."""
        return cls(tuple(timesteps), torch.cumprod(1 - betas, 0)[list(timesteps)])

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def alpha_bar_prev(self) -> Tensor:
        """alpha_bar one step nearer to the picture, (N,); 1 at i = 0."""
        return torch.cat([self.alpha_bar.new_ones(1), self.alpha_bar[:-1]])

    @property
    def alpha_bar_next(self) -> Tensor:
        """alpha_bar one step nearer to the noise, (N,); 0 at i = N - 1."""
        return torch.cat([self.alpha_bar[1:], self.alpha_bar.new_zeros(1)])

    @property
    def betas(self) -> Tensor:
        """beta_i = 1 - alpha_bar_i / alpha_bar_{i - 1}: (N,)."""
        return 1 - self.alpha_bar / self.alpha_bar_prev

    def t(self, i: int, x: Tensor) -> Tensor:
        """Training timestep of step i for each sample of x (B, ...): (B,) int64."""
        return torch.full((len(x),), self.timesteps[i], device=x.device)

    def add_noise(self, x_0: Tensor, noise: Tensor, i: int) -> Tensor:
        """x_i = sqrt(alpha_bar_i) x_0 + sqrt(1 - alpha_bar_i) noise (arXiv 2006.11239, eq. 4)."""
        a = float(self.alpha_bar[i])
        return a**0.5 * x_0 + (1 - a) ** 0.5 * noise


def encode_indices(N: int, r: float) -> list[int]:
    """Steps i of an encoder with N steps, in order, up to the noise level r."""
    return list(range(int(N * r)))


def decode_indices(N: int, r: float) -> list[int]:
    """Steps i of a decoder with N steps, in order, from the noise level r down (official code of OSASIS).

    The first one is the step below the level: for r = 0.5, x lies at t = 500 and the network is told 450 (N = 20) or
    480 (N = 50). r is rounded as in the official code, which keeps the last N - int(N (1 - r)) steps in floats.
    """
    return list(reversed(range(N)))[int(N * (1 - r)) :]


def aligned_decode_indices(decoder: Respaced, encoder: Respaced, r: float) -> list[int]:
    """Steps i of `decoder` in order, the first being told the very level at which `encoder` left x.

    That is the highest step at or below the level, where none meets it exactly.
    """
    steps = int(len(encoder) * r)
    if not steps:
        return []
    level = encoder.timesteps[steps] if steps < len(encoder) else decoder.timesteps[-1]
    return [i for i in reversed(range(len(decoder))) if decoder.timesteps[i] <= level]
