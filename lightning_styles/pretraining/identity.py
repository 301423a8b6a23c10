"""Train the identity network of the embedded world with the ArcFace loss (arXiv 1801.07698, equation 3)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.batches import Needs
from lightning_styles.errors import at_least
from lightning_styles.models.identity import IdentityNet
from lightning_styles.pretrained.networks import save_network
from lightning_styles.pretraining.base import Pretraining


def arcface_logits(cosine: Tensor, label: Tensor, margin: float, scale: float) -> Tensor:
    """Logits s cos(theta + m) for the true class, s cos(theta) for the others (arXiv 1801.07698, equation 3).

    Args:
        cosine: (B, N) cosines between embeddings and class centres.
        label: (B,) true classes.
        margin: m in radians.
        scale: s.
    """
    theta = torch.acos(cosine.clamp(-1 + 1e-6, 1 - 1e-6))
    true = F.one_hot(label, cosine.shape[1]).bool()
    return scale * torch.where(true, torch.cos(theta + margin), cosine)


class IdentityPretraining(Pretraining):
    """Recognise the people of the procedural world under other light, pose, expression and style.

    Args:
        iterations: optimizer steps.
        identities: number N of people; batch["identity"] is below N.
        widths: channels of the stages.
        embedding: length of the identity vector.
        margin: angular margin m in radians.
        scale: logit scale s.
        lr: peak learning rate of AdamW.
        warmup: iterations of linear warm-up.
        seed: the key of all randomness.
    """

    needs = {"fit": (Needs(("image", "identity")),)}
    formats = {"safetensors": "identity.safetensors"}

    def __init__(
        self,
        *,
        iterations: int,
        identities: int,
        widths: list[int],
        embedding: int = 128,
        margin: float = 0.3,
        scale: float = 24.0,
        lr: float = 2e-3,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=5.0)
        at_least(1, identities=identities, embedding=embedding)
        at_least(0, margin=margin, scale=scale, lr=lr, warmup=warmup)
        self.save_hyperparameters()

    def configure_model(self) -> None:
        if hasattr(self, "network"):
            return
        self.network = IdentityNet(tuple(self.hparams.widths), self.hparams.embedding)
        self.centres = nn.Parameter(torch.randn(self.hparams.identities, self.hparams.embedding))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        cosine = self.network(batch["image"]) @ F.normalize(self.centres, dim=1).T
        # The margin grows with the run: from the first step on it would drown the signal of N classes.
        margin = self.hparams.margin * min(1.0, 2 * self.iteration / self.iterations)
        logits = arcface_logits(cosine, batch["identity"], margin, self.hparams.scale)
        loss = F.cross_entropy(logits, batch["identity"])
        self.optimize("network", self.total_loss({"arcface": loss}, {}))
        accuracy = (cosine.argmax(1) == batch["identity"]).float().mean()
        self.log("train/accuracy", accuracy.detach(), prog_bar=True)

    def export(self, path: Path, layout: str) -> None:
        """Write the network without the class centres."""
        arguments = {"widths": list(self.hparams.widths), "embedding": self.hparams.embedding}
        save_network(self.network, path, **arguments)
