"""Checkpoints that are whole or not there: written beside their place, flushed to the disk, then renamed.

A disk that fails for a moment ends no run: what fails is tried again, and a checkpoint that cannot be written at all
is left out, with the one before it kept.
"""

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from lightning_styles.errors import UserError, system_error
from lightning_styles.files import replacing

log = logging.getLogger(__name__)
FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too large"}
# What may be over in a moment or when someone makes room: full and network disks.
PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE}
PAUSES = (0.5, 2.0)  # seconds before a checkpoint is tried again
MOST_MISSED = 3  # checkpoints in a row that may be left out before the run ends


class WholeFiles(TorchCheckpointIO):
    """Writes every checkpoint of a trainer so that a kill or a full disk leaves the one before it as it was.

    Attributes:
        missed: why each of the last checkpoints, since the last good one, was left out.
    """

    def __init__(self) -> None:
        self.missed: list[UserError] = []

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, and remove what killed runs left half-written there.

        An error that may pass is a warning, and ends the run only where it is the last of `MOST_MISSED` in a row; who
        must know asks `unsaved`.

        Raises:
            UserError: there is no room for it, or the folder cannot be written.
        """
        path = Path(path)
        try:
            with_patience(lambda: write(checkpoint, path))
        except (OSError, RuntimeError) as error:
            cause = system_error(error)
            if cause is None:
                raise
            self.missed.append(UserError(cannot_write(path, cause, size_mb(checkpoint))))
            if cause.errno not in PASSING or len(self.missed) == MOST_MISSED:
                raise self.missed[-1] from error
            log.warning("%s The run goes on without it.", self.missed[-1])
        else:
            self.missed.clear()

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint that a later one replaces, unless that one could not be written."""
        if not self.missed:
            super().remove_checkpoint(path)


def unsaved(trainer: L.Trainer) -> UserError | None:
    """Why the last checkpoint of a run was not written; None if it was. Known to the rank that writes."""
    missed = getattr(trainer.strategy.checkpoint_io, "missed", [])
    return missed[-1] if missed else None


def write(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all, down to the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.save(checkpoint, file)
        file.flush()
        os.fsync(file.fileno())  # the rename must not reach the disk before the content
    flush_folder(path.parent)


def with_patience(attempt: Callable[[], None]) -> None:
    """Call `attempt`, and again after a pause while it fails with an error of the system that may pass."""
    for pause in PAUSES:
        try:
            return attempt()
        except (OSError, RuntimeError) as error:
            cause = system_error(error)
            if cause is None or cause.errno not in PASSING:
                raise
            time.sleep(pause)
    return attempt()


def flush_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the file system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def cannot_write(path: Path, error: OSError, size: float) -> str:
    """One sentence on why `path`, of `size` MB, was not written, and what is left of the run."""
    reason = FULL.get(error.errno or 0, error.strerror or str(error))
    place = next(folder for folder in path.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(place).free / 1e6
    others = [other for other in path.parent.glob("*.ckpt") if other.is_file()]
    before = path if path.is_file() else max(others, key=lambda other: other.stat().st_mtime, default=None)
    kept = f"{before} of the save before is kept" if before else "none was written before"
    return (
        f"The checkpoint {path} could not be written: {reason} ({size:.1f} MB needed, {free:.1f} MB free "
        f"at {place}); {kept}. Make room, then go on from there."
    )


def size_mb(tree: Any) -> float:
    """Size of all tensors in nested dicts and lists, in MB."""
    if isinstance(tree, torch.Tensor):
        return tree.numel() * tree.element_size() / 1e6
    branches = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (list, tuple)) else ()
    return sum(size_mb(branch) for branch in branches)
