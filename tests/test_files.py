"""Files that are whole or not there, whatever their names; what killed processes leave is cleared away."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lightning_styles import files, imaging
from lightning_styles.errors import UserError
from lightning_styles.files import check_target, file_name, read_text, remove_leftovers, replacing

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "stem", ["a" * 251, "\u6f22" * 80, "\u6f22" * 83 + "ab", "b"], ids=["251", "80 of 3", "83 of 3 and 2", "1"]
)
def test_files_of_any_name_that_the_disk_takes_are_written(tmp_path: Path, stem: str) -> None:
    path = tmp_path / f"{stem}.png"
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


def test_names_that_would_be_too_long_are_cut_and_stay_different() -> None:
    assert file_name("a" * 251, ".png") == "a" * 251 + ".png"
    names = [file_name(stem, "_before_after.png") for stem in ("a" * 251, "a" * 250 + "b", "\u6f22" * 83)]
    assert len(set(names)) == 3
    for name in names:
        assert 250 <= len(name.encode()) <= 255
        assert name.endswith("_before_after.png")
    assert names[0] == file_name("a" * 251, "_before_after.png")


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    code = (
        "import os, signal; from pathlib import Path; from lightning_styles.files import replacing\n"
        "with replacing(Path('g.pt')) as temporary:\n"
        "    temporary.write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    others = [tmp_path / name for name in (".notes.tmp", f".x.{files._owner(os.getpid())}.01234567.tmp", "a.tmp")]
    others += [tmp_path / ".x.000000-999999999.01234567.tmp"]
    for other in others:  # from elsewhere, of a process that lives, of another machine
        other.write_text("x")
    old = tmp_path / ".y.000000-999999999.01234567.tmp"
    old.write_text("x")
    os.utime(old, (1e9, 1e9))
    remove_leftovers.cache_clear()
    with replacing(tmp_path / "other.png") as temporary:
        temporary.write_text("new")
    assert not left.exists()
    assert not old.exists()
    assert all(other.exists() for other in others)


def test_nothing_that_is_read_or_there_is_replaced(tmp_path: Path) -> None:
    source, link, hard, empty = (tmp_path / name for name in ("g.pt", "link.pt", "hard.pt", "empty"))
    source.write_text("x")
    link.symlink_to(source)
    hard.hardlink_to(source)
    empty.mkdir()
    (tmp_path / "sub").mkdir()
    for same in (source, link, hard, tmp_path / "sub" / ".." / "g.pt"):
        with pytest.raises(UserError, match="is what is read; write the result to another place"):
            check_target(same, [source], overwrite=True)
    with pytest.raises(UserError, match="is there already; write to another place, or replace it with --overwrite"):
        check_target(tmp_path, [], overwrite=False)
    for free in (empty, tmp_path / "new.pt"):
        check_target(free, [source], overwrite=False)
    (tmp_path / "nowhere.pt").symlink_to(tmp_path / "no.pt")
    with pytest.raises(UserError, match="is there already"):
        check_target(tmp_path / "nowhere.pt", [source], overwrite=False)


def test_texts_are_read_up_to_a_size(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffcaf\u00e9", encoding="utf-8")
    assert read_text(tmp_path / "a.txt", 8, "the caption") == "caf\u00e9"
    with pytest.raises(UserError, match=r"the caption .*a.txt has 8 bytes; expected at most 7"):
        read_text(tmp_path / "a.txt", 7, "the caption")


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.ENAMETOOLONG, imaging.NameRefused, "rename the picture"),
        (errno.ENOSPC, UserError, "make room, then go on"),
        (errno.EACCES, UserError, "check the folder and its rights"),
    ],
)
def test_a_picture_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[UserError], says: str
) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(UserError, match=rf"a.png' cannot be written: {os.strerror(number)}; {says}") as caught:
        imaging.save_png(tmp_path / "a.png", torch.zeros(3, 16, 16))
    assert type(caught.value) is kind
    assert list(tmp_path.iterdir()) == []
