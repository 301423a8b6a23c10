"""Files that are whole or not there, archives without damage, and folders that can be written."""

import os
import sys
import uuid
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_styles.errors import UserError


def places(name: str) -> list[Path]:
    """Where a file of the user may lie: as named and, for `configs/...`, among those that ship beside the package."""
    given = Path(name).expanduser()
    shipped = [Path(__file__).resolve().parent.parent, Path(sys.prefix) / "share" / "lightning_styles"]
    return [given] + [root / given for root in shipped if given.parts[:1] == ("configs",)]


def existing(name: str) -> Path:
    """The file of the user, such as a style image, in the first of its `places`.

    Raises:
        UserError: there is no such file.
    """
    found = next((place for place in places(name) if place.exists()), None)
    if found is None:
        raise UserError(f"There is no file {name}; put it there or give its path in the config.")
    return found


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


def check_archive(path: Path, unreadable: str) -> None:
    """Refuse an archive of PyTorch with a damaged member, which it does not notice, or a packed one, perhaps a bomb.

    Args:
        path: the file, a zip archive.
        unreadable: what to say when it is none, or cut short.

    Raises:
        UserError: it is refused.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise UserError(f"{path} holds packed files, as no checkpoint of PyTorch does; it is refused.")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise UserError(unreadable) from error
    if damaged:
        raise UserError(f"{path} is damaged ({damaged} has a wrong checksum); get it again or use another checkpoint.")


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
