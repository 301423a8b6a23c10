"""Bad and hostile inputs: each is answered with one message and leaves nothing half-written behind."""

import logging
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_styles.__main__ import main
from lightning_styles.errors import UserError
from lightning_styles.metrics.perceptual import read_weights
from lightning_styles.pretrained.lora_files import read_file
from lightning_styles.pretrained.weights import read_torch
from lightning_styles.runs import read_checkpoint
from tests.micro import Micro, write_picture
from tests.small_files import small_files
from tests.trust.bad_files import make_files, write
from tests.trust.bad_inputs import ALL, COMPARISONS, Bad

pytest_plugins = ["tests.micro"]
SECONDS = 2  # of processor time, so that a busy machine changes nothing
NOT_ERRORS = ("hint: ", "skipped: ", "style LoRA ")  # lines that may stand beside the one message
RESULTS = {".png", ".ckpt", ".safetensors", ".tmp"}


@pytest.fixture(scope="module")
def world(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good, damaged and hostile files."""
    folder, before = tmp_path_factory.mktemp("world"), Path.cwd()
    try:
        make_files(folder, micro)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and lines of the log that go to this test's own stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    for name in ("lightning_styles", "datamodules", "callbacks"):
        logging.getLogger(name).handlers.clear()
    return tmp_path


def files(folder: Path) -> dict[str, int]:
    """Every file and folder with its size."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*")}


# ---- the table


@pytest.mark.parametrize("bad", ALL, ids=lambda bad: bad.words.replace("{w}/", ""))
def test_a_bad_input_is_answered_with_one_message(
    bad: Bad, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, start = files(world), time.process_time()
    code = main(shlex.split(bad.words.replace("{w}", str(world))))
    seconds = time.process_time() - start
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert code == bad.code, captured
    assert "Traceback" not in captured.out + captured.err
    assert [line for line in lines if not line.startswith(("error: ", *NOT_ERRORS))] == []
    (message,) = [line for line in lines if line.startswith("error: ")]
    assert re.search(bad.says, message), message
    assert len(message) < 1000
    assert files(world) == before  # nothing written there, no code run
    written = files(tmp_path)
    if bad.late:
        assert [name for name in written if Path(name).suffix in RESULTS] == []
    else:
        assert written == {}
        assert seconds < SECONDS


def test_the_table_is_long_and_has_no_entry_twice() -> None:
    assert len({bad.words for bad in ALL}) == len(ALL) >= 150


def test_rows_that_cannot_be_read_fail_alone(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", f"{world}/rows.yaml"]) == 1
    captured = capsys.readouterr()
    assert "Option 'learning_rat' is not accepted" in captured.err
    assert "row a: the settings cannot be read, see the error above" in captured.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--model.base stable-diffusion-v1-5", "stable-diffusion 'stable-diffusion-v1-5' is not on this machine"),
        ("--model.base nope", "'nope' is neither a file or folder nor a known name"),
        ("--data.images nowhere", "data: 'nowhere' does not exist"),
    ],
)
def test_check_marks_what_is_missing(words: str, says: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", f"{world}/sms.yaml", *words.split()]) == 1
    missing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSING")]
    assert len(missing) == 1
    assert says in missing[0]


# ---- pickles and damage of every kind


@pytest.mark.parametrize("name", ["pickle.ckpt", "pickle_legacy.ckpt", "pickle_plain.ckpt", "pickle.safetensors"])
@pytest.mark.parametrize("read", [read_checkpoint, read_torch, partial(read_weights, expected="x"), read_file])
def test_no_reader_runs_a_pickle(read: Callable[[Path], Any], name: str, world: Path) -> None:
    with pytest.raises(UserError):
        read(world / name)
    assert not (world / "code_ran").exists()


def test_the_pickle_would_run_code(world: Path) -> None:
    torch.load(world / "pickle.ckpt", weights_only=False)
    (world / "code_ran").rmdir()  # it was there


@pytest.mark.parametrize("read", [read_checkpoint, read_torch])
def test_no_flipped_bit_of_a_checkpoint_goes_unnoticed(read: Callable[[Path], Any], world: Path) -> None:
    good, damaged = (world / "sms.ckpt").read_bytes(), Path("damaged.ckpt")
    expected, refused = flatten(read(world / "sms.ckpt")), 0
    for place in range(0, len(good), len(good) // 150):
        damaged.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        try:
            assert flatten(read(damaged)) == expected  # padding, or what nobody reads
        except UserError:
            refused += 1
    assert refused > 90
    for length in range(0, len(good), len(good) // 20):
        damaged.write_bytes(good[:length])
        with pytest.raises(UserError):
            read(damaged)


def test_no_flipped_bit_in_the_header_of_a_lora_goes_unnoticed(micro: Micro) -> None:
    good, damaged = Path(micro.lora).read_bytes(), Path("damaged.safetensors")
    expected, refused = flatten(read_file(Path(micro.lora))[0]), 0
    end = 8 + int.from_bytes(good[:8], "little")
    for place in range(0, end, 29):
        damaged.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        try:
            assert flatten(read_file(damaged)[0]) == expected
        except UserError:
            refused += 1
    assert refused > 0.9 * len(range(0, end, 29))


def flatten(tree: object) -> object:
    """Nested values with tensors as bytes, so that == compares them bit by bit."""
    if isinstance(tree, torch.Tensor):
        return str(tree.dtype), tuple(tree.shape), tree.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(tree, dict):
        return {key: flatten(value) for key, value in tree.items()}
    return [flatten(value) for value in tree] if isinstance(tree, (list, tuple)) else tree


# ---- outputs, names, foreign classes


def test_a_full_disk_leaves_no_half_picture(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_files():
        assert main(shlex.split(f"stylize {world}/photo.png --style {world}/sms.ckpt --device cpu")) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(r"'out/photo.png' cannot be written: File too large; make room", message)
    assert set(files(tmp_path)) == {"out"}


def test_spaces_and_foreign_letters_in_every_path(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = "Gr\u00fc\u00dfe an \u00d1and\u00fa \u56f3 (1)"
    write_picture(Path(folder, "mein Bild \u00e9.png"), 24, 32)
    config = write(f"{folder}/configs/my sm\u00f6s.yaml", (world / "sms.yaml").read_bytes())
    flags = ["--data.images", folder, "--trainer.default_root_dir", f"{folder}/all runs", "--trainer.logger", "true"]
    assert main(["fit", "--config", str(config), *flags]) == 0
    run = tmp_path / folder / "all runs" / "my sm\u00f6s" / "version_0"
    assert (run / "results" / "mein Bild \u00e9.png").is_file()
    words = ["stylize", folder, "--style", str(run), "--out", f"{folder}/out put", "--device", "cpu"]
    assert main(words) == 0
    assert [path.name for path in Path(folder, "out put").iterdir()] == ["mein Bild \u00e9.png"]
    assert "error" not in capsys.readouterr().err


def test_classes_from_elsewhere_are_allowed_and_named(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", f"{world}/toy.yaml"]) == 0
    line = "Code from outside this project runs: tests.toys.ToyData, tests.toys.ToyStyle"
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    "bad", [COMPARISONS[0], next(bad for bad in ALL if "stylize" in bad.words and "pickle" in bad.words)]
)
def test_a_real_process_says_the_same(bad: Bad, world: Path) -> None:
    command = [sys.executable, "-m", "lightning_styles", *shlex.split(bad.words.replace("{w}", str(world)))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == bad.code
    assert done.stdout == ""
    assert re.fullmatch(f"error: [^\n]*{bad.says}[^\n]*\n", done.stderr)
    assert not (world / "code_ran").exists()
