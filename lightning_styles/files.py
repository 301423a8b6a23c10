"""Files that are whole or not there, archives without damage, and folders that can be written."""

import errno
import os
import platform
import re
import shutil
import sys
import time
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from lightning_styles.errors import UserError, system_error

LONGEST_NAME = 255  # bytes
DAY = 86_400  # seconds
TEMPORARY = re.compile(r"\..+\.(?P<owner>[0-9a-f]{6}-(?P<pid>\d{1,9}))\.[0-9a-f]{8}\.tmp", re.DOTALL)


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


def read_text(path: Path, most: int, what: str) -> str:
    """The text of a file of at most `most` bytes; `what` it is for messages.

    Raises:
        UserError: it is larger, or no UTF-8 text.
    """
    size = path.stat().st_size
    if size > most:
        raise UserError(f"{what} {path} has {size:,} bytes; expected at most {most:,}: shorten or remove it.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is no UTF-8 text ({error.reason}); save it as UTF-8.") from error


def same_file(path: str | Path, other: str | Path) -> bool:
    """Whether two paths lead to one file or folder, however they are spelled; False where one does not exist."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False


def check_target(output: Path, read: Iterable[Path], overwrite: bool, option: str = "--overwrite") -> None:
    """Refuse to write over a file that is read and, without `overwrite`, over anything; an empty folder is nothing.

    Raises:
        UserError: naming `output` and the `option` that allows it.
    """
    if any(same_file(output, path) for path in read):
        raise UserError(f"{output} is what is read; write the result to another place.")
    nothing = not os.path.lexists(output) or (output.is_dir() and not any(output.iterdir()))
    if not (nothing or overwrite):
        raise UserError(f"{output} is there already; write to another place, or replace it with {option}.")


def file_name(stem: str, suffix: str) -> str:
    """`stem` + `suffix` or, where that is more than a file system takes, as much of it as goes and a digest of it."""
    whole = stem + suffix
    if len(os.fsencode(whole)) <= LONGEST_NAME:
        return whole
    digest = f"~{sha256(os.fsencode(stem)).hexdigest()[:8]}{suffix}"
    return os.fsencode(stem)[: LONGEST_NAME - len(os.fsencode(digest))].decode(errors="ignore") + digest


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file name beside `path` which takes its place once the block ends well.

    What processes that were killed have left there is removed.

    Raises:
        OSError: naming `path`, whichever library could not write it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent.absolute())
    label = path.name if len(os.fsencode(path.name)) <= 100 else sha256(os.fsencode(path.name)).hexdigest()[:16]
    temporary = path.with_name(f".{label}.{_owner(os.getpid())}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except UserError:
        raise
    except Exception as error:
        cause = system_error(error) or _torch_could_not_write(error, path.parent)
        if cause is None or cause.filename not in (None, temporary, str(temporary)):
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@cache  # once in a process: a listing for every file would make many files slow
def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files in `folder` of processes that are no more; those of other machines after a day."""
    for path in folder.glob(".*.tmp"):
        if match := TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                here = match["owner"] == _owner(int(match["pid"]))
                if not lives(int(match["pid"])) if here else time.time() - path.stat().st_mtime > DAY:
                    path.unlink()


def _owner(pid: int) -> str:
    """A process as temporary names show it: with the machine, several of which may share a folder."""
    return f"{sha256(platform.node().encode()).hexdigest()[:6]}-{pid}"


def lives(pid: int) -> bool:
    """Whether a process of this machine runs."""
    if os.name == "nt":  # there, asking would end it
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def _torch_could_not_write(error: Exception, folder: Path) -> OSError | None:
    """What torch.save does not say: why its archive could not be written into `folder`."""
    if not re.search("inline_container|iostream|PytorchStreamWriter", str(error)):
        return None
    number = errno.ENOSPC if shutil.disk_usage(folder).free < 1_000_000 else errno.EIO
    return OSError(number, os.strerror(number))


def check_archive(path: Path, unreadable: str, mend: str) -> None:
    """Refuse an archive of PyTorch with a damaged member, which it does not notice, or a packed one, perhaps a bomb.

    Args:
        path: the file, a zip archive.
        unreadable: what to say when it is none, or cut short.
        mend: what to do about a damaged one.

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
        raise UserError(f"{path} is damaged ({damaged} has a wrong checksum); {mend}.")


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
