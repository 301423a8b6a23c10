"""Checkpoints made to run code, to write elsewhere, or to delete: refused, or their values stay plain values."""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, get_args

import pytest
import torch
import yaml

from lightning_styles import methods, pretraining
from lightning_styles.__main__ import main
from lightning_styles.commands.stylize import changes
from lightning_styles.errors import UserError
from lightning_styles.module import StyleModule
from lightning_styles.reading import first_problem
from lightning_styles.runs import read_checkpoint
from lightning_styles.trained import arguments_of, build_trained, open_trained
from tests.micro import write_picture
from tests.test_module import fit

EVIL = """
from pathlib import Path
from lightning_styles.module import StyleModule
from lightning_styles.reading import first_problem

Path("ran").touch()

class M(StyleModule):
    def __init__(self, **settings: object) -> None:
        super().__init__(iterations=1)

def make(*arguments: object, **settings: object) -> StyleModule:
    return M()
"""
SMS = "lightning_styles.methods.sms.SMS"
OSASIS = "lightning_styles.methods.osasis.OSASIS"
GAN = "lightning_styles.methods.pseudo_paired_stylegan.PseudoPairedStyleGAN"
NESTED = {"class_path": "evil.M", "init_args": {}}
SETTINGS: dict[str, dict[str, Any]] = {
    SMS: {"base": "tiny/stable-diffusion", "style": "cartoon", "weights": {"style": 1.0}},
    OSASIS: {
        "diffae": "tiny/diffae", "style_image": "a.png", "clip": "tiny/clip", "perceptual": "tiny/perceptual",
        "weights": {}, "steps": {"encode": 4, "decode": 4}, "predict_steps": {"encode": 4, "decode": 4},
    },
    GAN: {"source": "tiny/stylegan2", "perceptual": "tiny/perceptual", "weights": {"paired": 0.0}},
}  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder on Python's path with evil.py, which leaves the file `ran` behind, and a photo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    Path("evil.py").write_text(EVIL, encoding="utf-8")
    write_picture(Path("photo.png"), 32, 32)
    yield tmp_path
    sys.modules.pop("evil", None)


def written(class_path: Any = SMS, changes: dict[str, Any] | None = None, **fields: Any) -> str:
    """A checkpoint of a method with changed settings, and with other fields beside them."""
    init_args = SETTINGS.get(class_path if isinstance(class_path, str) else "", {}) | (changes or {})
    own = {"class_path": class_path, "init_args": init_args, "base_models": {}}
    content = {"state_dict": {}, "pytorch-lightning_version": "2.6.6", "global_step": 1, "lightning_styles": own}
    torch.save(content | fields, "x.ckpt")
    return "x.ckpt"


HIDDEN = f"{{lightning_styles: {{class_path: {SMS}, init_args: {{base: {{class_path: evil.M}}}}}}}}"
CLASSES: dict[str, dict[str, Any]] = {
    "lightning_styles.trained.build_trained": {"content": "{lightning_styles: {class_path: evil.M, init_args: {}}}"},
    "lightning_styles.trained.build": {"class_path": "evil.M", "init_args": {}},
    "lightning_styles.trained.make": {"method": "evil.M", "init_args": {}},
    "lightning_styles.required_files.import_class": {"class_path": "evil.M"},
    "lightning_styles.pretrained.weights.build": {"make": "evil.make"},
    "lightning_styles.trained.StylesParser": {},
    "lightning_styles.methods.sms.nn": {},
    "lightning_styles.methods.sms.UserError": {},
    "lightning_styles.evil.M": {},
    "lightning_styles.methods.evil.M": {},
    "evil.M": {},
    "evil.make": {},
    "callbacks.Export": {"path": "x"},
    "datamodules.Pictures": {"images": "photo.png"},
    "lightning.pytorch.LightningModule": {},
    "torch.hub.load": {"repo_or_dir": "x", "model": "y"},
    "os.system": {"command": "touch ran"},
    ".evil.M": {},
    "lightning_styles..evil.M": {},
    "lightning_styles.methods.sms.SMS\n": {},
    f"{SMS} ": {},
    f"evil.M#{SMS}": {},
    f"{SMS}.__init__": {},
    f"{SMS}.training_step": {},
    "lightning_styles.module.StyleModule": {"iterations": 1},
    "lightning_styles.methods.lora_method.LoRAMethod": {},
    "lightning_styles.methods.encoded_faces.EncodedFaces": {"iterations": 1},
    "\u006cightning_styles.m\u0435thods.sms.SMS": {},  # a Cyrillic letter
    "a" * 100_000: {},
}


