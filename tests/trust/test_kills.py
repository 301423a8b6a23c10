"""Runs that are killed without warning, or whose disk is full: nothing is lost but the last few iterations."""

import random
import signal
import time
from pathlib import Path

import pytest
import torch

from lightning_styles import runs
from tests.trust.heavy import digest
from tests.trust.launcher import FIT, LAST, Launch, command_line, experiment, straight

KILLS, ITERATIONS, EVERY = 20, 300, 2
HEAVY = {"megabytes": 16.0}
RUN = Path("runs/heavy/version_0")


def whole_iterations(checkpoint: Path) -> int:
    """Iterations in a checkpoint, every tensor of which is read."""
    if not checkpoint.is_file():
        return 0
    content = torch.load(checkpoint, weights_only=True)
    assert content["state_dict"]["ballast"].sum() == content["global_step"]
    return content["global_step"]


def kill_somewhere(launch: Launch, folder: Path, chance: random.Random, while_writing: bool) -> None:
    """SIGKILL after some iterations, or where a checkpoint has just begun to be written."""
    enough = chance.randint(1, 8)
    launch.wait_for(lambda: len(launch.iterations) >= enough)
    if while_writing:
        launch.wait_for(lambda: list(folder.glob(".last.ckpt.*.tmp")))
    time.sleep(chance.uniform(0, 0.01 if while_writing else 0.05))
    launch.send(signal.SIGKILL)
    assert launch.end() == -signal.SIGKILL


@pytest.mark.slow
def test_twenty_kills_end_where_the_straight_run_ends(tmp_path: Path) -> None:
    chance = random.Random(0)
    expected = straight(tmp_path / "straight", ITERATIONS, **HEAVY)
    folder = experiment(tmp_path / "killed", ITERATIONS, EVERY, **HEAVY)
    checkpoint = folder / RUN / LAST
    half_written = done = 0
    for kill in range(KILLS):
        launch = Launch(folder, *FIT, "--ckpt_path", "last")
        kill_somewhere(launch, checkpoint.parent, chance, while_writing=kill % 2 == 1)
        assert launch.iterations[0] == done  # it went on from the last whole checkpoint
        assert done <= (now := whole_iterations(checkpoint)) <= done + len(launch.iterations)
        assert now % EVERY == 0
        done = now
        leftovers = list(checkpoint.parent.glob(".last.ckpt.*.tmp"))
        assert len(leftovers) <= 1  # those of earlier kills are gone
        half_written += len(leftovers)
        found = runs.newest_checkpoint(folder / "runs")
        assert found == (checkpoint if done else None)
    assert half_written >= 3

    last = Launch(folder, *FIT, "--ckpt_path", str(RUN))
    assert last.end() == 0, last.printed
    assert f"{done} iterations done." in last.printed
    assert digest(checkpoint) == expected
    assert [path.name for path in checkpoint.parent.iterdir()] == ["last.ckpt"]
    assert [path.name for path in (folder / "runs/heavy").iterdir()] == ["version_0"]
    print(f"{KILLS} kills, {half_written} of them while a checkpoint was written; {expected}")


@pytest.mark.slow
def test_the_command_line_goes_on_after_kills(tmp_path: Path) -> None:
    expected = straight(tmp_path / "straight", 60)
    folder = experiment(tmp_path / "killed", 60, EVERY, pause=0.02)
    trace = tmp_path / "trace.txt"
    for kill in range(2):
        process = command_line(folder, *FIT, "--ckpt_path", "last", HEAVY_TRACE=str(trace))
        while not trace.is_file() or len(trace.read_text().split()) < 10 * (kill + 1):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    process = command_line(folder, *FIT, "--ckpt_path", "last")
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert f"From {RUN / LAST}, " in output
    assert digest(folder / RUN / LAST) == expected


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    folder = experiment(tmp_path / "full disk", 4, EVERY, megabytes=2.0)
    first = Launch(folder, *FIT)
    assert first.end() == 0, first.printed
    before = digest(folder / RUN / LAST)

    second = Launch(folder, *FIT, "--ckpt_path", "last", "--trainer.max_steps", "8", limit=1_000_000)
    assert second.end() == 1
    error = second.printed.splitlines()[-1]
    path = RUN / LAST
    assert error.startswith(f"error: The checkpoint {path} could not be written: the file is too large (")
    assert "2.0 MB needed, " in error
    assert error.endswith(f"; {path} of the save before is kept. Make room, then go on from there.")
    assert second.iterations == [4, 5]
    assert digest(folder / RUN / LAST) == before
    assert [path.name for path in (folder / RUN / "checkpoints").iterdir()] == ["last.ckpt"]

    third = Launch(folder, *FIT, "--ckpt_path", "last", "--trainer.max_steps", "8")
    assert third.end() == 0, third.printed
    assert digest(folder / RUN / LAST) == straight(tmp_path / "straight", 8, megabytes=2.0)


def test_config_files_are_whole_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_styles.trainer import write_whole

    write_whole(tmp_path / "config.yaml", "old")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "config.yaml", "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
