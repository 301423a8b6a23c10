"""Export: what other tools load, written once at the end of a run."""

from pathlib import Path

import lightning as L
import torch

from callbacks.ema import averaged
from lightning_styles.files import check_target


class Export(L.Callback):
    """Calls `pl_module.export(path, layout)` when `fit` ends, with the averaged weights if the run has an EMA.

    Args:
        layouts: which of the method's formats to write; null is all of them.
        folder: where to; null is `export` in the run's folder.
        overwrite: replace what lies in a `folder` already.
    """

    def __init__(self, layouts: list[str] | None = None, folder: str | None = None, overwrite: bool = False) -> None:
        self.layouts = layouts
        self.folder = folder
        self.overwrite = overwrite

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Finding the run's folder is a broadcast: every rank takes part, here and not later.
        self.target = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "export")
        if stage == "fit" and self.folder:
            formats: dict[str, str] = pl_module.formats  # type: ignore[assignment]
            for layout in self.layouts or formats:
                check_target(self.target / formats[layout], [], self.overwrite, "overwrite: true of callbacks.Export")

    @torch.no_grad()
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            formats: dict[str, str] = pl_module.formats  # type: ignore[assignment]
            with averaged(trainer, pl_module):
                for layout in self.layouts or formats:
                    pl_module.export(self.target / formats[layout], layout)  # type: ignore[operator]
