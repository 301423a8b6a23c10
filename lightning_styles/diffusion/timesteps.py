"""Which timesteps an iteration may draw, and the generator's learning rate (SMS, arXiv 2503.07601).

A timestep is drawn as an index of the ascending inference grid of L steps (`NoiseSchedule.grid`), t =
grid[idx] and t_prev = grid[idx - 1]. Ranges are half open, [lo, hi). i counts the iterations from 0 to N -
1.

The products are evaluated as Python floats in exactly the order of the official code: several upper bounds
are one lower than exact arithmetic gives.
"""

import math
from typing import Literal

import torch
from torch import Tensor

Strategy = Literal["narrowing", "uniform", "linear"]
FakeRange = Literal["code", "paper"]

T_MAX = 0.5  # t_max / T of SMS: t stays below 500 of 1000


def generator_range(strategy: Strategy, i: int, N: int, L: int = 500, min_ratio: float = 0.02) -> tuple[int, int]:
    """Index range of SMS's generator step (arXiv 2503.07601, adaptive narrowing and its ablations).

    Args:
        strategy: "narrowing" (the method): uniform below an upper bound that falls linearly from t_max to
            t_min; "uniform": uniform below t_max throughout; "linear": no draw, t itself falls along
            narrowing's upper end.
        i: iteration, 0 <= i < N.
        N: iterations of the run.
        L: inference steps of the grid.
        min_ratio: t_min / T.
    """
    lo = lowest_index(L, min_ratio)
    if strategy == "uniform":
        return lo, int(L * T_MAX)
    hi = max(int(L * (T_MAX * (1 - i / N))), lo + 1)
    return (hi - 1, hi) if strategy == "linear" else (lo, hi)


def fake_range(
    option: FakeRange = "code", L: int = 500, min_ratio: float = 0.02, max_ratio: float = 0.98
) -> tuple[int, int]:
    """Index range of the fake-score step of SMS (arXiv 2503.07601, Alg. 1).

    "paper" is U(t_min, t_max) with the two configured ratios. "code" (default) never passes t_max, because
    the generator step of the official code leaves its own upper bound 0.5 behind in the config; it is also
    better founded: the fake score is only ever evaluated there.
    """
    return lowest_index(L, min_ratio), int(L * (T_MAX if option == "code" else max_ratio))


def plain_range(L: int = 500, min_ratio: float = 0.02, max_ratio: float = 0.98) -> tuple[int, int]:
    """Index range of SDS, DDS, PDS and VSD (both of VSD's steps): no narrowing."""
    return lowest_index(L, min_ratio), int(L * max_ratio)


def lowest_index(L: int, min_ratio: float) -> int:
    """Lower end of every range; never 0, because index 0 has no predecessor."""
    return max(int(L * min_ratio), 1)


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
