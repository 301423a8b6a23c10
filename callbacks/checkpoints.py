"""Checkpoints: `last.ckpt`, every n iterations and when the run ends."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_styles.checkpoint_io import unsaved
from lightning_styles.errors import at_least


class Checkpoints(ModelCheckpoint):
    """Keeps `checkpoints/last.ckpt` in the run's folder up to date, the last iteration included.

    Args:
        every_n_iterations: distance of two saves.
    """

    def __init__(self, every_n_iterations: int = 100) -> None:
        at_least(1, every_n_iterations=every_n_iterations)
        super().__init__(filename="last", every_n_train_steps=every_n_iterations, enable_version_counter=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what came after the last multiple of n, and so the whole run when n is longer than it."""
        super().on_train_end(trainer, pl_module)
        if self.dirpath is not None and not is_saved(trainer, self):
            path = Path(self.dirpath) / "last.ckpt"
            save(trainer, path)
            self.best_model_path = str(path)
            self._last_global_step_saved = trainer.global_step
        self.last_model_path = self.best_model_path


def is_saved(trainer: L.Trainer, saver: ModelCheckpoint) -> bool:
    """Whether `saver` has saved the last iteration, which it also believes of what failed; a collective call."""
    written = trainer.strategy.broadcast(unsaved(trainer) is None)
    return written and saver._last_global_step_saved == trainer.global_step


def save(trainer: L.Trainer, path: Path) -> None:
    """Save a checkpoint that the run must not go on without.

    Raises:
        UserError: it could not be written.
    """
    trainer.save_checkpoint(path)
    if error := unsaved(trainer):
        raise error
