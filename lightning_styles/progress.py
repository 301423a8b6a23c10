"""How far a run has come: iterations done of all iterations, with rate and time left."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar, Timer

from lightning_styles.errors import UserError


def check_length(trainer: dict[str, Any]) -> None:
    """Refuse settings of the trainer under which nothing would be trained.

    Raises:
        UserError: naming the first one.
    """
    if trainer["max_steps"] == 0:
        raise UserError("trainer.max_steps is 0; set it to the number of iterations of the run.")
    limits = {key: trainer[key] for key in ("max_epochs", "limit_train_batches")}
    limits["max_time"] = trainer["max_time"] and Timer(trainer["max_time"]).time_remaining()
    for key, value in limits.items():
        if value is not None and value == 0:
            raise UserError(f"trainer.{key} is 0, so nothing would be trained; leave it out or raise it.")


def finished(trainer: Trainer) -> bool:
    """Whether the last iteration is done; without `max_steps`, the last pass over the data."""
    if trainer.max_steps > 0:
        return trainer.global_step >= trainer.max_steps
    return passes_done(trainer) >= (trainer.max_epochs or 0) > 0


def passes_done(trainer: Trainer) -> int:
    """Whole passes over the data; Lightning also counts the one that a run stops in."""
    loop = trainer.fit_loop
    tracker: Any = loop.epoch_progress.current
    begun = tracker.processed
    return begun if loop.epoch_loop.batch_progress.is_last_batch else max(begun - 1, 0)


def progress(trainer: Trainer) -> str:
    """How many of the iterations are done, in words."""
    if trainer.max_steps > 0:
        return f"{trainer.global_step} of {trainer.max_steps} iterations"
    return f"{trainer.global_step} iterations, {passes_done(trainer)} of {trainer.max_epochs} passes over the data"


class IterationBar(RichProgressBar):
    """Lightning's rich bar, counting the iterations of the whole run also after a resume."""

    @property
    def total_train_batches(self) -> int | float:
        steps = self.trainer.max_steps
        return min(self.trainer.num_training_batches, steps) if steps > 0 else self.trainer.num_training_batches

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)  # the run folder is printed above the bar
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training" if current_epoch == 0 else f"Training, pass {current_epoch + 1}"
