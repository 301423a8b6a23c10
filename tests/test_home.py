"""`~` is put in its place once, for all paths of words and config files alike, and nowhere else."""

import sys
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

from lightning_styles.__main__ import main
from lightning_styles.cli import parse_only
from lightning_styles.home import at_home, word_at_home


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder beside the working folder."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    return tmp_path / "home"


def test_words(home: Path) -> None:
    for word in ("~/x", "--out=~/x", "--vars.output_dir=~/x"):
        assert word_at_home(word) == word.replace("~", str(home))
    for word in ("~", "~ 5 %", "a~/x", "~100 cats", "--model.style=~", "~nobody_of_this_name/x", "x\n~/y", ""):
        assert word_at_home(word) == word


def test_values(home: Path) -> None:
    tree = Namespace(output_dir="~", style="~", path=Path("~/a"), more=[{"images": ["~/b", "b"]}], n=3)
    assert at_home(tree) == Namespace(
        output_dir=str(home), style="~", path=home / "a", more=[{"images": [f"{home}/b", "b"]}], n=3
    )


def experiment(folder: str) -> list[str]:
    content = {
        "vars": {"base": folder},
        "model": {"class_path": "tests.test_module.Duel", "init_args": {"iterations": 2}},
        "data": {"class_path": "tests.test_module.Numbers"},
        "trainer": {
            "max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "default_root_dir": "${vars.base}/runs",
            "callbacks": [{"class_path": "callbacks.RunRecord"}],
        },
    }  # fmt: skip
    Path("a.yaml").write_text(yaml.safe_dump(content))
    return ["fit", "--config", "a.yaml"]


@pytest.mark.parametrize("words", [(), ("--vars.base", "~/x"), ("--trainer.default_root_dir=~/x/runs",)])
def test_everything_of_a_run_is_below_the_home_folder(home: Path, words: tuple[str, ...]) -> None:
    config = experiment("elsewhere" if words else "~/x")
    assert main([*config, *words]) == 0
    assert [path.name for path in Path().iterdir()] == ["a.yaml"]
    run = home / "x/runs/a/version_0"
    assert {"config.yaml", "run.json", "checkpoints"} <= {path.name for path in run.iterdir()}
    again = [*config, *words, "--ckpt_path", "~/x/runs/a/version_0", "--trainer.max_steps", "3"]
    assert main(again) == 0
    assert [path.name for path in (home / "x/runs/a").iterdir()] == ["version_0"]


def test_parsing_alone_does_it_too(home: Path) -> None:
    assert parse_only(experiment("~/x"))["trainer"]["default_root_dir"] == f"{home}/x/runs"
