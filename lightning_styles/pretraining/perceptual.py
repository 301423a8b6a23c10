"""Train the perceptual network of the embedded world: features that must know attributes, style and parts."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.batches import Needs
from lightning_styles.errors import at_least
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.pretrained.networks import save_network
from lightning_styles.pretraining.base import Pretraining


class PerceptualPretraining(Pretraining):
    """Classify attributes and style from pooled features, and every pixel's part from all levels together.

    Args:
        iterations: optimizer steps.
        widths: channels of each level of the trunk.
        classes: number of classes of each label in batch["attributes"].
        parts: number of classes in batch["segmentation"].
        lr: peak learning rate of AdamW.
        warmup: iterations of linear warm-up.
        seed: unused draws apart, the key of all randomness.
    """

    needs = {"fit": (Needs(("image", "attributes", "segmentation")),)}
    formats = {"safetensors": "perceptual.safetensors"}

    def __init__(
        self,
        *,
        iterations: int,
        widths: list[int],
        classes: dict[str, int],
        parts: int,
        lr: float = 2e-3,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=1.0)
        at_least(1, parts=parts)
        at_least(0, lr=lr, warmup=warmup)
        self.save_hyperparameters()

    def configure_model(self) -> None:
        if hasattr(self, "trunk"):
            return
        widths, classes = self.hparams.widths, self.hparams.classes
        self.trunk = PerceptualNet(tuple(widths))
        self.heads = nn.ModuleDict({name: nn.Linear(sum(widths[1:]), n) for name, n in classes.items()})
        self.part_heads = nn.ModuleList(nn.Conv2d(width, self.hparams.parts, 1) for width in widths)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        maps = self.trunk.features(batch["image"])
        pooled = torch.cat([features.amax((2, 3)) for features in maps[1:]], dim=1)
        losses = {name: label_loss(head(pooled), batch["attributes"][name]) for name, head in self.heads.items()}
        losses["parts"] = F.cross_entropy(self.parts(maps), batch["segmentation"])
        self.optimize("network", self.total_loss(losses, {"parts": float(len(self.heads))}))

    def parts(self, maps: list[Tensor]) -> Tensor:
        """Part logits (B, P, H, W): the sum of every level's own vote, at full resolution."""
        votes = [head(features) for head, features in zip(self.part_heads, maps, strict=True)]
        size = votes[0].shape[-2:]
        return torch.stack([F.interpolate(v, size, mode="bilinear", align_corners=False) for v in votes]).sum(0)

    def export(self, path: Path, layout: str) -> None:
        """Write the trunk alone."""
        save_network(self.trunk, path, widths=list(self.hparams.widths))


def label_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean cross entropy over the pictures that have the label, 0 if none has; -1 stands for not having it."""
    return F.cross_entropy(logits, label, ignore_index=-1, reduction="sum") / (label >= 0).sum().clamp(min=1)
