"""A run that ends before its last iteration is saved, says how far it came, and goes on bit by bit."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping

from datamodules.sampling import train_loader
from lightning_styles.__main__ import main
from tests.test_module import Duel

LAST = Path("runs/a/version_0/checkpoints/last.ckpt")
STOP = {"class_path": "tests.callbacks.test_completion.StopAt", "init_args": {"iterations": 3}}
EXPORTER = {"class_path": "tests.callbacks.test_completion.Exporter"}
EARLY = {"class_path": "tests.callbacks.test_completion.Soon"}
ITERATIONS = 8


class StopAt(L.Callback):
    """Asks the run to stop, as a time limit does."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations

    def on_train_batch_end(self, trainer: L.Trainer, *arguments: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step == self.iterations


class Exporter(L.Callback):
    """Writes what other tools load when the run ends."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        Path("export.txt").touch()


class Soon(EarlyStopping):
    """Sees no improvement after the first pass."""

    def __init__(self) -> None:
        super().__init__("train/near", patience=1, mode="max", min_delta=1e9, check_on_train_epoch_end=True)


class Pairs(L.LightningDataModule):
    """Passes of a few batches; a pass over nothing is empty."""

    def __init__(self, batches: int = 2) -> None:
        super().__init__()
        self.batches = batches

    def train_dataloader(self) -> Any:
        if not self.batches:
            return []
        return Few(train_loader(self.trainer, lambda i: torch.full((3,), float(i)), batch_size=2), self.batches)


class Few:
    """The batches of a loader, a few in each pass."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.batches, self.loader = batches, loader

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Any:
        self.running = getattr(self, "running", None) or iter(self.loader)
        yield from (next(self.running) for _ in range(self.batches))


class Result(Duel):
    """Writes a result when the run ends."""

    def on_train_end(self) -> None:
        Path("result.txt").write_text(str(self.trainer.global_step))

    def closing_lines(self) -> list[str]:
        return ["stylized picture: result.txt"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    return tmp_path


def experiment(*callbacks: dict[str, Any], batches: int = 2) -> list[str]:
    content = {
        "model": {"class_path": "tests.callbacks.test_completion.Result", "init_args": {"iterations": ITERATIONS}},
        "data": {"class_path": "tests.callbacks.test_completion.Pairs", "init_args": {"batches": batches}},
        "trainer": {
            "max_steps": ITERATIONS, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1,
            "callbacks": [{"class_path": "callbacks.RunRecord"}, EXPORTER, *callbacks],
        },
    }  # fmt: skip
    Path("a.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return ["fit", "--config", "a.yaml"]


def trained(folder: Path) -> dict[str, Any]:
    content = torch.load(folder / LAST, weights_only=True)
    return {"state": content["state_dict"], "optimizers": content["optimizer_states"], "step": content["global_step"]}


def flat(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in flat(tree[key])]
    if isinstance(tree, list):
        return [leaf for branch in tree for leaf in flat(branch)]
    return [tree.tolist() if isinstance(tree, torch.Tensor) else tree]


@pytest.mark.parametrize(
    ("callbacks", "flags", "done", "reason"),
    [
        ((STOP,), (), 3, "a callback ended it"),
        ((), ("--trainer.max_epochs", "2"), 4, "trainer.max_epochs is 2"),
        ((), ("--trainer.max_time", '{"microseconds": 1}'), 1, "trainer.max_time is over"),
        ((EARLY,), (), 4, "EarlyStopping ended it"),
    ],
    ids=["callback", "max_epochs", "max_time", "early_stopping"],
)
def test_an_unfinished_run_says_so_and_goes_on_exactly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    callbacks: tuple[dict[str, Any], ...],
    flags: tuple[str, ...],
    done: int,
    reason: str,
) -> None:
    (tmp_path / "straight").mkdir()
    monkeypatch.chdir(tmp_path / "straight")
    assert main(experiment()) == 0
    assert "stylized picture: result.txt" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert main([*experiment(*callbacks), *flags]) == 3
    captured = capsys.readouterr()
    message, command = captured.err.splitlines()
    assert message == (
        f"error: The run is not finished: it ended after {done} of {ITERATIONS} iterations, because {reason}; "
        f"it goes on from {LAST}."
    )
    assert "stylized" not in captured.out
    assert "Results" not in captured.out
    assert not Path("result.txt").exists()
    assert not Path("export.txt").exists()
    assert torch.load(LAST, weights_only=True)["global_step"] == done
    (launch,) = json.loads(Path("runs/a/version_0/run.json").read_text())["launches"]
    assert (launch["state"], launch["last_iteration"]) == ("stopped", done)

    experiment()  # without the callback
    assert main(shlex.split(command.removeprefix("Go on: python -m lightning_styles"))) == 0
    assert Path("result.txt").read_text() == str(ITERATIONS)
    assert flat(trained(tmp_path)) == flat(trained(tmp_path / "straight"))


def test_a_run_that_found_no_data_is_not_finished(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(experiment(batches=0)) == 3
    assert capsys.readouterr().err.startswith(
        f"error: The run is not finished: it ended after 0 of {ITERATIONS} iterations, because there is no more data; "
        "nothing is saved"
    )


def test_a_run_of_passes_is_finished_after_them(capsys: pytest.CaptureFixture[str]) -> None:
    toys = ["--model", "tests.toys.ToyStyle", "--data", "tests.toys.ToyData", "--data.length", "4"]
    passes = [*toys, "--trainer.max_steps", "-1", "--trainer.max_epochs", "2"]
    assert main([*experiment(), *passes]) == 0
    assert "Results: runs/a/version_0" in capsys.readouterr().out
    (launch,) = json.loads(Path("runs/a/version_0/run.json").read_text())["launches"]
    assert (launch["state"], launch["last_iteration"]) == ("finished", 4)
    assert main([*experiment(STOP), *passes]) == 3
    assert "3 iterations, 1 of 2 passes over the data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_epochs", "0"), ("limit_train_batches", "0"), ("limit_train_batches", "0.0"), ("max_time", "00:00:00:00")],
)
def test_what_cannot_train_is_refused_before_anything(capsys: pytest.CaptureFixture[str], key: str, value: str) -> None:
    assert main([*experiment(), f"--trainer.{key}", value]) == 1
    assert capsys.readouterr().err.startswith(f"error: trainer.{key} is 0, so nothing would be trained")
    assert not Path("runs").exists()
