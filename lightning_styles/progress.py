"""The progress bar of a run: iterations done of all iterations, with rate and time left."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


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
