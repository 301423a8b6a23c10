"""What the discriminator sees instead of plain pictures, so that it does not learn a small set by heart."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from lightning_styles.models import augment as ada
from lightning_styles.models import diff_augment
from lightning_styles.models.stylegan2.layers import full_precision

Kind = Literal["ada", "diffaugment", "none"]
EVERY = 4  # iterations between two changes of ADA's probability


class Augmentation(nn.Module):
    """Real and drawn pictures -> pictures for the discriminator.

    Args:
        kind: "ada" (arXiv 2006.06676), "diffaugment" (arXiv 2006.10738) or "none".
        policies: of DiffAugment, in their order.
        start: ADA's first probability.
        target: mean sign of the logits of real pictures that ADA holds.
        ramp: pictures in which its probability can move by 1.

    Attributes:
        p: the probability, a scalar.
        signs: sum of the signs since its last change, and their number.
    """

    p: Tensor
    signs: Tensor

    def __init__(self, kind: Kind, policies: list[str], start: float, target: float, ramp: int) -> None:
        super().__init__()
        self.kind, self.policies, self.target, self.ramp = kind, policies, target, ramp
        self.register_buffer("p", torch.tensor(start if kind == "ada" else 0.0))
        self.register_buffer("signs", torch.zeros(2))
        self._p: float | None = None  # `p` where no device has to be waited for

    def forward(self, image: Tensor, generator: torch.Generator) -> Tensor:
        """`image` (B, 3, H, W) augmented by draws of `generator`; gradients reach it, twice if need be."""
        if self.kind == "diffaugment":
            return diff_augment.diff_augment(image, diff_augment.draw(len(image), generator), self.policies)
        if self.kind == "ada":
            with full_precision(image):  # bfloat16 cannot tell the columns of a large picture apart
                return ada.augment(image.float(), ada.draw(len(image), generator), self._probability())
        return image

    def observe(self, real: Tensor, iteration: int, total: Callable[[Tensor], Tensor]) -> None:
        """Learn from the logits (B, 1) of real pictures how far the discriminator overfits.

        Args:
            real: the logits.
            iteration: the current one.
            total: sums a tensor over all processes.
        """
        if self.kind != "ada":
            return
        sign = real.detach().float().sign()
        self.signs += total(torch.stack([sign.sum(), sign.new_tensor(float(sign.numel()))]))
        if (iteration + 1) % EVERY == 0:
            signs, count = self.signs.tolist()
            p = ada.next_probability(self._probability(), signs / count, int(count), self.target, self.ramp)
            self._p = float(np.float32(p))  # as a resumed run reads it
            self.p.fill_(self._p)
            self.signs.zero_()

    def _probability(self) -> float:
        if self._p is None:
            self._p = float(self.p)
        return self._p
