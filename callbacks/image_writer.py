"""ImageWriter: what `predict` makes, each picture alone at full resolution."""

import hashlib
import json
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from lightning_styles.errors import UserError
from lightning_styles.files import check_writable
from lightning_styles.imaging import read_settings, save_png

# Both are as they should be: names come from the batch, and finished pictures are skipped.
warnings.filterwarnings("ignore", message=".*Couldn't infer the batch indices.*")
warnings.filterwarnings("ignore", message=".*predict returned None if it was on purpose.*")


class ImageWriter(BasePredictionWriter):
    """Writes each result as `<name>.png`, with its settings inside, and lets `predict` skip what is there.

    A picture is there if its file is whole and was made by the same model, checkpoint and data settings;
    their digest is kept in the file. A photo that was changed in place is not noticed: use `overwrite`.

    Args:
        output_dir: folder of the results, made when missing.
        overwrite: make every picture again.
    """

    def __init__(self, output_dir: str, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = Path(output_dir)
        self.overwrite = overwrite
        self._run = ""
        self._written = self._skipped = self._largest_batch = 0
        self._started = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a folder that cannot be written, before any network is built."""
        if stage == "predict":
            check_writable(self.output_dir)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells the module which pictures are finished."""
        self._run = _digest(trainer, pl_module)
        self._written = self._skipped = self._largest_batch = 0
        self._started = time.perf_counter()
        finished: set[str] = pl_module.finished  # type: ignore[assignment]
        finished.clear()
        if not self.overwrite and self.output_dir.is_dir():
            finished.update(path.stem for path in self.output_dir.glob("*.png") if self._is_ours(path))

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes the pictures of one batch.

        Raises:
            UserError: a result holds NaN or infinite values; nothing is written for it.
        """
        names = [] if prediction is None else prediction["name"]
        self._skipped += len(batch["name"]) - len(names) if isinstance(batch, dict) else 0
        if prediction is None:
            return
        settings = {**prediction.get("settings", {}), "run": self._run}
        for name, image in zip(names, prediction["image"], strict=True):
            if not torch.isfinite(image).all():
                raise UserError(
                    f"the result for '{name}' holds NaN or infinite values and was not written; "
                    "try --trainer.precision 32-true or bf16-mixed."
                )
            save_png(self.output_dir / f"{name}.png", image, settings)
            self._written += 1
        self._largest_batch = max(self._largest_batch, len(names))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last lines: how fast, under which circumstances, and where the results are.

        Raises:
            UserError: not one picture could be read.
        """
        seconds = time.perf_counter() - self._started
        counts = torch.tensor([float(self._written), float(self._skipped)], device=pl_module.device)
        counts = trainer.strategy.reduce(counts, reduce_op="sum")
        written, skipped = (round(n) for n in counts.tolist())  # type: ignore[union-attr]
        if written + skipped == 0:
            raise UserError("none of the pictures could be read; see the lines above for each of them.")
        if not trainer.is_global_zero:
            return
        print(
            f"{written} pictures in {seconds:.1f} s ({written / max(seconds, 1e-9):.2f} images/s, "
            f"batch {self._largest_batch}, {trainer.precision}, "
            f"{trainer.world_size} x {pl_module.device.type})" + (f"; {skipped} were there already" if skipped else "")
        )
        print(f"results: {self.output_dir.resolve()}")

    def _is_ours(self, path: Path) -> bool:
        settings = read_settings(path)
        return settings is not None and settings.get("run") == self._run


def _digest(trainer: L.Trainer, pl_module: L.LightningModule) -> str:
    """16 hex digits that differ when the model, its weights or the settings of the data differ.

    A digest, not the settings themselves: results are passed on, and paths are nobody's business.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    facts = {
        "model": type(pl_module).__qualname__,
        "model_settings": dict(pl_module.hparams),
        "base_models": getattr(pl_module, "base_models", {}),
        "data": type(data).__qualname__,
        "data_settings": dict(data.hparams) if data is not None else {},
        "checkpoint": _stamp(trainer.ckpt_path),
        "precision": str(trainer.precision),
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(checkpoint: Any) -> list[Any]:
    """Path, size and time of a checkpoint: enough to notice that it was written anew."""
    if checkpoint is None or not Path(checkpoint).is_file():
        return [str(checkpoint)]
    stat = Path(checkpoint).stat()
    return [str(Path(checkpoint).resolve()), stat.st_size, stat.st_mtime_ns]
