"""The light entry: what it answers, with which exit code, and that it imports nothing heavy for it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from callbacks.completion import Unfinished
from lightning_styles import __version__
from lightning_styles.__main__ import LIGHT, TRAINING, check_siblings, main
from lightning_styles.errors import UserError
from tests.test_module import Duel

FULL, LOWER = "There is not enough memory", ": lower the resolution (data.resolution, --resolution) or "
CPU, WORKER = "DefaultCPUAllocator: can't allocate memory: you tried to allocate", "DataLoader worker (pid 7)"
ROOT = Path(__file__).resolve().parent.parent


def test_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    for name, about in {**TRAINING, **LIGHT}.items():
        assert f"  {name:<9} {about}" in out


def test_no_command_prints_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m lightning_styles <command>" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning_styles {__version__}\n"


@pytest.mark.parametrize(("typed", "meant"), [("fti", "fit"), ("stylise", "stylize"), ("chek", "check")])
def test_mistyped_command_suggests_the_likely_one(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([typed]) == 2
    assert capsys.readouterr().err == f"error: there is no command '{typed}': did you mean '{meant}'?\n"


def test_unlike_any_command_lists_them_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["xyzzy"]) == 2
    assert "the commands are fit, validate, test, predict, prepare, check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (UserError("too large: halve it."), 1, "error: too large: halve it.\n"),
        (FileNotFoundError("no weights at x"), 1, "error: no weights at x\n"),
        (Unfinished("3 of 200 iterations."), 3, "error: 3 of 200 iterations.\n"),
        (MemoryError(), 1, f"error: {FULL}{LOWER}"),
        (RuntimeError(f"{CPU} 2000000000 bytes. Error code 12"), 1, f"error: {FULL} for 2.0 GB more{LOWER}"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"),
            1,
            f"error: {FULL} for 21.5",
        ),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`"), 1, f"error: {FULL}{LOWER}"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), 1, f"error: {FULL}{LOWER}"),
        (OSError(12, "Cannot allocate memory"), 1, f"error: {FULL}{LOWER}"),
        (RuntimeError(f"{WORKER} is killed by signal: Bus error. It is"), 1, "error: A worker of the data loader is k"),
        (RuntimeError(f"{WORKER} exited unexpectedly"), 1, "error: A worker of the data loader exited unexpectedly: "),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (SystemExit(2), 2, ""),
    ],
)
def test_errors_become_one_line_and_an_exit_code(
    raised: BaseException,
    code: int,
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(arguments: list[str]) -> int:
        raise raised

    monkeypatch.setattr("lightning_styles.__main__._dispatch", fail)
    assert main(["fit"]) == code
    printed = capsys.readouterr().err
    assert printed.startswith(text)
    assert printed.count("\n") == (text != "")


class Hungry(Duel):
    """Asks for a petabyte."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        torch.empty(2**48)


def test_a_run_without_memory_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["--model", "tests.test_main.Hungry", "--data", "tests.test_module.Numbers", "--trainer.max_steps", "2"]
    assert main(["fit", *words, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert error[0].startswith(f"error: {FULL} for 1125899.9 GB more{LOWER}data.batch_size")


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(arguments: list[str]) -> int:
        raise ValueError("a bug")

    monkeypatch.setattr("lightning_styles.__main__._dispatch", fail)
    with pytest.raises(ValueError, match="a bug"):
        main(["fit"])


@pytest.mark.parametrize("swallowed", [False, True])
def test_ctrl_c_that_an_import_turns_into_another_error_is_still_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], swallowed: bool
) -> None:
    def fail(arguments: list[str]) -> int:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            if not swallowed:
                raise
        raise AttributeError("half imported")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("lightning_styles.__main__._dispatch", fail)
    assert main(["fit"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_while_the_program_starts(tmp_path: Path) -> None:
    """The first module that it imports after it listens is slow here; a signal that is ignored stays so."""
    slow = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(0.1)\nprint('went on')\n"
    (tmp_path / "difflib.py").write_text(slow)
    words = [sys.executable, "-m", "lightning_styles", "--version"]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for ignored, code in ((False, 130), (True, 0)):
        run = subprocess.run(
            words,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if ignored else None,
            check=False,
        )
        assert (run.returncode, run.stderr) == (code, "")
        assert ("went on" in run.stdout) == ignored


def test_a_folder_that_hides_callbacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "callbacks"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UserError, match="rename that one") as caught:
        check_siblings()
    assert str(tmp_path / "callbacks") in str(caught.value)


def test_light_commands_import_nothing_heavy() -> None:
    code = (
        "import sys; from lightning_styles.__main__ import main\n"
        "codes = [main(a) for a in (['--help'], ['fti'], ['check', '--help'], ['convert', '--help'],"
        " ['stylize', '--help'], ['compare', '--help'], ['density', '--help'])]\n"
        "heavy = {'torch', 'lightning', 'numpy', 'PIL', 'yaml', 'jsonargparse'} & set(sys.modules)\n"
        "print(codes, sorted(heavy), file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stderr.splitlines()[-1] == "[0, 2, 0, 0, 0, 0, 0] []"
