"""The command line: answers what needs no heavy import at once and hands the rest on.

Exit codes: 0 done, 1 an error the user can mend, 2 a command line or config that cannot be read, 3 a run that ended
before its last iteration, by a limit of time or passes or early stopping, and is saved like one that a signal ends,
128 + n when signal n ended it: 130 Ctrl-C, 138 USR1, 143 kill; a run that saves checkpoints is saved then.
"""

import os
import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # until `main` listens: nothing is begun yet

import difflib
import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning_styles import __version__
from lightning_styles.errors import SharedError, UserError, out_of_memory
from lightning_styles.home import word_at_home

TRAINING = {
    "fit": "train a method; writes a run folder with config, logs, previews and checkpoints",
    "validate": "run the validation loop on a checkpoint",
    "test": "compute the metrics of a checkpoint",
    "predict": "stylize a folder of images, each saved alone at full resolution",
    "prepare": "compute once what a method needs before fit (fit does it by itself when it is missing)",
}
LIGHT = {
    "check": "report versions, devices, disk and every file that a config needs, found or missing",
    "convert": "official checkpoints in, trained results out",
    "stylize": "stylize pictures with a trained checkpoint, no config needed",
    "compare": "test the rows of a table that differ in a few settings, and write it",
    "density": "rank a folder of pictures by how rare they are to a diffusion autoencoder",
}
SIBLINGS = ("datamodules", "callbacks")

USAGE = "python -m lightning_styles <command> --config FILE [--config FILE ...] [--key value ...]"
EXAMPLES = """\
python -m lightning_styles fit --config configs/tiny/sms.yaml
python -m lightning_styles fit --config configs/tiny/sms.yaml --trainer.max_steps 50 --model.lr 0.05
python -m lightning_styles check --config configs/tiny/sms.yaml
python -m lightning_styles stylize photos/ --style runs/x/version_0 --out out/"""


def help_text() -> str:
    """What `--help` prints: usage, all commands with one line each, examples."""
    lines = [f"usage: {USAGE}", ""]
    for title, commands in (("Training, with a config:", TRAINING), ("Tools:", LIGHT)):
        lines += [title, *(f"  {name:<9} {about}" for name, about in commands.items()), ""]
    lines += ["Examples:", *(f"  {line}" for line in EXAMPLES.splitlines()), ""]
    lines.append("`<command> --help` lists the options of a command; `fit --config FILE --print_config` prints")
    lines.append("every key of an experiment with its value. Later files and then flags win over earlier files.")
    return "\n".join(lines)


def check_siblings() -> None:
    """Refuse to start when another folder hides `datamodules` or `callbacks`.

    Raises:
        UserError: naming the folder that is in the way.
    """
    root = Path(__file__).resolve().parent.parent
    for name in SIBLINGS:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise UserError(f"The package '{name}' is missing; expected it at {root / name}. Reinstall the project.")
        places = [Path(place).resolve() for place in spec.submodule_search_locations or []]
        if root / name not in places:
            found = places[0] if places else spec.origin
            raise UserError(
                f"'{name}' is taken from {found}, which hides this project's own {root / name}: "
                f"rename that one or start from another folder."
            )


def described(error: Exception) -> str:
    """One sentence; the system's own errors with the file that they are about."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}; check the path, the rights there and the room on the disk."
    return str(error)


@contextmanager
def _hearing_ctrl_c() -> Iterator[list[int]]:
    """Yields a list in which each Ctrl-C is noted that raises KeyboardInterrupt: an import may turn that into another
    error, which is none then."""
    heard: list[int] = []

    def note(signum: int, frame: Any) -> None:
        heard.append(signum)
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN or threading.current_thread() is not threading.main_thread():
        yield heard
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield heard
    finally:
        if signal.getsignal(signal.SIGINT) is note:
            signal.signal(signal.SIGINT, before)


def _follows() -> bool:
    """Whether another process of this run is the one that talks."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    return rank_zero_only.rank != 0


def _dispatch(arguments: list[str]) -> int:
    command, rest = arguments[0], arguments[1:]
    if command in LIGHT:
        return importlib.import_module(f"lightning_styles.commands.{command}").main(rest)
    if command in TRAINING:
        check_siblings()
        from lightning_styles.cli import main as train

        return train(arguments)
    close = difflib.get_close_matches(command, [*TRAINING, *LIGHT], n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"the commands are {', '.join([*TRAINING, *LIGHT])}."
    print(f"error: there is no command '{command}': {hint}", file=sys.stderr)
    return 2


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    arguments = [word_at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"lightning_styles {__version__}")
        return 0
    with _hearing_ctrl_c() as heard:
        try:
            return _run(arguments)
        except Exception:
            if not heard:
                raise
        except KeyboardInterrupt:
            pass
    print("interrupted", file=sys.stderr)
    return 130


def _run(arguments: list[str]) -> int:
    try:
        return _dispatch(arguments)
    except (UserError, OSError, RuntimeError, MemoryError) as error:
        error = out_of_memory(error) or error
        if not isinstance(error, (UserError, OSError)) or os.environ.get("LIGHTNING_STYLES_TRACEBACK"):
            raise
        if isinstance(error, SharedError) and _follows():
            return 0
        print(f"error: {described(error)}", file=sys.stderr)
        return error.code if isinstance(error, UserError) else 1
    except SystemExit as stop:  # argparse and jsonargparse end this way, after their message
        return stop.code if isinstance(stop.code, int) else 1


if __name__ == "__main__":
    sys.exit(main())
