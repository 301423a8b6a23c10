"""Command lines in processes of their own, forked from one that has imported everything already."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context, set_start_method
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import yaml

import lightning_styles.__main__ as program
from tests.trust.heavy import digest

ROOT = Path(__file__).resolve().parents[2]
CONTEXT = get_context("forkserver")
LAST = "checkpoints/last.ckpt"


class Launch:
    """One command line that runs in `folder`; what it prints and which iterations it begins is written there.

    Args:
        folder: where it runs.
        arguments: the words after the program's name.
        limit: bytes that a file may have, as on a disk without room for more.
        ignored: a signal that is ignored at the start.
        group: make it the leader of a process group, as in a terminal.
    """

    count = 0

    def __init__(
        self, folder: Path, *arguments: str, limit: int | None = None, ignored: int | None = None, group: bool = False
    ) -> None:
        Launch.count += 1
        self.printed_in, self.trace = folder / f"printed_{Launch.count}.txt", folder / f"trace_{Launch.count}.txt"
        settings = (str(folder), arguments, str(self.printed_in), str(self.trace), limit, ignored, group)
        self.process: ForkServerProcess = CONTEXT.Process(target=_run, args=settings)
        self.process.start()

    @property
    def printed(self) -> str:
        return self.printed_in.read_text("utf-8")

    @property
    def iterations(self) -> list[int]:
        """The iterations begun so far."""
        return [int(line) for line in self.trace.read_text().split()] if self.trace.is_file() else []

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait until something holds, while the process runs; 5 minutes at most."""
        latest = time.monotonic() + 300
        while not condition():
            assert self.process.is_alive(), self.printed
            assert time.monotonic() < latest, self.printed
            time.sleep(0.001)

    def send(self, signum: int) -> None:
        os.kill(self.process.pid, signum)  # type: ignore[arg-type]

    def end(self) -> int:
        """Wait for the end; the exit code, or minus the signal that ended it."""
        self.process.join(300)
        assert self.process.exitcode is not None
        return self.process.exitcode


def _run(
    folder: str, arguments: list[str], printed: str, trace: str, limit: int | None, ignored: int | None, group: bool
) -> None:
    set_start_method("fork", force=True)  # as in a process that was started by hand
    os.chdir(folder)
    if group:
        os.setsid()
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    if ignored is not None:
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdout.flush()
    output = os.open(printed, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ |= {"HEAVY_TRACE": trace, "PYTHONPATH": str(ROOT)}
    sys.argv = ["lightning_styles", *arguments]
    sys.modules["__main__"] = program  # Lightning starts further ranks as this one was started
    sys.exit(program.main(list(arguments)))


def command_line(folder: Path, *words: str, **variables: str) -> subprocess.Popen[str]:
    """`python -m lightning_styles` as a user types it, or other words in the same surroundings."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    command = words if words[0] == "bash" else (sys.executable, "-m", "lightning_styles", *words)
    return subprocess.Popen(
        command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def experiment(folder: Path, iterations: int, every: int, workers: int = 0, **method: Any) -> Path:
    """Write heavy.yaml, an experiment with averaged weights and checkpoints, into a new folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"class_path": "tests.trust.heavy.Heavy", "init_args": {"iterations": "${trainer.max_steps}", **method}}
    callbacks = [
        {"class_path": "callbacks.EMA", "init_args": {"decay": 0.9}},
        {"class_path": "callbacks.Checkpoints", "init_args": {"every_n_iterations": every}},
    ]
    trainer = {"max_steps": iterations, "accelerator": "cpu", "logger": True, "enable_progress_bar": False}
    data = {"class_path": "tests.trust.heavy.HeavyData", "init_args": {"num_workers": workers}}
    content = {"model": settings, "data": data, "trainer": {**trainer, "callbacks": callbacks}}
    (folder / "heavy.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return folder


FIT = ("fit", "--config", "heavy.yaml")


def straight(folder: Path, iterations: int, **method: Any) -> str:
    """Digest of a run that nothing interrupts."""
    launch = Launch(experiment(folder, iterations, iterations, **method), *FIT)
    assert launch.end() == 0, launch.printed
    return digest(folder / "runs/heavy/version_0" / LAST)
