"""Interruption: Ctrl-C, kill, preemption and time limits end a run where it can go on exactly."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from callbacks.checkpoints import is_saved, save

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Interrupted(SystemExit):
    """Ends a run that was asked to stop; the exit code is 128 + the signal's number, as in a shell.

    Only rank 0 has that code: a launcher that sees another rank fail would kill rank 0 while it tidies up.

    Attributes:
        signal: which signal asked.
        iterations: iterations done.
        checkpoint: where they are saved; None if the run saves no checkpoints.
    """

    def __init__(self, signum: int, iterations: int, checkpoint: Path | None) -> None:
        super().__init__(128 + signum if rank_zero_only.rank == 0 else 0)
        self.signal = signal.Signals(signum)
        self.iterations = iterations
        self.checkpoint = checkpoint

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[int, int, Path | None]]:
        """Whole across processes: `compare --processes` hears of it from a worker."""
        return type(self), (self.signal, self.iterations, self.checkpoint)


class InterruptedPreparation(Interrupted):
    """Ends a run before its first iteration: what was prepared is kept, and the same command goes on from there."""


class Interruption(Checkpoint):
    """Ends `fit` at the end of the iteration in which SIGINT, SIGTERM or SIGUSR1 arrives, after saving `last.ckpt`.

    The handler only notes the signal. All ranks learn of it at the end of the iteration and stop in the same one,
    which is where a resumed run goes on bit by bit. The same signal a second time ends the process at once. A signal
    that is ignored when the run starts stays ignored: SIGINT under nohup and in the background of scripts.

    Being a `Checkpoint`, it comes after all callbacks that are none, whose state of this iteration it saves.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, Any] = {}

    # ---- the handlers

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        without_lightnings_handlers(trainer)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen before the workers of the data loader start."""
        self._listen()

    def _listen(self) -> None:
        if self._before or threading.current_thread() is not threading.main_thread():
            return
        os.register_at_fork(after_in_child=self._spare_worker)
        for signum in SIGNALS:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                self._before[signum] = signal.signal(signum, self._note)

    def _spare_worker(self) -> None:
        """A terminal and SLURM signal the data loader's workers too; without them the iteration could not be ended.

        They leave when the run tells them to, or is no more.
        """
        if self._before:
            signal.pthread_sigmask(signal.SIG_BLOCK, self._before)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        signal.signal(signum, signal.SIG_DFL)
        self.received = self.received or signum
        if rank_zero_only.rank == 0:
            name = signal.Signals(signum).name
            text = f"\n{name}: the run ends after this iteration, saved; {name} once more ends it at once.\n"
            os.write(2, text.encode())  # print is not safe in a handler

    def _listen_no_more(self) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._listen_no_more()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._listen_no_more()

    # ---- the end of an iteration

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop here if any rank was asked to; the last iteration ends the run as always.

        Raises:
            Interrupted: after saving.
        """
        received = self._of_any_rank(trainer)
        if received and trainer.global_step != trainer.max_steps:
            raise Interrupted(received, trainer.global_step, save_last(trainer))

    def _of_any_rank(self, trainer: L.Trainer) -> int:
        if trainer.world_size == 1:
            return self.received
        received = torch.tensor(self.received, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(received, reduce_op="max"))


def end_preparation_if_asked(trainer: L.Trainer | None) -> None:
    """End the run of `trainer`, which is preparing what its first iteration needs, if a signal asked for that.

    Raises:
        InterruptedPreparation: it did.
    """
    callbacks = [] if trainer is None else trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, Interruption) and callback.received:
            raise InterruptedPreparation(callback.received, trainer.global_step, None)  # type: ignore[union-attr]


class EndsWithRun(L.Callback):
    """Ends a training that is part of the preparation of another run, after saving, if a signal asked that to end.

    Args:
        run: the trainer of the other run, if there is one.
    """

    def __init__(self, run: L.Trainer | None) -> None:
        self.run = run

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        try:
            end_preparation_if_asked(self.run)
        except InterruptedPreparation:
            save_last(trainer)
            raise


def without_lightnings_handlers(trainer: L.Trainer) -> None:
    """Keep Lightning from handling SIGTERM: its handler talks to the other ranks wherever the signal finds it.

    It would also outlast `predict` and `test`, which SIGTERM ends at once without it.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def save_last(trainer: L.Trainer) -> Path | None:
    """Save `last.ckpt` beside the other checkpoints unless that was just done.

    Returns:
        The checkpoint; None if the run saves none.

    Raises:
        UserError: it could not be written.
    """
    saver = next((c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)), None)
    if saver is None or saver.dirpath is None:
        return None
    if is_saved(trainer, saver) and saver._last_checkpoint_saved:
        return Path(saver._last_checkpoint_saved)
    path = Path(saver.dirpath) / "last.ckpt"
    save(trainer, path)
    return path
