"""Distances of two sets of pictures by their features: FID, KID, ArtFID, and the same in other features.

Numbers compare only when features, number of pictures and resolution are the same. FID is biased upwards by few
pictures; KID is not, which makes it the one to read on small sets.

Notation: N style pictures, M results, D features.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.image.kid import poly_mmd
from torchmetrics.utilities import dim_zero_cat

from lightning_styles.errors import UserError

LEAST = 16  # pictures on each side, below which FID says nothing
INFINITE = 5000  # pictures from which FID can be followed to infinitely many
SUBSETS = 100  # of the larger set, for KID


class FeatureSets(Metric):
    """The features of style pictures and of results, kept until both sets are whole.

    Args:
        num_features: D.
    """

    full_state_update = False
    style: list[Tensor]
    results: list[Tensor]

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_features = num_features
        # Joined before the ranks exchange them: one exchange each, however many batches a rank had.
        self.add_state("style", [], dist_reduce_fx="cat")
        self.add_state("results", [], dist_reduce_fx="cat")

    def update(self, features: Tensor, style: bool) -> None:
        """Add `features` (B, D) of style pictures or of results."""
        (self.style if style else self.results).append(features)

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Exchange the features; a rank without any takes part with none."""
        for features in (self.style, self.results):
            features.append(self._nothing)
        super().sync(*args, **kwargs)

    @property
    def _nothing(self) -> Tensor:
        return torch.zeros(0, self.num_features, device=self.device)

    def compute(self) -> tuple[Tensor, Tensor]:
        """Features of the style pictures (N, D) and of the results (M, D), of all ranks."""
        style, results = (dim_zero_cat(x) if len(x) else self._nothing for x in (self.style, self.results))
        return style, results


def frechet_distance(style: Tensor, results: Tensor) -> float:
    """FID: |mean difference|^2 + tr(C_s + C_r - 2 (C_s C_r)^(1/2)) (arXiv 1706.08500, equation 6), C over n - 1.

    In float64, on the CPU. With C = A^T A the last trace is the sum of the singular values of A_s A_r^T, which needs no
    root of a matrix and stays real for singular C.

    Args:
        style: (N, D).
        results: (M, D).
    """
    sets = [features.cpu().double() for features in (style, results)]
    means = [features.mean(0) for features in sets]
    roots = [
        torch.linalg.qr((features - mean) / (len(features) - 1) ** 0.5, mode="r").R
        for features, mean in zip(sets, means, strict=True)
    ]
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    spread = sum(root.square().sum() for root in roots)
    return float(((means[0] - means[1]).square().sum() + spread - 2 * shared).clamp(min=0))


def frechet_at_infinity(style: Tensor, results: Tensor, points: int = 15, seed: int = 0) -> float:
    """FID of infinitely many pictures, as ArtFID's package takes it by default (arXiv 1911.07023).

    A line through FID over 1 / n of `points` subsets of n = 5000 to N pictures, the same of both sets, at 1 / n = 0.

    Args:
        style: (N, D), N above 5000.
        results: (N, D).
        points: subsets.
        seed: of their order.

    Raises:
        UserError: the sets differ in size, or are too small.
    """
    count = len(style)
    if count != len(results) or count <= INFINITE:
        raise UserError(
            f"FID at infinity needs equally many style pictures and results, more than {INFINITE}; "
            f"these are {count} and {len(results)}."
        )
    draw, order = np.random.RandomState(seed), np.arange(count)
    sizes, values = np.linspace(INFINITE, count, points).astype(int), []
    for size in sizes:
        draw.shuffle(order)
        chosen = torch.from_numpy(order[:size].copy()).to(style.device)
        values.append(frechet_distance(style[chosen], results[chosen]))
    return float(np.polyfit(1 / sizes, values, 1)[1])


def kernel_distance(style: Tensor, results: Tensor) -> float:
    """KID: unbiased squared maximum mean discrepancy with a cubic kernel (arXiv 1801.01401, section 4).

    With as many results as style pictures it is taken over all of them, else over 100 random subsets of the larger set.

    Args:
        style: (N, D).
        results: (M, D).

    Raises:
        UserError: fewer than 2 pictures on a side.
    """
    few, many = sorted((style, results), key=len)
    if len(few) < 2:
        raise UserError(f"KID needs at least 2 results and 2 style pictures, found {len(results)} and {len(style)}.")
    if len(few) == len(many):
        return float(poly_mmd(few, many))
    draw = torch.Generator().manual_seed(0)
    subsets = [torch.randperm(len(many), generator=draw)[: len(few)].to(many.device) for _ in range(SUBSETS)]
    return float(torch.stack([poly_mmd(few, many[chosen]) for chosen in subsets]).mean())


def art_fid(content: float, fid: float) -> float:
    """ArtFID (arXiv 2207.12280): (1 + content distance to the source) (1 + FID to the style).

    Only of LPIPS with AlexNet and of ArtFID's own Inception; of other networks it is called artfd here.
    """
    return (1 + content) * (1 + fid)
