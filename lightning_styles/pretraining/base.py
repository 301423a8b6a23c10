"""What all pretraining runs share: one AdamW over the trained parameters, warm-up, half a cosine."""

import math
from functools import partial

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
        factor = partial(warmup_cosine, iterations=self.iterations, warmup=self.hparams.warmup)
        return {"network": (optimizer, LambdaLR(optimizer, factor))}


def warmup_cosine(i: int, iterations: int, warmup: int) -> float:
    """Factor of a learning rate in iteration i: linear warm-up over `warmup`, then half a cosine down to zero."""
    if i < warmup:
        return (i + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (i - warmup) / max(1, iterations - warmup))))
