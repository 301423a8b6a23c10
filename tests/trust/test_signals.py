"""Runs that are asked to stop: they finish the iteration, save, say how to go on, and go on bit by bit."""

import os
import shlex
import signal
from pathlib import Path

import pytest

from tests.trust.heavy import digest
from tests.trust.launcher import FIT, LAST, Launch, experiment, straight

ITERATIONS = 12
RUN = Path("runs/heavy/version_0")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the straight run."""
    return straight(tmp_path_factory.mktemp("straight"), ITERATIONS)


@pytest.mark.parametrize(("name", "workers"), [("SIGINT", 0), ("SIGTERM", 2), ("SIGUSR1", 0)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path: Path, expected: str, name: str, workers: int) -> None:
    folder = experiment(tmp_path / "a run", ITERATIONS, 1000, workers, pause=0.1)
    launch = Launch(folder, *FIT, "--trainer.log_every_n_steps", "5", group=True)
    launch.wait_for(lambda: len(launch.iterations) >= 3)
    signum = signal.Signals[name]
    os.killpg(launch.process.pid, signum)  # type: ignore[arg-type]  # the workers of the data loader too
    assert launch.end() == 128 + signum, launch.printed
    done = len(launch.iterations)
    assert 3 <= done < ITERATIONS
    printed = launch.printed.splitlines()
    assert f"{name}: the run ends after this iteration, saved; {name} once more ends it at once." in printed
    saved, command = printed[-2:]
    assert saved == f"Interrupted by {name} after iteration {done} of {ITERATIONS}; saved {RUN / LAST}"
    words = shlex.split(command.removeprefix("Go on: "))
    assert words[:3] == ["python", "-m", "lightning_styles"]

    again = Launch(folder, *words[3:])
    assert again.end() == 0, again.printed
    assert again.iterations == list(range(done, ITERATIONS))
    assert digest(folder / RUN / LAST) == expected
    assert not (folder / "runs/heavy/version_1").exists()


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    folder = experiment(tmp_path, ITERATIONS, 1000, pause=600)
    launch = Launch(folder, *FIT)
    launch.wait_for(lambda: launch.iterations)
    launch.send(signal.SIGINT)
    launch.wait_for(lambda: "SIGINT once more" in launch.printed)
    assert launch.process.is_alive()
    launch.send(signal.SIGINT)
    assert launch.end() == -signal.SIGINT
    assert not (folder / RUN / LAST).exists()


def test_in_the_background_only_sigterm_counts(tmp_path: Path) -> None:
    folder = experiment(tmp_path, ITERATIONS, 1000, pause=0.1)
    launch = Launch(folder, *FIT, ignored=signal.SIGINT)
    launch.wait_for(lambda: launch.iterations)
    launch.send(signal.SIGINT)
    before = len(launch.iterations)
    launch.wait_for(lambda: len(launch.iterations) >= before + 2)
    launch.send(signal.SIGTERM)
    assert launch.end() == 143
    assert (folder / RUN / LAST).is_file()


def test_the_last_iteration_is_not_interrupted(tmp_path: Path) -> None:
    folder = experiment(tmp_path, 2, 1000, pause=0.5)
    launch = Launch(folder, *FIT)
    launch.wait_for(lambda: len(launch.iterations) == 2)
    launch.send(signal.SIGTERM)
    assert launch.end() == 0
    assert (folder / RUN / LAST).is_file()


def test_a_run_that_saves_nothing_ends_at_once(tmp_path: Path) -> None:
    folder = experiment(tmp_path, ITERATIONS, 1000, pause=0.1)
    launch = Launch(folder, *FIT, "--trainer.callbacks", "[]", "--trainer.enable_checkpointing", "false")
    launch.wait_for(lambda: len(launch.iterations) >= 2)
    launch.send(signal.SIGTERM)
    assert launch.end() == -signal.SIGTERM


@pytest.mark.slow
def test_ranks_agree_when_one_is_signalled(tmp_path: Path) -> None:
    ranks = ("--trainer.devices", "2", "--trainer.strategy", "ddp_find_unused_parameters_true")
    plain = experiment(tmp_path / "straight", ITERATIONS, 1000)
    whole = Launch(plain, *FIT, *ranks)
    assert whole.end() == 0, whole.printed

    folder = experiment(tmp_path / "stopped", ITERATIONS, 1000, pause=0.3)
    launch = Launch(folder, *FIT, *ranks)
    launch.wait_for(lambda: launch.iterations)
    pid = launch.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    assert launch.end() == 143, launch.printed
    assert 0 < len(launch.iterations) < ITERATIONS

    again = Launch(folder, *FIT, *ranks, "--ckpt_path", "last")
    assert again.end() == 0, again.printed
    assert digest(folder / RUN / LAST) == digest(plain / RUN / LAST)
