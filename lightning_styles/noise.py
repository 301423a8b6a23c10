"""Counter-based randomness: every draw is a pure function of its key, so nothing has to be saved to resume."""

import random
from hashlib import blake2b

import numpy as np
import torch


def number(*key: int | str) -> int:
    """A number in [0, 2^63) that is a pure function of `key`."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `key`, such as (seed, iteration, rank, "noise").

    Equal keys give equal draws in every process; on the CPU also the same draws whatever the device of the run.
    """
    return torch.Generator().manual_seed(number(*key))


def seed_global(*key: int | str) -> None:
    """Seed the global generators of Python, NumPy and torch by `key`."""
    seed = number(*key)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
