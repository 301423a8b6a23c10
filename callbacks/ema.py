"""EMA: a running average of what is trained, shown and exported instead of the raw weights."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn

from lightning_styles.checkpoint_fields import ANOTHER
from lightning_styles.errors import UserError
from lightning_styles.reading import expect, tensor

log = logging.getLogger(__name__)


class EMA(L.Callback):
    """Exponential moving average of the trained parameters, in fp32: s <- decay * s + (1 - decay) * p.

    What is trained is what the optimizers hold; frozen networks and buffers are left out. The average starts
    at the initial parameters, is updated once an iteration, is kept in checkpoints and stands in for the
    parameters during validation, test, prediction and previews.

    Args:
        decay: in [0, 1); 0.999 averages over about the last 1000 iterations.
        only: average only parameters whose name starts with one of these, e.g. [generator.]; empty for all.
    """

    def __init__(self, decay: float = 0.999, only: list[str] | None = None) -> None:
        if not 0 <= decay < 1:
            raise UserError(f"the decay of EMA is {decay}; expected 0 <= decay < 1.")
        self.decay = decay
        self.only = tuple(only or [""])
        self.shadow: dict[str, Tensor] = {}
        self._trained: dict[str, nn.Parameter] = {}
        self._updated_at = -1
        self._saved: dict[str, Tensor] | None = None

    # ---- the average

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds what to average, and whether the checkpoint's average fits it."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        held = {id(p) for group in groups for p in group["params"]}
        named = [(name, p) for name, p in pl_module.named_parameters() if id(p) in held]
        trained = {name: p for name, p in named if name.startswith(self.only)}
        if not trained:
            raise UserError(f"EMA finds no trained parameter that starts with one of {list(self.only)}.")
        self._trained = trained
        if self.shadow and self.shadow.keys() != trained.keys():
            odd = sorted(self.shadow.keys() ^ trained.keys())
            raise UserError(f"the checkpoint's EMA does not fit what is trained; they differ in {odd[:3]}.")
        self._move(pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the average of a new run: methods may fill their parameters as late as in their on_fit_start."""
        if not self.shadow:
            if trainer.global_step and trainer.is_global_zero:
                log.warning("The checkpoint holds no average; EMA begins it at iteration %d.", trainer.global_step)
            self.shadow = {name: p.detach().clone().float() for name, p in self._trained.items()}
        self._updated_at = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Updates the average once an iteration."""
        if trainer.global_step == self._updated_at:
            return
        self._updated_at = trainer.global_step
        # Not looked up by name: walking through all modules takes longer than the update.
        parameters = [self._trained[name].detach().float() for name in self.shadow]
        shadow = list(self.shadow.values())
        torch._foreach_lerp_(shadow, parameters, 1 - self.decay)  # type: ignore[reportPrivateImportUsage]

    # ---- the average in the place of the parameters

    @contextmanager
    def swapped(self, pl_module: L.LightningModule) -> Iterator[None]:
        """Within the block the parameters have their averaged values."""
        if self._saved is not None or not self.shadow:
            yield
            return
        self._enter(pl_module)
        try:
            yield
        finally:
            self._leave(pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._enter(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._leave(pl_module)

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._leave(pl_module)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        return {"decay": self.decay, "shadow": {name: s.cpu().clone() for name, s in self.shadow.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.shadow = {name: value.clone() for name, value in state_dict["shadow"].items()}

    # ---- helpers

    def _parameters(self, pl_module: L.LightningModule) -> dict[str, nn.Parameter]:
        """Parameters in the order of the shadow."""
        own = dict(pl_module.named_parameters())
        missing = [name for name in self.shadow if name not in own]
        if missing:
            raise UserError(f"the checkpoint's EMA holds '{missing[0]}', which this model does not have.")
        expected = {name: tensor(*own[name].shape, finite=False) for name in self.shadow}
        expect(self.shadow, expected, "The checkpoint's EMA", ANOTHER)
        return {name: own[name] for name in self.shadow}

    def _move(self, pl_module: L.LightningModule) -> None:
        parameters = self._parameters(pl_module)
        finite = {name: tensor(*parameter.shape) for name, parameter in parameters.items()}
        expect(self.shadow, finite, "The checkpoint's EMA", ANOTHER)
        for name, parameter in parameters.items():
            self.shadow[name] = self.shadow[name].to(parameter.device)

    @torch.no_grad()
    def _enter(self, pl_module: L.LightningModule) -> None:
        if self._saved is not None or not self.shadow:
            return
        parameters = self._parameters(pl_module)
        self._saved = {name: p.detach().clone() for name, p in parameters.items()}
        for name, parameter in parameters.items():
            # In place: optimizers, DDP and compiled code keep pointing at the same memory.
            parameter.copy_(self.shadow[name])

    @torch.no_grad()
    def _leave(self, pl_module: L.LightningModule) -> None:
        if self._saved is None:
            return
        own = dict(pl_module.named_parameters())
        for name, value in self._saved.items():
            own[name].copy_(value)
        self._saved = None


def averaged(trainer: L.Trainer, pl_module: L.LightningModule) -> Any:
    """Context in which the model has its averaged weights, if the trainer has an EMA callback."""
    ema = next((c for c in trainer.callbacks if isinstance(c, EMA)), None)  # type: ignore[attr-defined]
    return nullcontext() if ema is None else ema.swapped(pl_module)