@pytest.mark.parametrize("command", ["stylize", "convert"])
@pytest.mark.parametrize(
    "class_path", [*CLASSES, "", None, 3, ["evil.M"], NESTED, torch.ones(1)], ids=lambda x: repr(x)[:60]
)
def test_a_class_that_is_no_method_of_this_package_is_refused(
    class_path: Any, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = CLASSES[class_path] if isinstance(class_path, str) and class_path else {}
    words = ["stylize", "photo.png", "--style"] if command == "stylize" else ["convert"]
    rest = [] if command == "stylize" else ["out", "--to", "kohya"]
    assert main([*words, written(class_path, changes), *rest]) == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: x.ckpt")
    assert len(message) < 400
    assert not Path("ran").exists()
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("class_path", "changes", "says"),
    [
        (SMS, {"base": NESTED}, "base is a mapping of 2, expected text"),
        (SMS, {"style_lora": ["evil.M"]}, "style_lora is a list of 1, expected text or nothing"),
        (SMS, {"weights": NESTED}, "weights.class_path is 'evil.M', expected a number"),
        (SMS, {"metrics": {"lpips": NESTED}}, "metrics.lpips is a mapping of 2, expected text"),
        (SMS, {"metrics": "{lpips: {class_path: evil.M}}"}, "metrics is '.*', expected a mapping or nothing"),
        (SMS, {"rank": "8"}, "rank is '8', expected a whole number"),
        (SMS, {"rank": True}, "rank is True, expected a whole number"),
        (SMS, {"lr": "${oc.env:HOME}"}, "lr is '.*', expected a number"),
        (SMS, {"objective": "evil.make"}, "objective is 'evil.make', expected one of 'sms'"),
        (SMS, {"relevance": "evil.make"}, "relevance is 'evil.make', expected true or false"),
        (SMS, {"seed": "@seed.txt"}, "seed is '@seed.txt', expected a whole number"),
        (SMS, {"self": NESTED}, "SMS has no setting 'self'"),
        (SMS, {"kwargs": NESTED}, "SMS has no setting 'kwargs'"),
        (SMS, {"class_path": "evil.M"}, "SMS has no setting 'class_path'"),
        (SMS, {"rnak": 3}, "SMS has no setting 'rnak', did you mean 'rank'"),
        (SMS, {3: 3}, "init_args is a mapping of 4, expected a mapping"),
        (SMS, {"style": None}, "style is nothing, expected text"),
        (SMS, {"lr": torch.ones(1)}, "init_args.lr is a tensor of shape .1,. and float32, expected a plain value"),
        (SMS, {"iterations": 0}, "iterations is 0; it must be at least 1"),
        (OSASIS, {"text": {"source": "a", "target": "b", "class_path": "evil.M"}}, "text has .*class_path; expected"),
        (OSASIS, {"grid": {"t0": "evil.M", "lambda_spn": [1]}}, "grid.t0 is 'evil.M', expected a list"),
        (GAN, {"pairs": NESTED}, "pairs has .*class_path"),
    ],
)  # fmt: skip
def test_settings_are_plain_values_of_their_types(class_path: str, changes: dict[Any, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"x.ckpt: .*{says}"):
        open_trained(written(class_path, changes))
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "text",
    [
        HIDDEN, "evil.M", "{class_path: evil.M}", "!!python/object/apply:os.system [touch ran]", "${oc.env:HOME}",
        "${vars.x}", "@photo.png", "photo.png", "null", "1e3", "file:///etc/passwd", "{{style}}",
    ],
)  # fmt: skip
def test_text_stays_text(text: str) -> None:
    """Also what Lightning adds to a checkpoint names classes, which are not looked at."""
    lightnings = {"_class_path": "evil.M", "_instantiator": "evil.make"}
    changes = {"style": text, "base": text, "_class_path": "evil.M", "_instantiator": "evil.make"}
    ours = {"hyper_parameters": lightnings, "datamodule_hyper_parameters": lightnings}
    _, content = open_trained(written(SMS, changes, **ours))
    model = build_trained(content, {})
    assert model.hparams["style"] == model.hparams["base"] == text
    assert not Path("ran").exists()


def test_a_setting_of_an_older_version_is_left_out_only_where_it_did_nothing() -> None:
    _, content = open_trained(written(GAN, {"style_images": None}))
    assert "style_images" not in build_trained(content, {}).hparams
    with pytest.raises(UserError, match="has no setting 'style_images'"):
        open_trained(written(GAN, {"style_images": "styles"}))


def test_settings_of_the_command_line_are_checked_too() -> None:
    _, content = open_trained(written())
    for settings, says in ({"lr": "x"}, "--set: lr is 'x'"), ({"weights": NESTED}, "--set: weights.class_path"):
        with pytest.raises(UserError, match=says):
            build_trained(content, settings)
    assert build_trained(content, {"lr": 1, "weights": {"identity": 0.5}}).hparams["weights"] == {
        "style": 1.0, "identity": 0.5,
    }  # fmt: skip


def test_a_pretraining_stylizes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    identity = "lightning_styles.pretraining.identity.IdentityPretraining"
    assert (
        main(["stylize", "photo.png", "--style", written(identity, {"iterations": 1, "identities": 2, "widths": [8]})])
        == 1
    )
    assert "x.ckpt is one of IdentityPretraining, which stylizes no pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("own", "beside"),
    [
        ({"class_path": "evil.M"}, ""),
        ({"class_path": "lightning_styles.trained.build_trained", "init_args": {"content": "evil.M"}}, ""),
        ({"init_args": {"iterations": NESTED, "width": "${oc.env:HOME}"}}, ""),
        ({}, "model: {class_path: evil.M, init_args: {}}\ndata: {class_path: evil.make}\n"),
        ({}, "model: !!python/object/apply:evil.make []\n"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "test"])
