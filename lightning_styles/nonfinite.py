"""NaN and infinite losses: noted on the device in passing, read where waiting for it costs nothing."""

from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from lightning_styles.runs import describe_checkpoint, newest_checkpoint

NEVER = torch.iinfo(torch.int64).max


class NonFinite:
    """Remembers the first iteration at which each loss was NaN or infinite.

    A note is a handful of tiny kernels that the host does not wait for; it waits in `first`, which a run calls as
    often as it logs and before each checkpoint.
    """

    def __init__(self) -> None:
        self.since: dict[str, Tensor] = {}

    def note(self, losses: Mapping[str, Tensor], iteration: int) -> None:
        """Look at the losses of an iteration; each may have any shape."""
        for name, loss in losses.items():
            now = torch.where(torch.isfinite(loss.detach()).all(), NEVER, iteration)
            self.since[name] = torch.minimum(self.since.get(name, now), now)

    def first(self, strategy: Strategy | None = None) -> tuple[int, list[str]] | None:
        """The first iteration with a bad loss on any rank of `strategy`, a collective call, or on this one alone.

        Returns:
            The iteration and its bad losses; None if all were fine.
        """
        if not self.since:
            return None
        since = torch.stack(list(self.since.values()))
        if strategy is not None:
            since = strategy.reduce(since, reduce_op="min")
        iterations = since.tolist()  # type: ignore[union-attr]
        first = min(iterations)
        named = zip(self.since, iterations, strict=True)
        return None if first == NEVER else (first, [name for name, iteration in named if iteration == first])


def became_nonfinite(iteration: int, names: list[str]) -> str:
    """What `NonFinite.first` found, in words."""
    return f"{' and '.join(names)} became NaN or infinite in iteration {iteration}"


def bad_tensors(tensors: Mapping[str, Tensor], strategy: Strategy | None = None) -> list[str]:
    """Names of the tensors with NaN or infinite values, on any rank of `strategy` if it is given: a collective call.

    One wait for the device, whatever their number.
    """
    floating = {name: t for name, t in tensors.items() if t.is_floating_point()}
    if not floating:
        return []
    whole = torch.stack([torch.isfinite(t).all() for t in floating.values()]).long()
    if strategy is not None:
        whole = strategy.reduce(whole, reduce_op="min")
    return [name for name, fine in zip(floating, whole.tolist(), strict=True) if not fine]  # type: ignore[union-attr]


def last_good(trainer: L.Trainer) -> Path | None:
    """The checkpoint that the run of `trainer` wrote last, or else the one that it began from."""
    folders = [folder for saver in trainer.checkpoint_callbacks if (folder := getattr(saver, "dirpath", None))]
    found = [newest_checkpoint(Path(folder)) for folder in folders]
    return next(filter(None, found), Path(trainer.ckpt_path) if trainer.ckpt_path else None)


def way_out(trainer: L.Trainer) -> str:
    """Where the last good checkpoint is and what may help."""
    good = last_good(trainer)
    last = f"the last good checkpoint is {describe_checkpoint(good)}" if good else "no checkpoint was written"
    return f"{last}. Lower the learning rate, use precision 32-true, or add callbacks.SkipNonFinite."
