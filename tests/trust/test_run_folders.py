"""Flags win over checkpoints, and no launch takes or harms the files of another run."""

import hashlib
import json
import os
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.plugins.environments import SLURMEnvironment

from lightning_styles import launches, runs
from lightning_styles.__main__ import main
from lightning_styles.errors import UserError

TOY: dict[str, Any] = {
    "model": {"class_path": "tests.test_module.Duel", "init_args": {"iterations": 4}},
    "data": {"class_path": "tests.test_module.Numbers"},
    "trainer": {"max_steps": 4, "max_epochs": -1, "accelerator": "cpu", "enable_progress_bar": False},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty working folder with two experiments, a.yaml and b.yaml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    for name in ("a.yaml", "b.yaml"):
        Path(name).write_text(yaml.safe_dump(TOY), encoding="utf-8")


def fit(experiment: str, *arguments: str) -> int:
    return main(["fit", "--config", f"{experiment}.yaml", *arguments])


def last(experiment: str, folder: str = "version_0") -> Path:
    return Path("runs") / experiment / folder / "checkpoints" / "last.ckpt"


def done(checkpoint: Path) -> int:
    return torch.load(checkpoint, weights_only=True)["global_step"]


def hashes(folder: str) -> dict[str, str]:
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---- flags and files win, what is another model is refused


def test_files_and_flags_win_and_every_differing_key_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("a") == 0
    Path("more.yaml").write_text("trainer: {max_steps: 6, gradient_clip_val: null, log_every_n_steps: 5}\n")
    capsys.readouterr()
    arguments = ["--config", "more.yaml", "--ckpt_path", "last", "--model.iterations", "6", "--data.batch_size", "3"]
    assert fit("a", *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "From runs/a/version_0/checkpoints/last.ckpt, 4 iterations done."
    assert [line for line in lines if line.startswith("  changed")] == [
        "  changed  model.init_args.iterations: 6 (checkpoint: 4)",
        "  changed  data.init_args.batch_size: 3 (checkpoint: 2)",
        "  changed  trainer.max_steps: 6 (checkpoint: 4)",
        "  changed  trainer.log_every_n_steps: 5 (checkpoint: None)",
    ]
    own = torch.load(last("a"), weights_only=True)["lightning_styles"]
    assert (own["iterations"], own["batch_size"], own["init_args"]["iterations"]) == (6, 3, 6)
    assert done(last("a")) == 6


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model.base", "b" * 64], ["trained on base frozen (aaaaaaaaaaaa)", "this run has frozen (bbbbbbbbbbbb)"]),
        (["--model.width", "4"], ["4 tensors differ, first critic.bias: [3] in the checkpoint, [4] here"]),
        (
            ["--model.class_path", "tests.toys.ToyStyle"],
            ["last.ckpt holds a tests.test_module.Duel, the config asks for tests.toys.ToyStyle."],
        ),
    ],
)
def test_another_base_architecture_or_method_is_refused_with_both_names(
    capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    assert fit("a") == 0
    before = last("a").read_bytes()
    assert fit("a", "--ckpt_path", "last", "--trainer.max_steps", "6", *arguments) == 1
    err = capsys.readouterr().err
    assert all(part in err for part in parts), err
    assert last("a").read_bytes() == before


# ---- folders


@pytest.mark.parametrize("logger", ["null", "false"])
def test_launches_of_one_experiment_never_share_a_folder(logger: str) -> None:
    assert fit("a", "--trainer.logger", logger) == 0
    before = hashes("runs")
    assert str(last("a")) in before
    assert fit("a", "--trainer.logger", logger, "--model.width", "5") == 0
    assert before.items() <= hashes("runs").items()
    assert done(last("a", "version_1")) == 4


def test_launches_at_the_same_time_each_claim_a_folder(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: runs.claim_folder(tmp_path / "x", "fit"), range(24)))
    assert sorted(names) == sorted(f"version_{n}" for n in range(24))
    (tmp_path / "x" / "version_3" / "file").touch()
    for name in names:
        runs.drop_empty(tmp_path / "x" / name)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["version_3"]


def test_going_on_from_another_experiment_leaves_that_one_as_it_was() -> None:
    assert fit("a") == 0
    before = hashes("runs/a")
    assert fit("b", "--ckpt_path", str(last("a")), "--trainer.max_steps", "6") == 0
    assert hashes("runs/a") == before
    assert done(last("b")) == 6