def test_resuming_and_testing_run_no_code_of_a_run_folder(
    command: str, own: dict[str, Any], beside: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = {"class_path": "tests.test_module.Duel", "init_args": {"iterations": 4}}
    data, trainer = {"class_path": "tests.test_module.Numbers"}, {"accelerator": "cpu", "max_steps": 4}
    Path("a.yaml").write_text(yaml.safe_dump({"model": model, "data": data, "trainer": trainer}), encoding="utf-8")
    run = Path("runs/a/version_0")
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(beside or "{}", encoding="utf-8")
    content = torch.load(written(), weights_only=True)
    content["lightning_styles"] = {**model, "base_models": {}} | own
    torch.save(content, run / "last.ckpt")
    assert main([command, "--config", "a.yaml", "--ckpt_path", str(run)]) == 1
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert len([line for line in captured.err.splitlines() if line.startswith("error: ")]) == 1
    assert not Path("ran").exists()
    assert "evil" not in sys.modules


def test_numbers_of_the_command_line_may_have_exponents() -> None:
    given = {"lr=1e-2": 0.01, "lr=1E5": 1e5, "lr=-3e+4": -3e4, "lr=1.5e3": 1500.0, "lr=7": 7, "style=1e-2x": "1e-2x"}
    for pair, value in given.items():
        assert list(changes([pair]).values()) == [value]
    with pytest.raises(UserError, match="the value cannot be read as YAML"):
        changes(["style=2026-13-45"])


# ---- where is written, and what is deleted


@pytest.mark.parametrize("place", ["/elsewhere", "../elsewhere", "~/elsewhere", "a/../../b", "runs/x"])
@pytest.mark.parametrize(("class_path", "setting"), [(OSASIS, "encoded"), (OSASIS, "cache"), (GAN, "cache")])
def test_a_method_writes_below_the_output_folder_whatever_its_checkpoint_says(
    class_path: str, setting: str, place: str
) -> None:
    _, content = open_trained(written(class_path, {setting: place}))
    assert build_trained(content, {}, Path("out")).hparams[setting] == f"out/{setting}"
    assert build_trained(content, {setting: place}, Path("out")).hparams[setting] == place  # told to


def all_methods() -> set[type[StyleModule]]:
    modules = [
        import_module(f"{package.__name__}.{module.name}")
        for package in (methods, pretraining)
        for module in iter_modules(package.__path__)
    ]
    classes = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return {value for value in classes if issubclass(value, StyleModule)}


def test_every_setting_of_every_method_has_a_type_that_its_value_is_compared_with() -> None:
    for method in all_methods():
        for name, annotation in arguments_of(method).items():
            assert first_problem(object(), annotation), (method, name)
            assert first_problem({"class_path": "evil.M", "init_args": {"a": object()}}, annotation) or (
                dict[str, Any] in (annotation, *get_args(annotation))
            ), (method, name)


def test_every_setting_that_names_a_folder_to_write_to_is_known() -> None:
    text = "".join(file.read_text(encoding="utf-8") for file in Path(methods.__path__[0]).glob("*.py"))
    folders = set(re.findall(r"Path\((?:self\.)?h(?:params)?\.(\w+)", text))
    assert folders == {"cache", "encoded"}
    for method in all_methods():
        named = {name.removesuffix("?") for name in arguments_of(method)}
        assert set(method.folders) == named & folders, method


@pytest.mark.parametrize("field", ["best_model_path", "last_model_path", "kth_best_model_path", "best_k_models"])
@pytest.mark.parametrize(
    "path", ["local://{}", "file://{}", "memory://x", "simplecache::file://{}", "data:x", "{run}/../kept", 3]
)
def test_a_checkpoint_cannot_have_lightning_delete_a_folder(field: str, path: Any, tmp_path: Path) -> None:
    _, run = fit(tmp_path, 2)
    run.save_checkpoint("x.ckpt")
    content = torch.load("x.ckpt", weights_only=True)
    place = path.format(tmp_path / "kept", run=tmp_path) if isinstance(path, str) else path
    content["callbacks"] = {"Checkpoints{'monitor': None}": {"best_model_score": None, "best_model_path": ""}}
    content["callbacks"]["Checkpoints{'monitor': None}"][field] = {place: 1} if field == "best_k_models" else place
    torch.save(content, "x.ckpt")
    with pytest.raises(UserError, match=f"x.ckpt: callbacks.Checkpoints: {field} is .*, expected a"):
        read_checkpoint(Path("x.ckpt"))
    for kept in ("runs/x/version_0/checkpoints/last.ckpt", "../runs/x/last.ckpt", "/runs/last.ckpt", ""):
        content["callbacks"]["Checkpoints{'monitor': None}"] |= {field: {kept: 1} if field == "best_k_models" else kept}
        torch.save(content, "x.ckpt")
        read_checkpoint(Path("x.ckpt"))
