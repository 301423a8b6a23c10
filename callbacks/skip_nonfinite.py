"""SkipNonFinite: lets a run go on past a NaN or infinite loss."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from lightning_styles.errors import SharedError, at_least


class SkipNonFinite(L.Callback):
    """Replaces a gradient with NaN or infinite values by zero, and counts how often; logged as train/skipped.

    Without it a run stops at the first such loss. The optimizer still takes its step, because asking whether to
    take it would make the host wait for the GPU in every iteration: momentum and weight decay act, nothing else
    does. Under DDP the averaged gradient is what is looked at, so that all ranks do the same.

    Args:
        at_most: steps of an optimizer that may be skipped before the run stops after all.
    """

    def __init__(self, at_most: int = 10) -> None:
        at_least(1, at_most=at_most)
        self.at_most = at_most
        self.skipped: Tensor | int = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.stops_at_nonfinite = False  # type: ignore[assignment]
        self.skipped = torch.as_tensor(self.skipped, device=pl_module.device)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        finite = torch.isfinite(torch.nn.utils.get_total_norm(gradients))
        for gradient in gradients:
            gradient.copy_(torch.where(finite, gradient, 0))
        self.skipped = self.skipped + (~finite).long()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        pl_module.log("train/skipped", torch.as_tensor(self.skipped, dtype=torch.float32))
        every = trainer.log_every_n_steps
        if every and trainer.global_step % every == 0:
            self._check(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        if int(self.skipped) > self.at_most:
            raise SharedError(
                f"{int(self.skipped)} steps had NaN or infinite gradients by iteration {trainer.global_step}, "
                f"callbacks.SkipNonFinite allows {self.at_most}; lower the learning rate or use precision 32-true."
            )

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": int(self.skipped)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]
