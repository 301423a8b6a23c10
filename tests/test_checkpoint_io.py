"""Checkpoints that are whole or not there."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_styles.checkpoint_io import WholeFiles
from lightning_styles.errors import UserError

NEW, OLD = {"state_dict": {"weight": torch.arange(250_000)}}, {"state_dict": {"weight": torch.zeros(1)}}


def contents(path: Path) -> Any:
    return torch.load(path, weights_only=True)["state_dict"]["weight"]


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

    def fail(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(UserError, match=rf"could not be written: {reason} \(2.0 MB needed, .*; none was written"):
            WholeFiles().save_checkpoint(NEW, path)
        assert list(tmp_path.iterdir()) == []
    WholeFiles().save_checkpoint(OLD, path)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"MB free at .*last.ckpt of the save before is kept"):
        WholeFiles().save_checkpoint(NEW, path)
    assert torch.equal(contents(path), torch.zeros(1))
    assert list(tmp_path.iterdir()) == [path]


def test_errors_that_are_no_ones_disk_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        WholeFiles().save_checkpoint({"state_dict": lambda: None}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []
