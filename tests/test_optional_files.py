"""Disks without room: each message names the file, and what a run can do without does not end it."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tensorboard.summary.writer.record_writer import RecordWriter

from callbacks import Previews, RunRecord
from lightning_styles.__main__ import described
from lightning_styles.files import replacing
from lightning_styles.optional_files import Curves, without_tracebacks_of_threads
from tests.callbacks.toy import Toy, loader, trainer
from tests.small_files import small_files

TENSORS = {"a": torch.zeros(1000)}
WRITERS: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_text("x" * 1000),
    "torch": lambda path: torch.save(TENSORS, path),
    "safetensors": lambda path: save_file(TENSORS, path),
    "picture": lambda path: Image.effect_noise((40, 40), 9).save(path, format="PNG"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_whoever_writes_the_message_names_the_file(tmp_path: Path, name: str) -> None:
    refused = pytest.raises(OSError, match="File too large|Input/output error")
    with small_files(), refused as caught, replacing(tmp_path / "result") as temporary:
        WRITERS[name](temporary)
    assert described(caught.value).startswith(f"{tmp_path / 'result'}: ")
    assert list(tmp_path.iterdir()) == []


def test_errors_about_other_files_and_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "result"):
        (tmp_path / "source").read_text()
    assert caught.value.filename == str(tmp_path / "source")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "result"):
        print(1 / 0)


def full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("since", [0, 3])
def test_curves_end_where_the_disk_is_full_and_the_run_does_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    since: int,
) -> None:
    written, write = [], RecordWriter.write
    careful = lambda self, data: written.append(data) or (write if len(written) <= since else full)(self, data)  # noqa: E731
    monkeypatch.setattr(RecordWriter, "write", careful)
    logging.getLogger("lightning_styles").handlers.clear()  # one would write to an earlier test's stderr
    without_tracebacks_of_threads()
    curves = Curves(tmp_path, "x", "version_0")
    run = trainer(tmp_path, [Previews(2)], logger=curves, log_every_n_steps=1)
    run.fit(Toy(), loader())
    assert run.global_step == 4
    (line,) = [line for line in caplog.messages if line.endswith("without it.")]
    assert line == f"The curves in {tmp_path / 'x/version_0'} cannot be written: No space left on device; " + (
        "the run goes on without it."
    )
    assert "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "x/version_0/previews/000004.png").is_file()


def test_previews_and_the_record_are_left_out_with_one_line_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "replace", full)
    run = trainer(tmp_path, [RunRecord(), Previews(4)])
    run.fit(Toy(), loader())
    assert run.global_step == 4
    ours = {line.partition(" ")[0] for line in caplog.messages if line.endswith("the run goes on without it.")}
    assert ours == {str(tmp_path / name) for name in ("run.json", "previews/000000.png", "previews/000004.png")}
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
