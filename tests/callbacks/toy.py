"""A method of one weight, whose every step is known, for the tests of callbacks."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


class Toy(L.LightningModule):
    """The weight grows by 1 in each iteration; the preview and the results shift pictures by it."""

    def __init__(self, shift: float = 0.0, base: str = "abc") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.weight = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Linear(2, 2).requires_grad_(False).eval()
        self.dropout = nn.Dropout()
        self.base_models = {"base": base}
        self.finished: set[str] = set()
        self.noise: list[float] = []
        self.seen: list[float] = []
        self.modes: list[bool] = []

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.weight], lr=1.0)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.noise.append(float(torch.rand(1)))
        self.modes.append(self.dropout.training and not self.frozen.training)
        optimizer = self.optimizers()
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.manual_backward(-self.weight.sum())
        optimizer.step()  # type: ignore[union-attr]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(float(self.weight))

    test_step = validation_step

    def preview(self) -> dict[str, Tensor]:
        assert not self.dropout.training
        assert not torch.is_grad_enabled()
        torch.rand(7)
        self.seen.append(float(self.weight))
        source = torch.zeros(2, 3, 20, 30)
        return {"source": source, "result": source + 0.1 * self.weight}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:
        rows = [i for i, name in enumerate(batch["name"]) if name not in self.finished]
        if not rows:
            return None
        self.seen += [batch["name"][i] for i in rows]
        images = [batch["image"][i] + self.hparams["shift"] for i in rows]
        return {"image": images, "name": [batch["name"][i] for i in rows], "settings": {"method": "Toy"}}


def trainer(folder: Path, callbacks: list[L.Callback], steps: int = 4, **changes: Any) -> L.Trainer:
    """A quiet trainer on the CPU; one epoch is as long as the run."""
    arguments: dict[str, Any] = {
        "max_steps": steps, "max_epochs": -1, "accelerator": "cpu", "logger": False, "callbacks": callbacks,
        "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
        "default_root_dir": str(folder), "num_sanity_val_steps": 0,
    }  # fmt: skip
    return L.Trainer(**{**arguments, **changes})


def loader(n: int = 100) -> torch.utils.data.DataLoader:
    """n batches that hold two pictures each."""
    return torch.utils.data.DataLoader([{"image": torch.zeros(2, 3, 4, 4)}] * n, batch_size=None)
