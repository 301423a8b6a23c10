"""The learning-rate schedule of all pretraining runs."""

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(optimizer: Optimizer, iterations: int, warmup: int) -> LambdaLR:
    """Linear warm-up over `warmup` iterations, then half a cosine down to zero at `iterations`."""

    def factor(i: int) -> float:
        if i < warmup:
            return (i + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (i - warmup) / max(1, iterations - warmup))))

    return LambdaLR(optimizer, factor)