def test_last_is_of_this_experiment_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("a") == 0
    Path("runs/b").mkdir()
    for stray in ("last.ckpt", "hpc_ckpt_7.ckpt"):
        shutil.copy(last("a"), Path("runs/b") / stray)
    capsys.readouterr()
    assert fit("b", "--ckpt_path", "last") == 0
    assert capsys.readouterr().out.startswith("No checkpoint in runs/b yet: starting anew.\n")
    shutil.copy(last("a"), "runs/b/version_0/hpc_ckpt_9.ckpt")
    assert runs.find_checkpoint("last", Path("runs/b")) == last("b")
    assert runs.find_checkpoint("runs/b/version_0") == last("b")


def test_last_is_the_run_that_was_launched_last_whatever_the_times_of_files(capsys: pytest.CaptureFixture[str]) -> None:
    for steps in ("2", "3"):
        assert fit("a", "--trainer.max_steps", steps) == 0
    touch_into_the_future(Path("runs/a/version_0"))
    assert runs.find_checkpoint("last", Path("runs/a")) == last("a", "version_1")
    assert fit("a", "--run", "version_0") == 0  # an older run goes on
    assert runs.find_checkpoint("last", Path("runs/a")) == last("a", "version_0")
    shutil.copytree("runs/a/version_0", "runs/a/version_7")
    touch_into_the_future(Path("runs/a/version_7"))
    assert runs.find_checkpoint("last", Path("runs/a")) == last("a", "version_0")
    for folder in Path("runs/a").iterdir():  # as runs were before launches were counted
        (folder / "launch.json").unlink()
    assert runs.find_checkpoint("last", Path("runs/a")) == last("a", "version_7")
    started = {"version_0": "2026-01-02", "version_1": "2026-01-03", "version_7": "2026-01-01"}
    for name, day in started.items():
        Path("runs/a", name, "run.json").write_text(json.dumps({"launches": [{"started": day}]}))
    assert runs.find_checkpoint("last", Path("runs/a")) == last("a", "version_1")
    for damage in ("", "[]", '{"launches": 3}', "[" * 100_000, '{"number": "x"}'):
        for name in ("launch.json", "run.json"):
            Path("runs/a/version_1", name).write_text(damage)
    assert runs.find_checkpoint("last", Path("runs/a")) == last("a", "version_0")


def touch_into_the_future(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (4e9, 4e9))


def test_the_newest_checkpoint_of_a_run_has_the_most_iterations(caplog: pytest.LogCaptureFixture) -> None:
    settings = "init_args: {every_n_train_steps: 1, save_top_k: -1}"
    saver = f"class_path: lightning.pytorch.callbacks.ModelCheckpoint, {settings}"
    assert fit("a", "--trainer.callbacks", f"[{{{saver}}}]") == 0
    folder = Path("runs/a/version_0/checkpoints")
    assert len(list(folder.iterdir())) == 4
    os.utime(folder / "epoch=0-step=2.ckpt", (4e9, 4e9))
    assert runs.find_checkpoint("last", Path("runs/a")) == folder / "epoch=0-step=4.ckpt"
    (folder / "epoch=0-step=4.ckpt").write_bytes(b"PK")
    assert runs.find_checkpoint("runs/a/version_0") == folder / "epoch=0-step=3.ckpt"
    assert "epoch=0-step=4.ckpt cannot be read as a checkpoint" in caplog.text


# ---- two launches at once


def test_a_run_folder_belongs_to_one_launch_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("a", "--trainer.max_steps", "2") == 0
    before = hashes("runs")
    capsys.readouterr()
    for words in (["--run", "version_0"], ["--ckpt_path", "last"], ["--ckpt_path", str(last("a"))]):
        with launches.holding(Path("runs/a/version_0")):
            held = hashes("runs")
            assert fit("a", *words) == 1
            (message,) = capsys.readouterr().err.splitlines()
            assert hashes("runs") == held
        who = f"error: Into runs/a/version_0 writes process {os.getpid()} on {socket.gethostname()} since 20"
        assert message.startswith(who)
        assert message.endswith("without --run and --ckpt_path a launch has a folder of its own.")
    changed = {name for name, digest in hashes("runs").items() if before.get(name) != digest}
    assert changed == {"runs/a/version_0/launch.json"}
    with launches.holding(Path("runs/a/version_0")):
        assert fit("a") == 0  # a run of its own
    assert fit("a", "--run", "version_0") == 0
    assert done(last("a")) == done(last("a", "version_1")) == 4


