"""Export: what other tools load, written once at the end of a run."""

from pathlib import Path

import lightning as L
import torch

from callbacks.ema import averaged


class Export(L.Callback):
    """Calls `pl_module.export(path, layout)` when `fit` ends, with the averaged weights if the run has an EMA.

    Args:
        layouts: which of the method's formats to write; null is all of them.
        folder: where to; null is `export` in the run's folder.
    """

    def __init__(self, layouts: list[str] | None = None, folder: str | None = None) -> None:
        self.layouts = layouts
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Finding the run's folder is a broadcast: every rank takes part, here and not later.
        self.target = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "export")

    @torch.no_grad()
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            formats: dict[str, str] = pl_module.formats  # type: ignore[assignment]
            with averaged(trainer, pl_module):
                for layout in self.layouts or formats:
                    pl_module.export(self.target / formats[layout], layout)  # type: ignore[operator]
