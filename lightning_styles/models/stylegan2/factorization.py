"""V space: coordinates of w along the directions that a generator's layers react to most (UI2I, arXiv 2010.05713;
SeFa, arXiv 2007.06600).

Notation: B batch, D length of a style.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_styles.models.stylegan2.generator import Generator


@dataclass
class VSpace:
    """The singular value decomposition of a generator's modulation weights.

    Attributes:
        singular_values: (D,), falling.
        directions: (D, D), E: column j is direction j; its entry of largest magnitude is positive.
        ui2i: coordinates as in the code of UI2I, which takes the rows of E for directions.
    """

    singular_values: Tensor
    directions: Tensor
    ui2i: bool = False

    def to_w(self, v: Tensor) -> Tensor:
        """w (..., D) = sum_j v_j e_j."""
        return v @ (self.directions if self.ui2i else self.directions.T)

    def to_v(self, w: Tensor) -> Tensor:
        """v (..., D), the inverse of `to_w`."""
        return w @ (self.directions.T if self.ui2i else self.directions)


def modulation_weights(generator: Generator) -> Tensor:
    """The stored weights (rows, D) of all layers that a style modulates, but the colouring ones after the first."""
    rows = [
        weight
        for key, weight in generator.state_dict().items()
        if key.endswith("modulation.weight") and not key.startswith("to_rgbs.")
    ]
    return torch.cat(rows)


def factorize(weights: Tensor, ui2i: bool = False) -> VSpace:
    """V space of `weights` (rows, D); computed in float64, as near singular values leave directions ill defined.

    That is on the CPU: not every device has float64.
    """
    _, values, rows = torch.linalg.svd(weights.cpu().double(), full_matrices=False)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    directions = (rows * largest.sign()).T.contiguous()
    values, directions = (tensor.to(weights.dtype).to(weights.device) for tensor in (values, directions))
    return VSpace(values, directions, ui2i)
