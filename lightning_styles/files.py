"""Files that are whole or not there, and folders that can be written."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_styles.errors import UserError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file name beside `path` which takes its place once the block ends well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that cannot be made or written, without leaving anything there.

    Trying is the only test: rights say nothing on read-only mounts, nor to an administrator.

    Raises:
        UserError: naming the place that is in the way.
    """
    folder = Path(folder).expanduser().absolute()
    place = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with TemporaryDirectory(dir=place):
            pass
    except OSError as error:
        raise UserError(
            f"Nothing can be written into {folder}: {place} says {error.strerror}; choose another folder."
        ) from error
