"""What all pretraining runs share: one AdamW over the trained parameters, warm-up, half a cosine."""

import math

from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles.module import StyleModule


class Pretraining(StyleModule):
    """One optimizer, "network", over every parameter that requires a gradient; hparams `lr` and `warmup`."""

    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer = AdamW(trained, lr=self.hparams.lr, betas=self.betas, weight_decay=self.weight_decay)
        return {"network": (optimizer, warmup_cosine(optimizer, self.iterations, self.hparams.warmup))}


def warmup_cosine(optimizer: Optimizer, iterations: int, warmup: int) -> LambdaLR:
    """Linear warm-up over `warmup` iterations, then half a cosine down to zero at `iterations`."""

    def factor(i: int) -> float:
        if i < warmup:
            return (i + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (i - warmup) / max(1, iterations - warmup))))

    return LambdaLR(optimizer, factor)
