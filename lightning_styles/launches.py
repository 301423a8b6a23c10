"""Launches of `fit`: which process writes into a run folder, and which run of an experiment was trained last.

A run folder holds `launch.json`, who wrote there last, and `.lock`, which the system keeps for that process and takes
back when it ends, however it ends.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_styles.errors import UserError
from lightning_styles.files import lives, replacing

LOCK, RECORD = ".lock", "launch.json"
PATIENCE = 30.0  # seconds that a launch waits for the remains of another one, such as workers of its data loader
log = logging.getLogger(__name__)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Make `folder` and keep other launches from writing into it within the block.

    What only was there for that goes again when nothing else was written.

    Raises:
        UserError: another launch writes there; it says which.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        _acquire(lock, folder)
    except (OSError, NotImplementedError) as error:
        log.warning("%s cannot be locked (%s): see to it that no other launch writes there.", folder, error)
    before = read_launch(folder)
    if before.get("ended") is None and before.get("host", socket.gethostname()) != socket.gethostname():
        log.warning("%s; if it still runs, end one of the two: some network disks cannot tell.", _writer(folder))
    record = {"number": 1 + max(map(number, folder.parent.iterdir())), "folder": folder.name, "pid": os.getpid()}
    record |= {"host": socket.gethostname(), "since": _now(), "ended": None}
    try:
        _write(folder, record)
        yield
    finally:
        with suppress(OSError):  # where nothing can be written the end of the run has other things to say
            _leave(folder, record)
        lock.release()


def _leave(folder: Path, record: dict[str, Any]) -> None:
    """Note the end, or remove what nothing was written beside."""
    if {path.name for path in folder.iterdir()} <= {LOCK, RECORD}:
        for name in (RECORD, LOCK):
            (folder / name).unlink(missing_ok=True)
    else:
        _write(folder, record | {"ended": _now()})


def read_launch(folder: Path) -> dict[str, Any]:
    """What the last launch in a run folder noted; nothing if there was none, or none that can be read."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def number(folder: Path) -> int:
    """The number of the last launch in a run folder among all of its experiment; 0 where that is unknown.

    Launches are counted, not timed: neither a wrong clock nor touched files change their order.
    """
    found = read_launch(folder).get("number")
    return found if isinstance(found, int) else 0


def trained_last(folder: Path) -> tuple[int, bool, str, int]:
    """What orders the run folders of an experiment by their last launch; a copy comes before what it was copied from.

    Without `launch.json` the last start in run.json decides, then the number in the name.
    """
    return number(folder), read_launch(folder).get("folder") == folder.name, _started(folder), _index(folder)


def _acquire(lock: FileLock, folder: Path) -> None:
    """Take the lock, waiting for it only while its holder no longer lives, or lives elsewhere.

    Raises:
        UserError: it is held.
    """
    latest = time.monotonic() + PATIENCE
    while not lock.is_locked:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if _lives(read_launch(folder)) or time.monotonic() > latest:
                raise UserError(
                    f"{_writer(folder)}: two launches must not write there at once. "
                    "Wait for its end or end it; without --run and --ckpt_path a launch has a folder of its own."
                ) from None
            time.sleep(0.2)


def _lives(record: dict[str, Any]) -> bool:
    """Whether the process of a launch on this machine is still there; no statement about others."""
    pid = record.get("pid")
    return record.get("host") == socket.gethostname() and isinstance(pid, int) and pid > 0 and lives(pid)


def _writer(folder: Path) -> str:
    record = read_launch(folder)
    who = f"process {record.get('pid', 'unknown')} on {record.get('host', 'an unknown machine')}"
    return f"Into {folder} writes {who} since {record.get('since', 'some time')}"


def _write(folder: Path, record: dict[str, Any]) -> None:
    with replacing(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(record) + "\n", encoding="utf-8")


def _started(folder: Path) -> str:
    """When the last launch began, as run.json has it."""
    try:
        launches = json.loads((folder / "run.json").read_text(encoding="utf-8"))["launches"]
        return max(str(launch["started"]) for launch in launches)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def _index(folder: Path) -> int:
    index = folder.name.rpartition("_")[2]
    return int(index) if index.isdecimal() else -1


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
