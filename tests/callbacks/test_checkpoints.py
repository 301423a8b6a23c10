"""`last.ckpt`: every n iterations, at the end, and when a run is interrupted."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from callbacks.checkpoints import Checkpoints
from callbacks.interruption import Interrupted, Interruption
from lightning_styles.errors import UserError
from tests.callbacks.toy import Toy, loader, trainer


class Saves(Checkpoints):
    """Notes after which iterations the file changed."""

    def __init__(self, every_n_iterations: int) -> None:
        super().__init__(every_n_iterations)
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        super().on_train_batch_end(trainer, *arguments, **more)
        if self._last_global_step_saved == trainer.global_step:
            self.steps.append(trainer.global_step)


class Signal(L.Callback):
    """Notes a signal in the k-th iteration, as the handler does."""

    def __init__(self, interruption: Interruption, iteration: int) -> None:
        self.interruption, self.iteration = interruption, iteration

    def on_train_batch_start(self, trainer: L.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.iteration - 1:
            self.interruption.received = 15


def step(path: Path) -> int:
    content = torch.load(path, weights_only=True)
    assert content["state_dict"]["weight"] == content["global_step"]
    return content["global_step"]


def test_saves_every_n_iterations_and_the_last(tmp_path: Path) -> None:
    saves = Saves(3)
    trainer(tmp_path, [saves], 7, enable_checkpointing=True).fit(Toy(), loader())
    assert saves.steps == [3, 6]
    assert step(tmp_path / "checkpoints/last.ckpt") == 7
    assert saves.last_model_path == str(tmp_path / "checkpoints/last.ckpt")


def test_every_is_at_least_one() -> None:
    with pytest.raises(UserError, match="every_n_iterations is 0"):
        Checkpoints(0)


@pytest.mark.parametrize(("iteration", "saved"), [(4, 4), (6, 6), (7, 7)])
def test_an_interruption_saves_the_iteration_that_it_ends_after(tmp_path: Path, iteration: int, saved: int) -> None:
    interruption = Interruption()
    callbacks: list[L.Callback] = [interruption, Signal(interruption, iteration), Saves(3)]
    run = trainer(tmp_path, callbacks, 7, enable_checkpointing=True)
    path = tmp_path / "checkpoints/last.ckpt"
    if iteration == 7:  # the last one ends the run anyway
        run.fit(Toy(), loader())
    else:
        with pytest.raises(Interrupted) as stop:
            run.fit(Toy(), loader())
        assert (stop.value.code, stop.value.signal.name) == (143, "SIGTERM")
        assert (stop.value.iterations, stop.value.checkpoint) == (iteration, path)
    assert step(path) == saved
