"""Long lists and texts in a config: linear time, one sentence where they cannot be meant."""

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_styles.__main__ import main
from lightning_styles.errors import UserError
from lightning_styles.long_lists import copied
from lightning_styles.prompts import check_lengths

TOY: dict[str, Any] = {
    "vars": {"lr": 0.25},
    "model": {"class_path": "tests.toys.ToyStyle", "init_args": {"learning_rate": "${vars.lr}"}},
    "data": {"class_path": "tests.toys.ToyData"},
    "trainer": {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False, "logger": False},
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_what_entries_may_change_is_copied_and_the_list_is_not() -> None:
    settings = {"prev_val": ["a", "b"], "orig_val": ["c"], "sub_add_kwargs": {"skip": {"x"}}, "logger": None}
    copies = copied(settings)
    assert copies == settings
    assert copies["prev_val"] is settings["prev_val"]
    assert copies["orig_val"] is settings["orig_val"]
    assert copies["sub_add_kwargs"]["skip"] is not settings["sub_add_kwargs"]["skip"]
    tree = {"a": [1]}
    assert copied(tree) == tree
    assert copied(tree)["a"] is not tree["a"]


def test_a_list_of_thousands_costs_linear_time() -> None:
    """A copy of the list for each of its entries, twice, would take minutes."""
    import lightning_styles.parser  # noqa: F401

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--images", type=list[str], default=[])
    names = [f"{i}.png" for i in range(12_000)]
    start = time.process_time()
    config = parser.parse_object({"images": names})
    assert parser.parse_object({"images": names}, config).images == names
    assert time.process_time() - start < 20


def test_more_values_than_the_resolver_takes_by_itself() -> None:
    tree = copy.deepcopy(TOY)
    tree["vars"]["many"] = ["tiny/lora-cartoon", *range(10_400)]
    tree["model"]["init_args"]["base"] = "${vars.many[0]}"
    Path("many.yaml").write_text(yaml.safe_dump(tree))
    assert main(["fit", "--config", "many.yaml"]) == 0


def test_texts_that_cannot_be_meant_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    check_lengths([("style", "x" * 10_000), ("weights", {"style": 1.0}), ("prompts", ["x"] * 20_000)])
    for settings, name in (
        ({"style": "x" * 10_001}, "style"),
        ({"preview_prompts": ["a", "x" * 100_000]}, r"preview_prompts\[1\]"),
        ({"prompts": {"set": ["x" * 100_000]}}, r"prompts.set\[0\]"),
    ):
        with pytest.raises(UserError, match=rf"{name} has [\d,]+ letters; expected at most 10,000"):
            check_lengths(settings.items())
    Path("toy.yaml").write_text(yaml.safe_dump(TOY))
    Path("long.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"base": "x" * 100_000}}}))
    assert main(["fit", "--config", "toy.yaml", "--config", "long.yaml"]) == 1
    assert "model.init_args.base has 100,000 letters; expected at most 10,000" in capsys.readouterr().err
