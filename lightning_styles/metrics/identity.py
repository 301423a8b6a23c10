"""Whether the person is still the same."""

from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_styles.metrics.pictures import check_pictures
from lightning_styles.models.identity import identity_similarity


class IdentitySimilarity(MeanMetric):
    """Mean cosine similarity of the identities in two pictures; 1 for the same picture.

    Args:
        network: maps pictures (B, 3, H, W) in [-1, 1] to unit vectors (B, D).
    """

    higher_is_better = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__(nan_strategy="disable")
        self.network = network

    def update(self, x: Tensor, y: Tensor) -> None:  # type: ignore[override]
        """Add the pairs `x`, `y`, each (B, 3, H, W) in [-1, 1]."""
        check_pictures("identity", x, y)
        super().update(identity_similarity(self.network, x, y))
