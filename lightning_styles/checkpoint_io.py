"""Checkpoints that are whole or not there: written beside their place, flushed to the disk, then renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from lightning_styles.errors import UserError
from lightning_styles.files import replacing

FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "the file is too large"}


class WholeFiles(TorchCheckpointIO):
    """Writes every checkpoint of a trainer so that a kill or a full disk leaves the one before it as it was."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write `checkpoint` to `path`, and remove what killed runs left half-written there.

        Raises:
            UserError: there is no room for it, or the folder cannot be written.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for leftover in path.parent.glob(f".{path.name}.*.tmp"):
                leftover.unlink(missing_ok=True)
            with replacing(path) as temporary, temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # the rename must not reach the disk before the content
            flush_folder(path.parent)
        except (OSError, RuntimeError) as error:
            cause = next((e for e in chain(error) if isinstance(e, OSError)), None)
            if cause is None:
                raise
            raise UserError(cannot_write(path, cause, size_mb(checkpoint))) from error


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
    kept = f"{path} of the save before is kept" if path.is_file() else "none was written before"
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


def chain(error: BaseException) -> Iterator[BaseException]:
    """`error` and what it was raised after: torch wraps the system's error in its own."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
