"""Files over files and flags over files: what comes of it, what is said and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_styles.errors import UserError
from lightning_styles.layers import layered

SMS, SDEDIT = "lightning_styles.methods.sms.SMS", "lightning_styles.methods.sdedit.SDEdit"
FIRST: dict[str, Any] = {
    "vars": {"lr": 0.25, "n": 4},
    "model": {
        "class_path": SMS,
        "init_args": {"base": "b", "style": "s", "lr": "${vars.lr}", "weights": {"style": 1.0, "identity": 0.5}},
    },
    "data": {"class_path": "datamodules.Pictures", "init_args": {"images": ["a.png", "b.png"]}},
    "trainer": {"max_steps": "${vars.n}", "callbacks": [{"class_path": "callbacks.EMA", "init_args": {"decay": 0.5}}]},
}


@pytest.fixture(autouse=True)
def first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder with first.yaml in it."""
    monkeypatch.chdir(tmp_path)
    Path("first.yaml").write_text(yaml.safe_dump(FIRST), encoding="utf-8")


def over(*layers: Any, flags: tuple[str, ...] = ()) -> Any:
    """What comes of first.yaml under more files and flags."""
    words = ["--config", "first.yaml"]
    for number, layer in enumerate(layers):
        Path(f"{number}.yaml").write_text(yaml.safe_dump(layer, sort_keys=False), encoding="utf-8")
        words += ["-c", f"{number}.yaml"]
    return layered([*words, *flags])


@pytest.mark.parametrize(
    "layer",
    [
        {"model": {"init_args": {"weights": {"identity": 0.125}}}},
        {"model": {"weights": {"identity": 0.125}}},
        {"model.init_args.weights.identity": 0.125},
        {"model.weights": {"identity": 0.125}},
    ],
)
def test_a_later_file_goes_into_mappings(layer: Any) -> None:
    expected = FIRST["model"]["init_args"] | {"weights": {"style": 1.0, "identity": 0.125}}
    assert over(layer).tree == FIRST | {"model": {"class_path": SMS, "init_args": expected}}


def test_a_flag_goes_into_mappings_too() -> None:
    weights = over(flags=("--model.weights", "{style: 2}")).tree["model"]["init_args"]["weights"]
    assert weights == {"style": 2, "identity": 0.5}
    assert over(flags=("--vars={lr: 0.5}",)).tree["vars"] == {"lr": 0.5, "n": 4}


def test_lists_and_nothing_replace_what_was_there() -> None:
    callbacks = [{"class_path": "callbacks.EMA"}]
    tree = over({"trainer": {"callbacks": callbacks}, "data": None}).tree
    assert tree["trainer"]["callbacks"] == callbacks
    assert tree["data"] is None


def test_a_list_can_be_appended_to() -> None:
    callbacks = over({"trainer": {"callbacks+": [{"class_path": "callbacks.Export"}]}}).tree["trainer"]["callbacks"]
    assert [callback["class_path"] for callback in callbacks] == ["callbacks.EMA", "callbacks.Export"]


def test_empty_arguments_of_a_class_change_nothing() -> None:
    assert over({"model": {"init_args": None}}).tree == FIRST


@pytest.mark.parametrize("flags", [("--model", SDEDIT), ("--model.class_path", SDEDIT), (f"--model={SDEDIT}",), None])
def test_another_class_keeps_what_both_have_and_says_so(flags: tuple[str, ...] | None) -> None:
    layers = over({"model": {"class_path": SDEDIT}}) if flags is None else over(flags=flags)
    assert layers.tree["model"] == {"class_path": SDEDIT, "init_args": {"base": "b", "style": "s"}}
    assert layers.notes == [
        f"model: {SDEDIT} in the place of {SMS} keeps base, style and drops lr, weights of the earlier settings."
    ]


def test_the_same_class_by_another_name_is_no_other_class() -> None:
    layers = over({"data": {"class_path": "datamodules.pictures.Pictures"}})
    assert layers.tree["data"]["init_args"] == FIRST["data"]["init_args"]
    assert layers.notes == []


