"""Which timesteps an iteration may draw, and the generator's learning rate (SMS, arXiv 2503.07601).

A timestep is drawn as an index of the ascending inference grid of L steps (`NoiseSchedule.grid`), t = grid[idx] and
t_prev = grid[idx - 1]. Ranges are half open, [lo, hi). i counts the iterations from 0 to N - 1; t_min and t_max are
timesteps of T.

The products are evaluated as Python floats in exactly the order of the official code: several upper bounds are one
lower than exact arithmetic gives.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from lightning_styles.errors import UserError, at_least

Strategy = Literal["narrowing", "uniform", "linear", "full"]

T = 1000  # training timesteps of every Stable Diffusion
T_FULL = 980  # upper end of "full"


def index_range(
    strategy: Strategy, i: int = 0, N: int = 1, *, L: int = 500, t_min: int = 20, t_max: int = 500
) -> tuple[int, int]:
    """Indices that iteration i may draw (arXiv 2503.07601, adaptive narrowing and its ablations).

    Args:
        strategy: "narrowing" (the generator's step of SMS): uniform below an upper bound that falls linearly from t_max
            to t_min; "uniform": uniform below t_max throughout; "linear": no draw, t itself falls along narrowing's
            upper end; "full": uniform below 980, as the official code of SDS, DDS, PDS and VSD has it.
        i: iteration, 0 <= i < N.
        N: iterations of the run.
        L: inference steps of the grid.
        t_min: smallest timestep.
        t_max: largest one, whose end the range does not reach.
    """
    lo, share = lowest_index(L, t_min), t_max / T
    if strategy == "full":
        return lo, int(L * (T_FULL / T))
    if strategy == "uniform":
        return lo, int(L * share)
    hi = max(int(L * (share * (1 - i / N))), lo + 1)
    return (hi - 1, hi) if strategy == "linear" else (lo, hi)


def lowest_index(L: int, t_min: int) -> int:
    """Lower end of every range; never 0, because index 0 has no predecessor."""
    return max(int(L * (t_min / T)), 1)


def check_range(L: int, t_min: int, t_max: int) -> None:
    """Refuse a grid that is not even, and bounds with no timestep of the grid between them.

    Raises:
        UserError: naming the settings `grid_steps`, `t_min` and `t_max`.
    """
    at_least(1, grid_steps=L)
    at_least(0, t_min=t_min)
    if T % L:
        raise UserError(f"grid_steps is {L}; it must divide the {T} training timesteps, as 500, 250 and 100 do.")
    if t_max > T:
        raise UserError(f"t_max is {t_max}; there are {T} timesteps, and SMS takes 500 of them.")
    if not lowest_index(L, t_min) < min(index_range(way, L=L, t_max=t_max)[1] for way in ("uniform", "full")):
        raise UserError(
            f"no timestep of a grid of {L} lies between t_min {t_min} and t_max {t_max}; the paper's are 20 and 500."
        )


def draw(bounds: tuple[int, int], batch: int, generator: torch.Generator) -> Tensor:
    """Grid indices uniform in [lo, hi), one for each sample: (batch,) int64 on the generator's device."""
    return torch.randint(*bounds, (batch,), generator=generator, device=generator.device)


def generator_lr_factor(i: int, N: int, warmup: int = 100) -> float:
    """Factor on the generator's learning rate: linear warm-up, then half a cosine ending at int(1.5 N).

    As in the official code of SMS the first iteration has factor 0 and the run ends at about a third of the
    peak.
    """
    if i < warmup:
        return i / warmup
    progress = (i - warmup) / max(1, int(1.5 * N) - warmup)
    return max(0.0, 0.5 * (1 + math.cos(math.pi * progress)))
