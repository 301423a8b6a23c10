"""check, convert and stylize."""

import errno
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from lightning_styles.__main__ import main
from lightning_styles.commands import check
from lightning_styles.devices import trainer_arguments
from lightning_styles.errors import UserError
from lightning_styles.required_files import class_paths
from lightning_styles.trained import build
from tests.toys import ToyPainter

TOY: dict[str, Any] = {
    "model": {"class_path": "tests.toys.ToyPainter", "init_args": {"shift": 0.5}},
    "data": {"class_path": "tests.toys.ToyData"},
    "trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False},
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with toy.yaml in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    Path("toy.yaml").write_text(yaml.safe_dump(TOY), encoding="utf-8")
    return tmp_path


@pytest.fixture
def trained(capsys: pytest.CaptureFixture[str]) -> str:
    """A run folder of the toy."""
    assert main(["fit", "--config", "toy.yaml"]) == 0
    capsys.readouterr()
    return "runs/toy/version_0"


# ---- check


def test_check_without_a_config_reports_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert "ok       torch " in out
    assert "ok       packages: lightning_styles, datamodules, callbacks" in out
    assert out.splitlines()[-1] == "All is there. Next: python -m lightning_styles fit --config FILE"


def test_check_finds_what_a_config_needs(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    factors = {"lora_down.weight": torch.zeros(1, 2), "lora_up.weight": torch.zeros(2, 1), "alpha": torch.ones(())}
    save_file({f"lora_unet_mid.{name}": factor for name, factor in factors.items()}, "style.safetensors")
    assert main(["check", "--config", "toy.yaml", "--model.init_args.base", "style.safetensors"]) == 0
    assert "ok       lora style.safetensors: style.safetensors" in capsys.readouterr().out


def test_check_says_what_is_missing_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", "toy.yaml", "--model.init_args.base", "nowhere"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("MISSING") and "'nowhere'" in line]
    assert lines[-1] == "1 thing to mend, see the lines marked MISSING."


def test_check_reports_a_data_module_that_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data.class_path", "datamodules.Pictures", "--data.init_args.images", "no/photos"]
    assert main(["check", "--config", "toy.yaml", *arguments]) == 1
    assert "MISSING  data: " in capsys.readouterr().out


def test_check_of_a_wrong_config_says_what_fit_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", "toy.yaml", "--trainer.max_steps", "x"]) == 2
    assert capsys.readouterr().err == "error: trainer.max_steps: expected int, got x\n"


def test_torch_and_torchvision_of_different_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "build_of", lambda package: {"torch": "cpu", "torchvision": "cu130"}[package])
    assert check.builds() == [
        (False, "torch is built for cpu, torchvision for cu130: install both from one package index")
    ]


def test_build_is_read_from_the_version_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "vision_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError", encoding="utf-8")
    (package / "version.py").write_text("__version__ = '0.29.2+cu132'\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert check.build_of("vision_of_test") == "cu132"
    assert check.build_of("no_such_package") is None


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "PACKAGES", ("no-such-package",))
    good, text = check.versions()[-1]
    assert not good
    assert text.startswith("no-such-package is not installed: run pip install")


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ({"torchao": "0.14.1"}, "torchao 0.14.1 is installed, with which peft adds no LoRA: run pip install"),
        ({"tensorboard": "2.20.0", "setuptools": "82.0.1"}, "tensorboard 2.20.0 does not start with setuptools 82"),
        ({"tensorboard": "2.20.0", "setuptools": "81.0"}, None),
        ({"torchao": "0.16.0", "tensorboard": "2.21.0", "setuptools": "84"}, None),
        ({}, None),
    ],
)
def test_packages_that_break_others(
    versions: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(package: str) -> str:
        if package not in versions:
            raise check.importlib.metadata.PackageNotFoundError(package)
        return versions[package]

    monkeypatch.setattr(check.importlib.metadata, "version", version)
    report = check.neighbours()
    assert [good for good, _ in report] == ([] if expected is None else [False])
    assert expected is None or report[0][1].startswith(expected)


# ---- convert


def test_convert_hands_a_trained_checkpoint_to_its_method(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", trained, "out/style.pt", "--to", "kohya", "--trust"]) == 0
    assert capsys.readouterr().out == "Wrote out/style.pt\n"
    exported = torch.load("out/style.pt", weights_only=True)
    saved = torch.load(f"{trained}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert exported["format"] == "kohya"
    assert torch.equal(exported["weight"], saved["layer.weight"])


def test_an_average_of_the_weights_is_what_is_converted_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a decay of 0.9 the average of two steps is far from the weights."""
    config = TOY | {
        "trainer": TOY["trainer"] | {"callbacks": [{"class_path": "callbacks.EMA", "init_args": {"decay": 0.9}}]}
    }
    Path("averaged.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert main(["fit", "--config", "averaged.yaml"]) == 0
    run = "runs/averaged/version_0"
    saved = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)
    average = saved["callbacks"]["EMA"]["shadow"]["layer.weight"]
    assert not torch.allclose(average, saved["state_dict"]["layer.weight"], atol=1e-3)
    assert main(["convert", run, "out/style.pt", "--to", "kohya", "--trust"]) == 0
    assert torch.equal(torch.load("out/style.pt", weights_only=True)["weight"], average)
    used, paint = [], ToyPainter.predict_step

    def watched(method: ToyPainter, batch: Any, batch_idx: int) -> Any:
        used.append(method.layer.weight.detach().clone())
        return paint(method, batch, batch_idx)

    monkeypatch.setattr(ToyPainter, "predict_step", watched)
    Image.new("RGB", (40, 24)).save("black.png")
    assert main(["stylize", "black.png", "--style", run, "--out", "out", "--device", "cpu", "--trust"]) == 0
    assert [torch.equal(weight, average) for weight in used] == [True]


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["nowhere", "x", "--to", "kohya"], 1, "error: There is no file or folder nowhere; check the path.\n"),
        (["toy.yaml", "x", "--to", "kohya"], 1, "error: toy.yaml cannot be read as a checkpoint"),
        (["toy.yaml", "x", "--to", "kohia"], 2, "error: argument --to: invalid choice: 'kohia'"),
        (["toy.yaml", "x"], 2, "error: the following arguments are required: --to\n"),
    ],
)
def test_convert_mistakes(arguments: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", *arguments]) == code
    assert capsys.readouterr().err.startswith(expected)


def test_foreign_classes_need_trust(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", trained, "x", "--to", "kohya"]) == 1
    err = capsys.readouterr().err
    assert "wants to import tests.toys.ToyPainter, which is not part of lightning_styles" in err
    assert "--trust" in err


def test_a_checkpoint_of_another_project(capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.6"}, "other.ckpt")
    assert main(["convert", "other.ckpt", "x", "--to", "kohya"]) == 1
    assert capsys.readouterr().err == (
        "error: other.ckpt was not written by lightning_styles; use a checkpoint of one of its runs.\n"
    )


def test_a_layout_that_the_method_does_not_write(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", trained, "x", "--to", "diffusers", "--trust"]) == 1
    assert capsys.readouterr().err == "error: ToyPainter can be converted to kohya, not diffusers.\n"
    assert not Path("x").exists()


def test_convert_replaces_what_is_there_only_when_told(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["convert", trained, "out/style.pt", "--to", "kohya", "--trust"]
    Path("out").mkdir()
    Path("out/style.pt").write_text("mine")
    assert main(words) == 1
    message = "error: out/style.pt is there already; write to another place, or replace it with --overwrite.\n"
    assert capsys.readouterr().err == message
    assert Path("out/style.pt").read_text() == "mine"
    assert main([*words, "--overwrite"]) == 0
    assert torch.load("out/style.pt", weights_only=True)["format"] == "kohya"
    checkpoint = f"{trained}/checkpoints/last.ckpt"
    before = Path(checkpoint).read_bytes()
    for source, output in ((checkpoint, checkpoint), (trained, checkpoint), (trained, trained)):
        assert main(["convert", source, output, "--to", "kohya", "--trust", "--overwrite"]) == 1
        assert "is what is read; write the result to another place" in capsys.readouterr().err
    assert Path(checkpoint).read_bytes() == before


def test_an_export_into_a_folder_of_the_user_replaces_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/toy.pt").write_text("mine")
    export = {"class_path": "callbacks.Export", "init_args": {"folder": "mine"}}
    Path("export.yaml").write_text(yaml.safe_dump(TOY | {"trainer": TOY["trainer"] | {"callbacks": [export]}}))
    assert main(["fit", "--config", "export.yaml"]) == 1
    assert "mine/toy.pt is there already; write to another place, or replace it with overwrite: true" in (
        capsys.readouterr().err
    )
    assert Path("mine/toy.pt").read_text() == "mine"
    assert main(["fit", "--config", "export.yaml", "--trainer.callbacks.overwrite", "true"]) == 0
    assert torch.load("mine/toy.pt", weights_only=True)["format"] == "kohya"


# ---- stylize


def test_stylize_takes_everything_from_the_checkpoint(trained: str) -> None:
    Path("photos").mkdir()
    Image.new("RGB", (40, 24), (0, 0, 0)).save("photos/black.png")
    arguments = ["photos", "--style", trained, "--out", "out", "--device", "cpu", "--trust"]
    assert main(["stylize", *arguments]) == 0
    with Image.open("out/black.png") as result:
        assert result.size == (40, 24)
        assert result.getpixel((0, 0)) == (64, 64, 64)  # -1 + shift 0.5, on the scale of 0 to 255


def test_stylize_changes_settings_of_the_method(trained: str, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (40, 24), (0, 0, 0)).save("black.png")
    arguments = ["stylize", "black.png", "--style", trained, "--out", "out", "--device", "cpu", "--trust"]
    assert main([*arguments, "--set", "shift=1.0"]) == 0
    with Image.open("out/black.png") as result:
        assert result.getpixel((0, 0)) == (128, 128, 128)
    for setting, message in {
        "shift": "--set shift: expected KEY=VALUE",
        "shift=[": r"--set shift=\[: the value cannot be read",
    }.items():
        assert main([*arguments, "--set", setting]) == 1
        assert re.search(message, capsys.readouterr().err)
    assert main([*arguments, "--set", "shft=1"]) == 2
    assert "Option 'shft' is not accepted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere", "--style", "x"], "error: There is no picture or folder nowhere; check the path.\n"),
        (["toy.yaml", "--style", "nope.ckpt"], "error: There is no checkpoint nope.ckpt"),
        (["toy.yaml", "--style", "x", "--device", "gpu0"], "error: --device is gpu0; expected auto, cpu"),
    ],
)
def test_stylize_mistakes(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stylize", *arguments]) == 1
    assert capsys.readouterr().err.startswith(expected)


def stylize(*words: str) -> list[str]:
    return ["stylize", *words, "--device", "cpu", "--trust"]


@pytest.mark.parametrize(
    ("pictures", "out", "says"),
    [
        ("photos", "photos", "would lie in photos among the pictures themselves"),
        ("photos", "./sub/../photos", "among the pictures themselves"),
        ("photos", "linked", "among the pictures themselves"),
        ("photos/a.png", "photos", "The result photos/a.png would replace a file that is read"),
        ("links/a.png", "photos", "The result photos/a.png would replace a file that is read"),
        ("photos/a.png", "links", "The result links/a.png would replace a file that is read"),
        ("photos/a.png", "hard", "The result hard/a.png would replace a file that is read"),
        ("photos/b.jpg", "photos", "photos/b.png would be replaced by results, but lightning_styles has not written"),
        ("photos", "other", "other/a.png and 1 more would be replaced by results"),
        ("photos/a.png", "odd", "odd/a.png would be replaced by results"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_stylize_replaces_nothing_that_is_read_or_from_elsewhere(
    trained: str, pictures: str, out: str, says: str, overwrite: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("photos", "links", "hard", "other", "odd/a.png", "sub"):
        Path(folder).mkdir(parents=True)
    for name in ("photos/a.png", "photos/b.jpg", "photos/b.png", "other/a.png", "other/b.png"):
        Image.new("RGB", (40, 24), "red").save(name)
    Path("linked").symlink_to("photos")
    Path("links/a.png").symlink_to(Path("photos/a.png").absolute())
    Path("hard/a.png").hardlink_to("photos/a.png")
    before = {path: path.read_bytes() for path in Path().rglob("*.*g") if path.is_file()}
    option = ["--overwrite"] if overwrite else []
    foreign = "by results" in says
    code = main(stylize(pictures, "--style", trained, "--out", out, *option))
    assert code == (0 if foreign and overwrite and out != "odd" else 1)
    if code:
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert (says in line) or (foreign and overwrite and "a.png" in line)
        assert {path: path.read_bytes() for path in before} == before
    else:
        assert before != {path: path.read_bytes() for path in before}


def test_stylize_skips_its_own_results_and_keeps_pictures_of_one_stem_apart(
    trained: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    long = "\u6f22" * 83  # 249 bytes, and more with what keeps it apart
    for name in ("a.jpg", "a.png", "A.png", f"{long}.jpg", f"{long}.png"):
        Image.new("RGB", (40, 24)).save(Path("photos", name))
    words = stylize("photos", "--style", trained, "--out", "out")
    assert main(words) == 0
    results = sorted(path.name for path in Path("out").glob("*.png"))
    assert len({name.casefold() for name in results}) == 5
    assert {"A.png", "a_jpg.png", "a_png.png", f"{long}.png"} < set(results)
    assert main(words) == 0
    assert "0 pictures in" in (out := capsys.readouterr().out)
    assert "5 were there already" in out
    other = ["photos/a.jpg", "--style", trained, "--out", "photos/new"]
    assert main(stylize(*other)) == main(stylize(*other)) == 0


def test_a_name_that_the_disk_refuses_costs_that_picture_alone(
    trained: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    Path("photos").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 24)).save(f"photos/{name}.png")
    replace = os.replace

    def picky(source: Path, target: Path) -> None:
        if Path(target).name == "b.png":
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        replace(source, target)

    monkeypatch.setattr(os, "replace", picky)
    assert main(stylize("photos", "--style", trained, "--out", "out")) == 1
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "c.png"]
    assert "not written: 'out/b.png' cannot be written: Invalid argument; rename the picture" in caplog.text
    assert capsys.readouterr().err.splitlines()[-1] == "error: 1 of 3 results could not be written; see above."


def test_ctrl_c_in_stylize_says_what_is_done(
    trained: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos").mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (40, 24)).save(f"photos/{name}.png")
    paint = ToyPainter.predict_step

    def interrupted(method: ToyPainter, batch: Any, batch_idx: int) -> Any:
        if batch["name"] == ["b"]:
            os.kill(os.getpid(), signal.SIGINT)
        return paint(method, batch, batch_idx)

    words = stylize("photos", "--style", trained, "--out", "out")
    monkeypatch.setattr(ToyPainter, "predict_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    try:
        assert main(words) == 130
    finally:
        signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    captured = capsys.readouterr()
    assert "Interrupted: 1 results are in out; the same command makes those that are missing." in captured.out
    assert captured.err.splitlines()[-1] == "interrupted"
    monkeypatch.setattr(ToyPainter, "predict_step", paint)
    assert main(words) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["a.png", "b.png", "c.png"]


# ---- the parts


def test_trainer_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert trainer_arguments("auto") == {"accelerator": "auto", "devices": 1}
    assert trainer_arguments("cuda:1") == {"accelerator": "gpu", "devices": [1]}
    with pytest.raises(UserError, match="PyTorch sees 2 GPU"):
        trainer_arguments("cuda:2")


def test_class_paths_are_found_at_any_depth() -> None:
    tree = {
        "class_path": "a.A",
        "init_args": {"nets": [{"class_path": "b.B"}], "x": {"y": {"class_path": "c.C"}}},
    }
    assert list(class_paths(tree)) == ["a.A", "b.B", "c.C"]


def test_build_makes_an_object_from_plain_values() -> None:
    from lightning.pytorch import Callback

    greeter = build(Callback, "tests.toys.Greeter", {"message": "hi", "every": 3})
    assert (type(greeter).__name__, greeter.message, greeter.every) == ("Greeter", "hi", 3)  # type: ignore[attr-defined]