@pytest.mark.parametrize(
    "text",
    [
        "1e3", "null", "~", "#x", "- x", "[1]", "{a: b}", "1:30", "yes", "", '"quoted"', "it's", "a: b", "=",
        " x ", "-x", "2020-01-01", ".nan", "0x10", "1_000", "${vars.lr}", "100 %", "\u00e9 \u6f22 \U0001f600",
        "two\nlines", "\ttab",
    ],
)  # fmt: skip
def test_a_text_arrives_as_typed(text: str) -> None:
    for flags in (("--model.style", text), (f"--model.init_args.style={text}",)):
        layers = over(flags=flags)
        assert layers.tree["model"]["init_args"]["style"] == text
        assert layers.words == []


def test_where_text_is_one_of_several_types() -> None:
    def data(*flags: str) -> Any:
        return over(flags=flags)

    assert data("--data.images", "#x").tree["data"]["init_args"]["images"] == "#x"
    assert data("--data.images", "[c.png]").tree["data"]["init_args"]["images"] == ["c.png"]
    assert data("--data.images", "[c.png]", "--data.images", "d.png").tree["data"]["init_args"]["images"] == "d.png"
    assert data("--data.images", "[c.png").words == ["--data.images", "[c.png"]  # the parser says what is wrong
    assert data("--data.twin_style", "null").tree["data"]["init_args"]["twin_style"] is None
    assert data("--data.twin_style", "1e3").tree["data"]["init_args"]["twin_style"] == "1e3"
    assert data("--model.metrics.perceptual", "1").tree["model"]["init_args"]["metrics"] == {"perceptual": "1"}
    assert data("--data.resolution", "64").words == ["--data.resolution", "64"]
    assert data("--ckpt_path", "[1]", "--run", "#x").tree.items() >= {"ckpt_path": "[1]", "run": "#x"}.items()


def test_flags_win_wherever_they_stand() -> None:
    words = ["--model.style", "flag", "--trainer.callbacks+=callbacks.Export", "--config=first.yaml"]
    layers = layered(words)
    assert layers.tree["model"]["init_args"]["style"] == "flag"
    assert layers.as_words()[0].startswith("--config=")
    assert layers.as_words()[1:] == ["--trainer.callbacks+=callbacks.Export"]


@pytest.mark.parametrize(
    ("layer", "flags", "says"),
    [
        ({}, ("--vars.lrx", "0.5"), r"--vars.lrx has no effect, .*\$\{vars.lrx\}: did you mean vars.lr\?"),
        ({}, ("--vars={q: 1}",), "--vars.q has no effect, .*: it refers to lr, n"),
        ({"vars": {"lrr": 1}}, (), "vars.lrr has no effect, .*did you mean vars.lr"),
        ({"vars": {"n": "${vars.n}"}}, (), r"vars.n refers to itself through \$\{vars.n\}; give it a value"),
        ({"model": {"init_args": {"lr": "${model.init_args.lr}"}}}, (), "model.init_args.lr refers to itself"),
        ({"vars": {"lr": "${vars.n}", "n": "${vars.lr}"}}, (), "refers to itself through"),
        ({"model": {"init_args": {"base": "${model}"}}}, (), r"model.init_args.base refers to itself .*\$\{model\}"),
    ],
)
def test_variables_without_effect_and_circles_are_refused(layer: Any, flags: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        over(layer, flags=flags)


def test_a_config_that_a_run_saved_may_hold_variables_that_are_filled_in() -> None:
    saved = {"vars": {"lr": 0.25}, "model": {"class_path": SMS, "init_args": {"lr": 0.25}}}
    Path("first.yaml").write_text(yaml.safe_dump(saved), encoding="utf-8")
    assert over().tree == saved
    with pytest.raises(UserError, match="--vars.lr has no effect"):
        over(flags=("--vars.lr", "0.5"))


def test_a_section_without_a_class_is_named() -> None:
    Path("first.yaml").write_text("model: {init_args: {lr: 1}}", encoding="utf-8")
    with pytest.raises(UserError, match=r"model names no class; add model.class_path"):
        over()
    Path("first.yaml").write_text(f"model: {{class_path: {SMS}, init_args: 5}}", encoding="utf-8")
    with pytest.raises(UserError, match=r"model.init_args is 5; expected settings"):
        over()
