"""Completion: a run that ends before its last iteration is saved, and says so instead of looking finished."""

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, Timer

from callbacks.interruption import save_last
from lightning_styles.errors import SharedError
from lightning_styles.progress import finished, passes_done, progress


class Unfinished(SharedError):
    """Ends a run that stopped before its last iteration, with an exit code of its own.

    Attributes:
        checkpoint: where it is saved; None if the run saves no checkpoints.
        words: options with which it goes on.
    """

    code = 3

    def __init__(self, message: str, checkpoint: Path | None = None, words: list[str] | None = None) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint
        self.words = words or []


class Completion(L.Callback):
    """Stands before all other callbacks, so that none of them takes the end of an unfinished run for its result."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save and end the run here if there are iterations left.

        Raises:
            Unfinished: there are, because of a time limit, a number of passes, early stopping.
        """
        if not finished(trainer):
            raise unfinished(trainer, save_last(trainer))


def unfinished(trainer: L.Trainer, checkpoint: Path | None) -> Unfinished:
    """How far the run of `trainer` came, why no further, and where it is saved."""
    reason, words = _reason(trainer)
    saved = f"it goes on from {checkpoint}" if checkpoint else "nothing is saved, because no callback saves checkpoints"
    text = f"The run is not finished: it ended after {progress(trainer)}, because {reason}; {saved}."
    return Unfinished(text, checkpoint, words)


def _reason(trainer: L.Trainer) -> tuple[str, list[str]]:
    """Why a run ended, and the options that let it go on."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    most = trainer.max_epochs or -1
    if any((callback.time_remaining() or 1) <= 0 for callback in callbacks if isinstance(callback, Timer)):
        return "trainer.max_time is over", ["--trainer.max_time", "null"]
    if 0 < most <= passes_done(trainer):
        return f"trainer.max_epochs is {most}", ["--trainer.max_epochs", "-1"]
    if any(isinstance(callback, EarlyStopping) for callback in callbacks) and trainer.should_stop:
        return "EarlyStopping ended it", []
    return ("a callback ended it" if trainer.should_stop else "there is no more data"), []
