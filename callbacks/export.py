"""Export: what other tools load, written once at the end of a run."""

from pathlib import Path

import lightning as L
import torch

from callbacks.ema import averaged


class Export(L.Callback):
    """Calls `pl_module.export(folder)` with the averaged weights, if the run has an EMA, when `fit` ends.

    Args:
        folder: where to; null is `export` in the run's folder.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Finding the run's folder is a broadcast: every rank takes part, here and not later.
        self.target = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "export")

    @torch.no_grad()
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            with averaged(trainer, pl_module):
                pl_module.export(self.target)  # type: ignore[operator]
