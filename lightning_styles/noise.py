"""Counter-based randomness: every draw is a pure function of its key, so nothing has to be saved to resume."""

from hashlib import blake2b

import torch


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by `key`, such as (seed, iteration, rank, "noise").

    Equal keys give equal draws in every process; on the CPU also the same draws whatever the device of the run.
    """
    digest = blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
