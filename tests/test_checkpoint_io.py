"""Checkpoints that are whole or not there."""

import errno
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks import Checkpoints
from lightning_styles.checkpoint_io import MOST_MISSED, WholeFiles, unsaved
from lightning_styles.errors import UserError
from tests.callbacks.toy import Toy, loader, trainer

NEW, OLD = {"state_dict": {"weight": torch.arange(250_000)}}, {"state_dict": {"weight": torch.zeros(1)}}


def contents(path: Path) -> Any:
    return torch.load(path, weights_only=True)["state_dict"]["weight"]


def save_often(files: WholeFiles, path: Path) -> None:
    """Save as often as a run would put up with."""
    for _ in range(MOST_MISSED):
        files.save_checkpoint(NEW, path)


def test_leftovers_of_killed_runs_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in (".last.ckpt.01234567.tmp", ".other.ckpt.01234567.tmp", "best.ckpt"):
        (tmp_path / name).write_bytes(b"half")
    WholeFiles().save_checkpoint(NEW, tmp_path / "last.ckpt")
    assert torch.equal(contents(tmp_path / "last.ckpt"), NEW["state_dict"]["weight"])
    assert {path.name for path in tmp_path.iterdir()} == {".other.ckpt.01234567.tmp", "best.ckpt", "last.ckpt"}


def test_the_content_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flush(descriptor: int) -> None:
        order.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        assert torch.equal(contents(source), NEW["state_dict"]["weight"])
        order.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    WholeFiles().save_checkpoint(NEW, tmp_path / "last.ckpt")
    assert order == ["file", "rename", "folder"]


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the quota is used up"), (errno.EIO, "Input/output error")],
)
def test_without_room_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    path = tmp_path / "last.ckpt"
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=rf"could not be written: {reason} \(2.0 MB needed, .*; none was written"):
            save_often(WholeFiles(), path)
        assert list(tmp_path.iterdir()) == []
    WholeFiles().save_checkpoint(OLD, path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"MB free at .*last.ckpt of the save before is kept"):
        save_often(WholeFiles(), path)
    assert torch.equal(contents(path), torch.zeros(1))
    assert list(tmp_path.iterdir()) == [path]


class Disk:
    """Fails with `number` in the tries named, of all that are made to flush a checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int, failing: set[int]) -> None:
        self.tries, self.pauses, fsync = 0, list[float](), os.fsync

        def flush(descriptor: int) -> None:
            if os.path.isfile(f"/proc/self/fd/{descriptor}"):
                self.tries += 1
                if self.tries in failing:
                    raise OSError(number, os.strerror(number))
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", flush)
        monkeypatch.setattr(time, "sleep", self.pauses.append)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.ESTALE])
def test_what_fails_for_a_moment_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    disk, files = Disk(monkeypatch, number, {1, 2}), WholeFiles()
    files.save_checkpoint(NEW, tmp_path / "last.ckpt")
    assert torch.equal(contents(tmp_path / "last.ckpt"), NEW["state_dict"]["weight"])
    assert (disk.tries, disk.pauses, files.missed) == (3, [0.5, 2.0], [])


def test_a_checkpoint_that_fails_is_left_out_and_none_is_removed_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk, files = Disk(monkeypatch, errno.EIO, {2, 3, 4}), WholeFiles()
    files.save_checkpoint(OLD, tmp_path / "1.ckpt")
    files.save_checkpoint(NEW, tmp_path / "2.ckpt")
    files.remove_checkpoint(tmp_path / "1.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["1.ckpt"]
    (line,) = caplog.messages
    assert line.startswith(f"The checkpoint {tmp_path / '2.ckpt'} could not be written: Input/output error")
    assert "/1.ckpt of the save before is kept. " in line
    assert line.endswith("The run goes on without it.")
    files.save_checkpoint(NEW, tmp_path / "3.ckpt")
    files.remove_checkpoint(tmp_path / "1.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["3.ckpt"]
    assert (disk.tries, files.missed) == (5, [])


def test_rights_are_no_passing_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, errno.EROFS, {1})
    with pytest.raises(UserError, match="could not be written: Read-only file system"):
        WholeFiles().save_checkpoint(NEW, tmp_path / "last.ckpt")
    assert (disk.tries, disk.pauses) == (1, [])


def saving(folder: Path, saver: ModelCheckpoint, steps: int = 4) -> L.Trainer:
    saver.dirpath = str(folder)
    return trainer(folder, [saver], steps, plugins=[WholeFiles()], enable_checkpointing=True)


@pytest.mark.parametrize(
    ("saver", "kept"),
    [(Checkpoints(1), {4}), (ModelCheckpoint(every_n_train_steps=1), {1, 4})],  # 1 outlived the failure of 2
    ids=["own", "lightnings"],
)
def test_a_run_outlives_a_checkpoint_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saver: ModelCheckpoint, kept: set[int]
) -> None:
    Disk(monkeypatch, errno.EIO, {2, 3, 4})  # all tries of the second one
    run = saving(tmp_path, saver)
    run.fit(Toy(), loader())
    assert unsaved(run) is None
    assert {torch.load(path, weights_only=True)["global_step"] for path in tmp_path.glob("*.ckpt")} == kept


def test_what_persists_to_the_end_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Disk(monkeypatch, errno.EIO, set(range(2, 99)))
    with pytest.raises(UserError, match="last.ckpt of the save before is kept"):
        saving(tmp_path, Checkpoints(2), 4).fit(Toy(), loader())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2


def test_errors_that_are_no_ones_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        WholeFiles().save_checkpoint({"state_dict": lambda: None}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []
