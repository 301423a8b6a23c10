"""ImageWriter: what `predict` makes, each picture alone at full resolution."""

import hashlib
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from datamodules.sources import check_apart
from lightning_styles.errors import UserError
from lightning_styles.files import check_writable, file_name
from lightning_styles.imaging import NameRefused, is_foreign, read_settings, save_png

# Both are as they should be: names come from the batch, and finished pictures are skipped.
warnings.filterwarnings("ignore", message=".*Couldn't infer the batch indices.*")
warnings.filterwarnings("ignore", message=".*predict returned None if it was on purpose.*")
log = logging.getLogger(__name__)


class ImageWriter(BasePredictionWriter):
    """Writes each result as `<name>.png`, with its settings inside, and lets `predict` skip what is there.

    A picture is there if its file is whole and was made by the same model, checkpoint and data settings;
    their digest is kept in the file. A photo that was changed in place is not noticed: use `overwrite`.

    No file that the run reads is ever replaced, and one that this project has not written only with `overwrite`.

    Args:
        output_dir: folder of the results, made when missing; none of those that the pictures are taken from.
        overwrite: make every picture again, also in the place of files from elsewhere.
    """

    def __init__(self, output_dir: str, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.output_dir = Path(output_dir)
        self.overwrite = overwrite
        self._run = ""
        self._written = self._skipped = self._refused = self._largest_batch = 0
        self._started = 0.0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses a folder that cannot be written or where something would be lost, before any network is built."""
        if stage == "predict":
            check_writable(self.output_dir)
            self._check_targets(trainer, pl_module)

    def _check_targets(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        sources = getattr(data, "sources", [])
        check_apart(sources, self.output_dir)
        result_name = getattr(pl_module, "result_name", str)
        targets = [self._target(result_name(source.name)) for source in sources]
        there = {_identity(path) or path: path for path in targets if os.path.lexists(path)}
        settings = [dict(part.hparams) for part in (pl_module, data) if part is not None]
        read = [str(source.path) for source in sources if source.path] + list(_files_in(settings))
        if taken := [there[_identity(path)] for path in read if _identity(path) in there]:
            raise UserError(f"The result {taken[0]} would replace a file that is read; choose another folder for it.")
        foreign = [] if self.overwrite else [path for path in there.values() if is_foreign(path)]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise UserError(
                f"{foreign[0]}{more} would be replaced by results, but lightning_styles has not written it: choose "
                "another folder for the results, or allow it with overwrite: true (stylize: --overwrite)."
            )

    def _target(self, name: str) -> Path:
        return self.output_dir / file_name(name, ".png")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Tells the module which pictures are finished."""
        self._run = _digest(trainer, pl_module)
        self._written = self._skipped = self._refused = self._largest_batch = 0
        self._started = time.perf_counter()
        finished: set[str] = pl_module.finished  # type: ignore[assignment]
        finished.clear()
        if not self.overwrite and self.output_dir.is_dir():
            finished.update(
                name for path in self.output_dir.glob("*.png") if (name := self._finished(path)) is not None
            )

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
            UserError: a result holds NaN or infinite values, or would replace a file from elsewhere; it is not written.
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
            try:
                save_png(self._target(name), image, {**settings, "name": name}, self.overwrite)
                self._written += 1
            except NameRefused as error:
                log.warning("not written: %s", error)
                self._refused += 1
        self._largest_batch = max(self._largest_batch, len(names))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last lines: how fast, under which circumstances, and where the results are.

        Raises:
            UserError: not one picture could be read, or some could not be written.
        """
        seconds = time.perf_counter() - self._started
        counted = [float(self._written), float(self._skipped), float(self._refused)]
        counts = trainer.strategy.reduce(torch.tensor(counted, device=pl_module.device), reduce_op="sum")
        written, skipped, refused = (round(n) for n in counts.tolist())  # type: ignore[union-attr]
        if written + skipped + refused == 0:
            raise UserError("none of the pictures could be read; see the lines above for each of them.")
        if not trainer.is_global_zero:
            return
        print(
            f"{written} pictures in {seconds:.1f} s ({written / max(seconds, 1e-9):.2f} images/s, "
            f"batch {self._largest_batch}, {trainer.precision}, "
            f"{trainer.world_size} x {pl_module.device.type})" + (f"; {skipped} were there already" if skipped else "")
        )
        print(f"results: {self.output_dir.resolve()}")
        if refused:
            raise UserError(f"{refused} of {written + skipped + refused} results could not be written; see above.")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Says what is done when Ctrl-C ends the command."""
        if isinstance(exception, KeyboardInterrupt) and trainer.state.fn == "predict" and trainer.is_global_zero:
            done = self._written + self._skipped
            print(
                f"Interrupted: {done} results are in {self.output_dir}; the same command makes those that are missing."
            )

    def _finished(self, path: Path) -> str | None:
        """Name of the picture whose result of this run is there."""
        settings = read_settings(path)
        return settings.get("name", path.stem) if settings and settings.get("run") == self._run else None


def _identity(path: str | Path) -> tuple[int, int] | None:
    """What two names of one file share; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # the name is too long, or holds a zero byte: text that is no path
        return None
    return status.st_dev, status.st_ino


def _files_in(tree: Any) -> Iterator[str]:
    """The files among the texts of nested settings."""
    if isinstance(tree, str):
        if os.path.isfile(tree):
            yield tree
    elif isinstance(tree, dict | list | tuple):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _files_in(branch)


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