def test_of_two_launches_into_a_new_folder_one_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it waits"))
    with launches.holding(tmp_path / "job_7"):
        with pytest.raises(UserError, match="two launches must not write there at once"):
            launches.holding(tmp_path / "job_7").__enter__()
        assert launches.read_launch(tmp_path / "job_7")["pid"] == os.getpid()
    assert list((tmp_path / "job_7").iterdir()) == []


def test_what_a_killed_launch_leaves_behind_is_waited_for_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, waited = tmp_path / "version_0", list[float]()
    gone = {"number": 3, "pid": 2**22 + 1, "host": socket.gethostname(), "since": "then", "ended": None}
    with launches.holding(folder), monkeypatch.context() as patch:  # the lock of a worker that outlives its run
        (folder / "launch.json").write_text(json.dumps(gone))
        patch.setattr(launches, "PATIENCE", 0.5)
        patch.setattr(launches.time, "sleep", lambda seconds, sleep=time.sleep: waited.append(seconds) or sleep(0.1))
        with pytest.raises(UserError, match=f"process {2**22 + 1} on "):
            launches.holding(folder).__enter__()
        (folder / "file").touch()
    assert waited
    for record in (gone, {**gone, "host": "elsewhere"}, {"pid": "x", "number": None}):
        (folder / "launch.json").write_text(json.dumps(record))
        with launches.holding(folder):
            pass
    (line,) = caplog.messages
    assert line.startswith(f"Into {folder} writes process {2**22 + 1} on elsewhere since then; if it still runs, end")


def test_a_launch_that_died_does_not_stay_running() -> None:
    record = ["--trainer.callbacks+=callbacks.RunRecord"]
    assert fit("a", *record, "--trainer.max_steps", "2") == 0
    path = Path("runs/a/version_0/run.json")
    path.write_text(path.read_text().replace('"finished"', '"running"'))
    assert fit("a", *record, "--run", "version_0") == 0
    assert [launch["state"] for launch in json.loads(path.read_text())["launches"]] == ["killed", "finished"]


def test_what_lightnings_requeue_left_behind_is_not_taken_for_this_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("a") == 0
    for place in (".", "runs", "runs/a"):
        shutil.copy(last("a"), Path(place) / "hpc_ckpt_1.ckpt")
    monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
    for key, value in {"NTASKS": "1", "JOB_NAME": "x", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    capsys.readouterr()
    assert fit("a", "--trainer.max_steps", "3") == 0
    assert "iterations 0 to 3" in capsys.readouterr().out
    assert done(last("a", "version_1")) == 3


def test_nothing_left_to_do_is_said_and_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("a") == 0
    before = hashes("runs")
    assert fit("b", "--ckpt_path", str(last("a"))) == 0
    assert "Nothing to do: 4 of 4 iterations are done." in capsys.readouterr().out
    assert hashes("runs") == before
    assert not Path("runs/b").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "holds nothing"),
        (b"- 1", "holds a list"),
        (b"\xff\xfe", "no UTF-8 text"),
        (b"model: 3", "model is 3, expected a mapping or nothing"),
        (b"trainer: [1]", "trainer is a list of 1"),
        (b"data: 2026-13-45", "not valid YAML: month must be in 1..12"),
        (b"data: " + b"9" * 5000, "not valid YAML: Exceeds the limit"),
        (b"a: &a [*a]", "more than 100000 values"),
        (b"model: !!python/object/apply:os.mkdir [code_ran]", "could not determine a constructor"),
    ],
)
def test_a_record_of_the_run_that_was_changed_is_named(
    text: bytes, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, record = last("a"), Path("runs/a/version_0/config.yaml")
    saved.parent.mkdir(parents=True)
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6", "global_step": 4}, saved)
    record.write_bytes(text)
    before = hashes("runs")
    capsys.readouterr()
    assert fit("a", "--trainer.logger", "true", "--ckpt_path", "last", "--trainer.max_steps", "6") == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(f"error: {record.absolute() if str(record.absolute()) in message else record}")
    assert says in message
    assert "remove it to go on without comparing the settings" in message
    assert hashes("runs") == before
    assert not Path("code_ran").exists()
