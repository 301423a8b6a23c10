"""How different the pictures of one prompt are from each other: a model that has collapsed paints one picture."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_styles.errors import UserError
from lightning_styles.metrics.pictures import check_pictures

PAIRS = 16  # seen by the network at once


class Diversity(Metric):
    """Mean distance of two pictures of a group, averaged over groups (arXiv 2405.01536, equation 12).

    Groups of one picture do not count. Pictures are kept in 8 bits until `compute`.

    Args:
        distance: maps two batches (B, 3, H, W) in [-1, 1] to distances (B,), such as LPIPS or DreamSim.
    """

    full_state_update = False
    higher_is_better = True
    pixels: list[Tensor]
    labels: list[Tensor]

    def __init__(self, distance: Callable[[Tensor, Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.distance = distance
        # In one row each, so that ranks exchange them whatever the sizes.
        self.add_state("pixels", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, group: Tensor) -> None:
        """Add `images` (B, 3, H, W) in [-1, 1]; `group` (B,) int64 says which belong together, on all ranks alike."""
        check_pictures("diversity", images)
        size = torch.tensor(images.shape[-2:], device=images.device).expand(len(images), 2)
        self.labels.append(torch.cat([group.to(images.device)[:, None].long(), size], dim=1))
        self.pixels.append(((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().flatten())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Exchange the pictures; a rank without any takes part with none."""
        if not self.labels:
            self.update(torch.zeros(0, 3, 1, 1, device=self.device), torch.zeros(0, device=self.device))
        super().sync(*args, **kwargs)

    @torch.no_grad()
    def compute(self) -> Tensor:
        """The mean distance; NaN where no group has two pictures.

        Raises:
            UserError: pictures of one group differ in size.
        """
        means = [self._mean_distance(pictures) for pictures in self._groups() if len(pictures) > 1]
        return torch.stack(means).mean() if means else torch.tensor(torch.nan, device=self.device)

    def _groups(self) -> list[list[Tensor]]:
        """The pictures (3, H, W), 8 bits, of each group."""
        if not len(self.labels):
            return []
        rows, pixels = dim_zero_cat(self.labels).tolist(), dim_zero_cat(self.pixels)
        groups: dict[int, list[Tensor]] = {}
        for (group, height, width), picture in zip(rows, pixels.split([3 * h * w for _, h, w in rows]), strict=True):
            groups.setdefault(group, []).append(picture.view(3, height, width))
        return list(groups.values())

    def _mean_distance(self, pictures: list[Tensor]) -> Tensor:
        """Mean over all pairs of one group."""
        if len(sizes := {tuple(picture.shape[1:]) for picture in pictures}) > 1:
            found = ", ".join(f"{height} x {width}" for height, width in sorted(sizes))
            raise UserError(f"Pictures of one prompt have the sizes {found}; diversity needs one size (see data).")
        stack = torch.stack(pictures)
        pairs = torch.tensor(list(combinations(range(len(stack)), 2)), device=stack.device)
        chunks = [
            self.distance(*(stack[side].float() / 127.5 - 1 for side in chunk.unbind(1)))
            for chunk in pairs.split(PAIRS)
        ]
        return torch.cat(chunks).mean()
