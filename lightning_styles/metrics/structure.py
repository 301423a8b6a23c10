"""Whether things are where they were, whatever they look like."""

from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_styles.metrics.pictures import check_pictures
from lightning_styles.models.self_similarity import structure_distance


class StructureDistance(MeanMetric):
    """Mean squared difference of two pictures' self-similarities; 0 for the same picture.

    Args:
        network: maps pictures (B, 3, H, W) in [-1, 1] to tokens (B, N, D).
    """

    higher_is_better = False

    def __init__(self, network: nn.Module) -> None:
        super().__init__(nan_strategy="disable")
        self.network = network

    def update(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        """Add the pairs `x`, `y`, each (B, 3, H, W) in [-1, 1]."""
        check_pictures("structure", x, y)
        super().update(structure_distance(self.network, x, y))
