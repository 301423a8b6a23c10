"""Training commands: layered configs, short errors, run folders, resuming."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_styles import runs
from lightning_styles.__main__ import main
from lightning_styles.cli import parse_only

ROOT = Path(__file__).resolve().parent.parent
TOY: dict[str, Any] = {
    "vars": {"lr": 0.25, "n": 4},
    "model": {"class_path": "tests.toys.ToyStyle", "init_args": {"learning_rate": "${vars.lr}"}},
    "data": {"class_path": "tests.toys.ToyData"},
    "trainer": {
        "max_steps": "${vars.n}",
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "callbacks": [{"class_path": "tests.toys.Greeter", "init_args": {"message": "first", "every": 7}}],
    },
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with configs/tiny/toy.yaml in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    write("configs/tiny/toy.yaml", TOY)
    return tmp_path


def write(name: str, content: dict[str, Any] | str) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return name


def toy(*arguments: str, command: str = "fit") -> list[str]:
    return [command, "--config", "configs/tiny/toy.yaml", *arguments]


# ---- configs


def test_flags_and_variables_win_over_the_file() -> None:
    config = parse_only(toy("--vars.lr", "0.5", "--trainer.max_steps", "9"))
    assert config["model"]["init_args"]["learning_rate"] == 0.5
    assert config["trainer"]["max_steps"] == 9


def test_a_later_file_changes_what_refers_to_its_variables() -> None:
    config = parse_only(toy("--config", write("two.yaml", {"vars": {"lr": 0.125, "n": 8}})))
    assert config["model"]["init_args"]["learning_rate"] == 0.125
    assert config["trainer"]["max_steps"] == 8


def test_a_later_file_keeps_the_variables_that_it_does_not_name() -> None:
    two = {"vars": {"lr": 0.125, "new": 5}, "model": {"init_args": {"size": "${vars.new}"}}}
    config = parse_only(toy("--config", write("two.yaml", two)))
    assert config["vars"] == {"lr": 0.125, "n": 4, "new": 5}
    assert config["model"]["init_args"]["size"] == 5
    assert config["trainer"]["max_steps"] == 4


def test_a_later_list_of_callbacks_keeps_nothing_of_the_earlier() -> None:
    entry = {"class_path": "tests.toys.Greeter", "init_args": {"message": "second"}}
    config = parse_only(toy("--config", write("two.yaml", {"trainer": {"callbacks": [entry]}})))
    assert config["trainer"]["callbacks"] == [
        {"class_path": "tests.toys.Greeter", "init_args": {"message": "second", "every": 1}}
    ]


def test_callbacks_can_be_appended() -> None:
    config = parse_only(toy("--trainer.callbacks+=tests.toys.Greeter", "--trainer.callbacks.message", "second"))
    assert [entry["init_args"]["message"] for entry in config["trainer"]["callbacks"]] == ["first", "second"]


def test_a_callback_may_be_appended_before_the_config() -> None:
    words = ["--trainer.callbacks+=tests.toys.Greeter", "--trainer.callbacks.message", "second"]
    config = parse_only(["fit", *words, "--config", "configs/tiny/toy.yaml"])
    assert [entry["init_args"]["message"] for entry in config["trainer"]["callbacks"]] == ["first", "second"]


def test_one_callback_is_a_list_of_one() -> None:
    one = {"class_path": "tests.toys.Greeter", "init_args": {"message": "alone"}}
    config = parse_only(toy("--config", write("two.yaml", {"trainer": {"callbacks": one}})))
    assert config["trainer"]["callbacks"] == [{**one, "init_args": {"message": "alone", "every": 1}}]


@pytest.mark.parametrize("text", ["1e3", "null", "- x", "[1]", "1.5e-3", "on", "'q\""])
def test_a_text_survives_parsing_saving_and_parsing_again(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy("--model.base", text, "--print_config")) == 0
    printed = write("printed.yaml", capsys.readouterr().out)
    for words in (toy("--model.init_args.base", text), ["fit", "--config", printed]):
        base = parse_only(words)["model"]["init_args"]["base"]
        assert base == (None if text == "null" else text)  # null is None where that is possible


def test_a_text_that_looks_like_a_comment_or_nothing_is_a_text() -> None:
    for text in ("#x", "~"):
        config = parse_only(toy("--model.base", text, "--trainer.default_root_dir", text))
        folder = str(Path(text).expanduser())
        assert (config["model"]["init_args"]["base"], config["trainer"]["default_root_dir"]) == (text, folder)


def test_printed_config_runs_again_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy("--vars.lr", "0.5", "--print_config")) == 0
    printed = capsys.readouterr().out
    assert main(["fit", "--config", write("printed.yaml", printed), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed)["model"]["init_args"]["learning_rate"] == 0.5


def test_shipped_configs_are_found_from_any_folder() -> None:
    from lightning_styles.parser import find_config

    for shipped in (ROOT / "configs").glob("*/*.yaml"):
        assert find_config(str(shipped.relative_to(ROOT))) == shipped


# ---- mistakes


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (
            ["--model.init_args.learning_rat", "3"],
            2,
            "error: model: in tests.toys.ToyStyle: Option 'learning_rat' is not accepted\n"
            "hint: 'learning_rat': did you mean 'learning_rate'?\n",
        ),
        (
            ["--trainer.max_step", "3"],
            2,
            "error: unrecognized arguments: --trainer.max_step 3\n"
            "hint: 'trainer.max_step': did you mean 'trainer.max_steps'?\n",
        ),
        (["--trainer.max_steps", "abc"], 2, "error: trainer.max_steps: expected int, got abc\n"),
        (
            ["--model.init_args.size", "x"],
            2,
            "error: model: in tests.toys.ToyStyle: size: expected int, got x\n",
        ),
        (
            ["--vars.lr", "fast"],
            2,
            "error: model: in tests.toys.ToyStyle: learning_rate: expected float, got fast\n",
        ),
        (
            ["--model.class_path", "tests.toys.ToyStile"],
            2,
            "error: model: in tests.toys.ToyStile: module 'tests.toys' has no attribute 'ToyStile'\n"
            "hint: 'tests.toys.ToyStile': did you mean 'tests.toys.ToyStyle'?\n",
        ),
        (
            ["--config", "configs/tiny/toi.yaml"],
            1,
            "error: There is no config file configs/tiny/toi.yaml: did you mean configs/tiny/toy.yaml?\n",
        ),
        (
            ["--trainer.devices", "x"],
            1,
            "error: The trainer refuses its settings: `devices` selected with `CPUAccelerator` should be an int > 0.\n",
        ),
        (
            ["--trainer.callbacks", "callbacks.Prevews"],
            2,
            "error: trainer.callbacks: expected list; "
            "in callbacks.Prevews: module 'callbacks' has no attribute 'Prevews'\n"
            "hint: 'callbacks.Prevews': did you mean 'callbacks.Previews'?\n",
        ),
        (
            ["--ckpt_path", "nope.ckpt"],
            1,
            "error: There is no checkpoint nope.ckpt: expected a .ckpt file, a run folder, or 'last'.\n",
        ),
        (
            ["--model.init_args.fail", "true"],
            1,
            "error: the toy was told to fail; set model.init_args.fail to false.\n",
        ),
    ],
)
def test_a_mistake_is_answered_briefly(
    arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(toy(*arguments)) == code
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("content", "code", "expected"),
    [
        ("model:\n  class_path: [tests\ntrainer: {}\n", 1, "error: wrong.yaml:3:8: not valid YAML: expected"),
        ("- 1\n", 1, "error: wrong.yaml holds a list, expected keys such as model: and trainer:."),
        (
            "model: {init_args: {learning_rate: '${vars.nope}'}}\n",
            1,
            "error: The config refers to ${vars.nope}, but there is no key vars.nope.\n",
        ),
        (
            "trainer: {max_stepz: 1}\n",
            2,
            "error: there is no key 'trainer.max_stepz'\n"
            "hint: 'trainer.max_stepz': did you mean 'trainer.max_steps'?\n",
        ),
    ],
)
def test_a_wrong_file_is_answered_briefly(
    content: str, code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(toy("--config", write("wrong.yaml", content))) == code
    err = capsys.readouterr().err
    assert err.startswith(expected)
    assert err.count("\n") <= 2


def test_missing_weights_are_named_before_anything_is_built(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy("--model.init_args.base", "/no/such/file")) == 1
    assert "'/no/such/file'" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert main(toy("--trainer.accelerator", "gpu")) == 1
    assert capsys.readouterr().err.startswith("error: trainer.accelerator is gpu, but PyTorch sees no GPU")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main(toy("--trainer.accelerator", "auto", "--trainer.devices", "4")) == 1
    assert capsys.readouterr().err.startswith("error: trainer.devices is 4, but PyTorch sees 2 GPU(s)")


def test_a_mistake_found_by_a_constructor(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy("--data.class_path", "datamodules.Pictures", "--data.init_args.images", "no/photos")) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: 'no/photos'")
    assert err.count("\n") == 1


# ---- runs


def test_each_launch_has_its_own_folder_with_its_config() -> None:
    assert main(toy()) == 0
    assert main(toy("--vars.lr", "0.5")) == 0
    for version, rate in ((0, 0.25), (1, 0.5)):
        config = yaml.safe_load(Path(f"runs/tiny_toy/version_{version}/config.yaml").read_text("utf-8"))
        assert config["model"]["init_args"]["learning_rate"] == rate
        assert Path(f"runs/tiny_toy/version_{version}/checkpoints/last.ckpt").is_file()


def test_fit_says_what_runs_and_where_the_results_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy()) == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "fit: ToyStyle on 1 x cpu, global batch 2 = devices 1 x batch 2 x accumulate 1, iterations 0 to 4",
        "Run folder: runs/tiny_toy/version_0  (watch: tensorboard --logdir runs/tiny_toy)",
        "Code from outside this project runs: tests.toys.Greeter, tests.toys.ToyData, tests.toys.ToyStyle",
        "Results: runs/tiny_toy/version_0",
        "Checkpoint: runs/tiny_toy/version_0/checkpoints/last.ckpt",
        "Toy: nothing else to see.",
    ]
    assert captured.err == ""


def test_flags_win_over_the_checkpoint_and_differences_are_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(toy()) == 0
    capsys.readouterr()
    assert main(toy("--ckpt_path", "last", "--vars.lr", "0.5", "--trainer.max_steps", "6")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[:3] == [
        "From runs/tiny_toy/version_0/checkpoints/last.ckpt, 4 iterations done.",
        "  changed  model.init_args.learning_rate: 0.5 (checkpoint: 0.25)",
        "  changed  trainer.max_steps: 6 (checkpoint: 4)",
    ]
    run = Path("runs/tiny_toy/version_0")
    assert yaml.safe_load((run / "config.yaml").read_text("utf-8"))["trainer"]["max_steps"] == 6
    before = yaml.safe_load((run / "config_before_resume_0.yaml").read_text("utf-8"))
    assert before["trainer"]["max_steps"] == 4
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["global_step"] == 6
    assert content["lightning_styles"]["init_args"]["learning_rate"] == 0.5
    assert not Path("runs/tiny_toy/version_1").exists()


def test_a_finished_run_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy()) == 0
    capsys.readouterr()
    assert main(toy("--ckpt_path", "runs/tiny_toy/version_0")) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "Nothing to do: 4 of 4 iterations are done.",
        "To go on: --ckpt_path runs/tiny_toy/version_0/checkpoints/last.ckpt --trainer.max_steps 8",
    ]


def test_last_starts_anew_when_there_is_nothing_yet(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy("--ckpt_path", "last")) == 0
    assert capsys.readouterr().out.startswith("No checkpoint in runs/tiny_toy yet: starting anew.\n")


def test_another_method_than_the_checkpoint_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy()) == 0
    arguments = ("--ckpt_path", "last", "--model.class_path", "tests.toys.Preparing")
    assert main(toy(*arguments)) == 1
    assert "holds a tests.toys.ToyStyle, the config asks for tests.toys.Preparing." in capsys.readouterr().err


def test_a_checkpoint_that_would_run_code_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "path": Path("x")}, "odd.ckpt")
    assert main(toy("--ckpt_path", "odd.ckpt")) == 1
    assert "opening it could run code" in capsys.readouterr().err


def test_a_broken_checkpoint_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("cut.ckpt").write_bytes(b"PK\x03\x04 cut short")
    assert main(toy("--ckpt_path", "cut.ckpt")) == 1
    assert capsys.readouterr().err.startswith("error: cut.ckpt cannot be read as a checkpoint")


def test_test_and_predict_take_a_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy()) == 0
    saved = ["--config", "runs/tiny_toy/version_0/config.yaml", "--ckpt_path", "runs/tiny_toy/version_0"]
    assert main(["test", *saved]) == 0
    assert "test/loss" in capsys.readouterr().out
    assert main(["predict", *saved]) == 0
    assert Path("runs/tiny_toy/test_0").is_dir()


def test_prepare_runs_the_methods_own_or_says_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy(command="prepare")) == 0
    assert capsys.readouterr().out.startswith("ToyStyle has nothing to prepare: run fit.\n")
    assert main(toy("--model.class_path", "tests.toys.Preparing", command="prepare")) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        "model: tests.toys.Preparing in the place of tests.toys.ToyStyle keeps learning_rate of the earlier settings.",
        "prepared with ToyData",
    ]


def test_interrupting_ends_with_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(toy("--trainer.callbacks+=tests.toys.Interrupt")) == 130
    assert capsys.readouterr().err.endswith("interrupted\n")


def test_slurm_requeue_of_lightning_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning.pytorch.plugins.environments import SLURMEnvironment

    from lightning_styles.cli import StylesCLI

    seen = []
    monkeypatch.setattr(SLURMEnvironment, "detect", staticmethod(lambda: True))
    monkeypatch.setattr(StylesCLI, "_run_subcommand", lambda cli, name: seen.append(cli.trainer))
    for key, value in {"NTASKS": "1", "JOB_NAME": "x", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    assert main(toy("--trainer.devices", "1")) == 0
    environment = seen[0]._accelerator_connector.cluster_environment
    assert isinstance(environment, SLURMEnvironment)
    assert environment.auto_requeue is False


def test_parsing_a_config_imports_no_model_library() -> None:
    code = (
        "import sys, lightning.pytorch; before = set(sys.modules)\n"
        "from lightning_styles.__main__ import main\n"
        "main(['fit', '--config', sys.argv[1], '--print_config'])\n"
        "heavy = {'diffusers', 'transformers', 'peft', 'open_clip', 'lpips'}\n"
        "print(sorted(heavy & set(sys.modules) - before), file=sys.stderr)"
    )
    config = str(Path("configs/tiny/toy.yaml").absolute())
    run = subprocess.run([sys.executable, "-c", code, config], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stderr.splitlines()[-1] == "[]"


# ---- run folders


def test_run_name() -> None:
    assert runs.run_name(Path("configs/tiny/sms.yaml"), "x.Y") == "tiny_sms"
    assert runs.run_name(Path("/a/configs/sms_ghibli.yaml"), "x.Y") == "sms_ghibli"
    assert runs.run_name(Path("mine.yaml"), "x.Y") == "mine"
    assert runs.run_name(Path("runs/tiny_sms/version_3/config.yaml"), "x.Y") == "tiny_sms"
    assert runs.run_name(None, "lightning_styles.methods.SMS") == "sms"


def test_next_folder_leaves_gaps_alone(tmp_path: Path) -> None:
    for name in ("version_0", "version_9", "test_2", "version_old"):
        (tmp_path / name).mkdir()
    assert runs.next_folder(tmp_path, "fit") == "version_10"
    assert runs.next_folder(tmp_path, "test") == "test_3"
    assert runs.next_folder(tmp_path, "predict") == "predict_0"


def test_differences_name_each_leaf() -> None:
    before = {"model": {"a": 1, "list": [1, 2], "gone": 3, "none": None}, "data": {"size": (2, 3)}}
    now = {"model": {"a": 1, "list": [1, 5], "new": 4}, "data": {"size": [2, 3]}, "trainer": {"x": 1}}
    assert runs.differences(before, now) == [
        "model.list.1: 5 (checkpoint: 2)",
        "model.gone: not set (checkpoint: 3)",
        "model.new: 4 (checkpoint: not set)",
    ]


@pytest.mark.slow
def test_two_processes_write_one_run_and_one_set_of_lines() -> None:
    command = [sys.executable, "-m", "lightning_styles", *toy("--trainer.devices", "2")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert "fit: ToyStyle on 2 x cpu, global batch 4 = devices 2 x batch 2 x accumulate 1" in lines[0]
    assert sum(line.startswith("Results: ") for line in lines) == 1
    assert [folder.name for folder in Path("runs/tiny_toy").iterdir()] == ["version_0"]
