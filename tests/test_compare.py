"""compare: rows of a table, each run once."""

import json
import os
import signal
import sys
import time
from multiprocessing import get_start_method
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from torch import Tensor

from callbacks.interruption import Interrupted
from lightning_styles.__main__ import main
from lightning_styles.cli import parse_only
from lightning_styles.commands.compare_rows import Axes, listed, merged, nested, read_rows, resolve
from lightning_styles.commands.compare_table import by_strength, difference_lines, differences
from lightning_styles.commands.pareto import Curve, axis_name, curves
from lightning_styles.errors import UserError
from lightning_styles.parser import find_config
from tests.toys import ToyStyle
from tests.trust.launcher import Launch

BASE: dict[str, Any] = {
    "model": {"class_path": "tests.test_compare.Scored", "init_args": {"learning_rate": 0.5}},
    "data": {"class_path": "tests.toys.ToyData"},
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
}
COMPARISON: dict[str, Any] = {
    "config": ["toy.yaml"],
    "set": {"data.init_args.length": 2},
    "rows": {
        "a": {"label": "as it is"},
        "b": {"model.init_args.learning_rate": 0.25},
        "c": {"model": {"init_args": {"fail": True}}},
        "d": {"config": ["d.yaml"], "model.init_args.size": 3},
    },
}


class Scored(ToyStyle):
    """Scores its learning rate, and leaves a line in runs.txt for each run."""

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        with Path("runs.txt").open("a") as file:
            file.write(f"{self.learning_rate}\n")
        if self.fail:
            raise UserError("told to fail.")
        self.log("test/score", self.learning_rate)
        self.log("test/n", float(len(batch)))
        self.log("test/loss", self.layer(batch).square().mean())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a comparison of four rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    write("toy.yaml", BASE)
    write("d.yaml", {"model": {"init_args": {"learning_rate": 0.125}}})
    write("table.yaml", COMPARISON)
    return tmp_path


def write(name: str, content: Any) -> None:
    Path(name).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def runs() -> list[float]:
    return [float(line) for line in Path("runs.txt").read_text().split()]


def test_the_rows_run_in_order_and_a_failing_one_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["compare", "table.yaml", "--out", "out"]) == 1
    assert runs() == [0.5, 0.25, 0.5, 0.125]
    table = json.loads(Path("out/table.json").read_text())["rows"]
    assert [row["name"] for row in table] == ["a", "b", "c", "d"]
    metrics = [row.get("metrics", {}) for row in table]
    assert [found.get("score") for found in metrics] == [0.5, 0.25, None, 0.125]
    assert [found.get("n") for found in metrics] == [2, 2, None, 2]
    assert table[0]["label"] == "as it is"
    assert table[2]["error"] == "told to fail."
    assert Path(table[3]["folder"]).is_dir()
    lines = Path("out/table.md").read_text().splitlines()
    assert lines[0] == "| row | score | n | loss | seconds |"
    assert lines[1] == "| --- | ---: | ---: | ---: | ---: |"
    assert lines[2].startswith("| as it is | 0.5 | 2 | ")
    assert lines[4] == "| c | failed | failed | failed | failed |"
    out = capsys.readouterr().out
    assert "row c failed: told to fail.; 3 of 4" in out
    assert out.splitlines()[-1] == "Table: out/table.md and out/table.json"


def test_finished_rows_run_again_only_when_something_changed() -> None:
    command = ["compare", "table.yaml", "--rows", "a,b"]
    assert main(command) == 0
    assert main(command) == 0
    assert runs() == [0.5, 0.25]
    assert Path("runs/table/table.md").is_file()
    write("toy.yaml", BASE | {"model": BASE["model"] | {"init_args": {"learning_rate": 0.75}}})
    assert main(command) == 0
    assert runs() == [0.5, 0.25, 0.75]
    assert main([*command, "--fresh"]) == 0
    assert runs() == [0.5, 0.25, 0.75, 0.75, 0.25]


def test_a_result_that_was_changed_is_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "table.yaml", "--rows", "a"]
    assert main(command) == 0
    (file,) = Path("runs/table/rows").glob("a_*.json")
    result = json.loads(file.read_text())
    for text, says in (("[3", "is no JSON"), (json.dumps(result | {"metrics": 3}), "metrics is 3, expected a mapping")):
        file.write_text(text)
        capsys.readouterr()
        assert main(command) == 0
        assert f"row a runs again: {file}" in (out := capsys.readouterr().out)
        assert says in out
    assert json.loads(file.read_text())["metrics"] == result["metrics"]
    assert runs() == [0.5] * 3


class Curved(Scored):
    """Scores at two strengths, of which the second is listed first."""

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        self.log("test/score@10", 10 * self.learning_rate)
        self.log("test/score@2.5", 2.5 * self.learning_rate)


REPEATED: dict[str, Any] = {
    "rows": {"a": {"label": "as it is"}, "b": {"model.class_path": "tests.test_compare.Curved"}},
    "repeat": {
        "one": {"model.init_args.learning_rate": 0.125, "vars": {"length": 2}},
        "three": {"model.init_args.learning_rate": 0.375, "vars.length": 1},
    },
}


def test_every_row_is_repeated_and_the_table_has_means_and_curves() -> None:
    write("toy.yaml", BASE | {"vars": {"length": 5}})
    write("table.yaml", COMPARISON | REPEATED | {"set": {"data.init_args.length": "${vars.length}"}})
    command = ["compare", "table.yaml", "--out", "out"]
    assert main([*command, "--rows", "a/one"]) == 0
    assert runs() == [0.125]
    assert main(command) == 0
    assert runs() == [0.125, 0.375, 0.125, 0.375]  # a/one is kept
    a, b = json.loads(Path("out/table.json").read_text())["rows"]
    assert a["metrics"]["score"] == 0.25
    assert a["metrics"]["n"] == 1.5  # so the repetitions set vars
    assert a["half_width"]["score"] == pytest.approx(12.7062 * 0.125, rel=1e-4)  # t of one degree, |0.375 - 0.125| / 2
    assert [run["metrics"]["score"] for run in a["repeats"].values()] == [0.125, 0.375]
    assert b["metrics"]["score@10"] == 2.5
    assert Path(b["repeats"]["three"]["folder"]).is_relative_to("out/b/three")
    lines = Path("out/table.md").read_text().splitlines()
    assert lines[0] == "| row | score | n | loss | runs | seconds |"
    assert lines[2].startswith("| as it is | 0.25 +- 1.6 | 1.5 +- 6.4 | ")
    assert lines[4:6] == [
        "| b, strength 2.5 | 0.625 +- 4 | - | - |  |  |",
        "| b, strength 10 | 2.5 +- 16 | - | - |  |  |",
    ]


def test_a_failed_repetition_leaves_the_mean_of_the_others_and_is_run_again() -> None:
    broken = {"repeat": {"good": {}, "bad": {"model.init_args.fail": True}}}
    write("table.yaml", COMPARISON | {"rows": {"a": {}}} | broken)
    for _ in range(2):
        assert main(["compare", "table.yaml"]) == 1
    assert runs() == [0.5, 0.5, 0.5]
    (row,) = json.loads(Path("runs/table/table.json").read_text())["rows"]
    assert (row["done"], row["metrics"]["score"], row["half_width"]["score"]) == (1, 0.5, None)
    assert row["repeats"]["bad"] == {"error": "told to fail."}
    assert "| a | 0.5 | 2 | " in Path("runs/table/table.md").read_text()
    assert "| 1 of 2 | " in Path("runs/table/table.md").read_text()


def test_a_plot_is_drawn_after_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write("table.yaml", COMPARISON | {"rows": {"a": {}}, "plot": {"x": "n", "y": "score"}})
    assert main(["compare", "table.yaml", "--out", "out"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Plot: out/pareto.png"
    with Image.open("out/pareto.png") as picture:
        assert picture.size == (1200, 750)
    Path("out/table.md").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["compare", "table.yaml", "--out", "out"]) == 1
    assert Path("out/table.md").is_file()
    assert capsys.readouterr().err == "error: The plot needs matplotlib: pip install 'lightning-styles[plot]'.\n"


class Stopped(Scored):
    """Is asked to stop in its first batch."""

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        raise Interrupted(signal.SIGTERM, 0, None)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_ends_the_comparison_and_no_row_counts_as_failed(processes: str) -> None:
    stopped = {"model": {"class_path": "tests.test_compare.Stopped", "init_args": {"learning_rate": 0.5}}}
    write("table.yaml", COMPARISON | {"rows": {"a": {}, "stopped": stopped, "b": {}}})
    assert main(["compare", "table.yaml", "--processes", processes]) == 143
    assert runs()[0] == 0.5  # with two processes the third row may run meanwhile
    assert processes == "2" or len(runs()) == 1
    rows = json.loads(Path("runs/table/table.json").read_text())["rows"]
    assert [(row["name"], "metrics" in row, "error" in row) for row in rows] == [
        ("a", True, False),
        ("stopped", False, False),
        ("b", False, False),
    ]


class Sleepy(ToyStyle):
    """Says who runs it, and takes longer than anyone waits."""

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        Path(f"{os.getpid()}.pid").touch()
        time.sleep(120)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_no_process_survives_a_comparison_that_is_killed(folder: Path) -> None:
    sleepy = {"model": {"class_path": "tests.test_compare.Sleepy", "init_args": {"learning_rate": 0.5}}}
    write("table.yaml", COMPARISON | {"rows": {"a": sleepy, "b": sleepy, "c": sleepy}})
    comparison = Launch(folder, "compare", "table.yaml", "--processes", "2")

    def workers() -> list[Path]:
        states = [Path(f"/proc/{path.stem}/stat") for path in Path().glob("*.pid")]
        return [file for file in states if file.exists() and file.read_text().split()[2] != "Z"]

    def wait_for(count: int) -> None:
        latest = time.monotonic() + 90
        while len(workers()) != count:
            assert time.monotonic() < latest
            time.sleep(0.2)

    wait_for(2)
    comparison.send(signal.SIGKILL)
    assert comparison.end() == -signal.SIGKILL
    wait_for(0)


def test_another_config_lies_under_the_settings_of_the_rows() -> None:
    write("fast.yaml", {"model": {"init_args": {"learning_rate": 2.0}}})
    assert main(["compare", "table.yaml", "--rows", "a,b", "--config", "fast.yaml"]) == 0
    assert runs() == [2.0, 0.25]


@pytest.mark.parametrize("every", [20, 100])
def test_rows_that_train_first_are_tested_on_what_they_learned(every: int) -> None:
    checkpoints = {"class_path": "callbacks.Checkpoints", "init_args": {"every_n_iterations": every}}
    trainer = BASE["trainer"] | {"max_steps": 60, "callbacks": [checkpoints]}
    write("toy.yaml", BASE | {"trainer": trainer})
    write("table.yaml", COMPARISON | {"fit": True, "rows": {"trained": {}, "fresh": {"fit": False}}})
    flags = ["--seed_everything", "0", "--model.init_args.learning_rate", "0.05"]
    assert main(["compare", "table.yaml", *flags]) == 0
    trained, fresh = (row["metrics"]["loss"] for row in json.loads(Path("runs/table/table.json").read_text())["rows"])
    assert trained < fresh / 3


@pytest.mark.parametrize("chosen", [[], ["--rows", "again/two"]])
def test_a_row_can_test_what_another_one_has_trained(chosen: list[str]) -> None:
    checkpoints = {"class_path": "callbacks.Checkpoints", "init_args": {"every_n_iterations": 20}}
    write("toy.yaml", BASE | {"trainer": BASE["trainer"] | {"max_steps": 20, "callbacks": [checkpoints]}})
    rows = {"trained": {}, "again": {"trained_by": "trained", "model.init_args.fail": False}, "fresh": {"fit": False}}
    repeat = {"one": {"seed_everything": 1}, "two": {"seed_everything": 2}}
    write("table.yaml", COMPARISON | {"fit": True, "rows": rows, "repeat": repeat})
    assert main(["compare", "table.yaml", "--model.init_args.learning_rate", "0.05", *chosen]) == 0
    found = {
        row["name"]: row.get("repeats", {}) for row in json.loads(Path("runs/table/table.json").read_text())["rows"]
    }
    loss = {name: {k: v["metrics"]["loss"] for k, v in each.items()} for name, each in found.items()}
    assert loss["again"] == loss["trained"]
    if chosen:
        assert list(loss) == ["trained", "again"]
        assert list(loss["again"]) == ["two"]
    else:
        assert loss["again"]["one"] != loss["again"]["two"]
        assert loss["fresh"]["one"] > loss["again"]["one"]
    lines = len(runs())
    assert main(["compare", "table.yaml", "--model.init_args.learning_rate", "0.05", *chosen]) == 0
    assert len(runs()) == lines, "nothing runs again"


def test_flags_apply_to_every_row() -> None:
    flags = ["--model.init_args.learning_rate", "0.0625", "--trainer.limit_test_batches", "1"]
    assert main(["compare", "table.yaml", "--rows", "a,b", *flags]) == 0
    assert runs() == [0.0625, 0.0625]


def test_a_row_that_is_no_config_is_named_before_the_others_run(capsys: pytest.CaptureFixture[str]) -> None:
    write("table.yaml", COMPARISON | {"rows": {"a": {}, "z": {"model.init_args.learning_rat": 1}}})
    assert main(["compare", "table.yaml"]) == 1
    captured = capsys.readouterr()
    assert "did you mean 'learning_rate'?" in captured.err
    assert captured.out.splitlines()[0] == "row z: the settings cannot be read, see the error above"
    assert runs() == [0.5]


class Starting(Scored):
    """Leaves behind how its process would start others."""

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        super().test_step(batch, batch_idx)
        Path(f"method_{os.getpid()}.txt").write_text(get_start_method(), encoding="utf-8")


@pytest.mark.slow
def test_rows_in_two_processes() -> None:
    base = BASE | {"model": {"class_path": "tests.test_compare.Starting", "init_args": {"learning_rate": 0.5}}}
    write("toy.yaml", base)
    assert main(["compare", "table.yaml", "--rows", "a,b", "--processes", "2"]) == 0
    table = json.loads(Path("runs/table/table.json").read_text())["rows"]
    assert [row["metrics"]["score"] for row in table] == [0.5, 0.25]
    methods = {int(path.stem.removeprefix("method_")): path.read_text() for path in Path().glob("method_*.txt")}
    assert os.getpid() not in methods
    assert set(methods.values()) == {get_start_method()}, "data loaders start their workers as in a plain run"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere.yaml"], "error: There is no config file nowhere.yaml"),
        (["table.yaml", "--rows", "a,q"], "error: There is no row 'q'; the rows are a, b, c, d.\n"),
        (["table.yaml", "a"], "error: compare takes one file, found also 'a'; choose rows with --rows a.\n"),
        (["table.yaml", "--processes", "0"], "error: --processes is 0; it must be at least 1.\n"),
        (
            ["toy.yaml"],
            "error: toy.yaml has the key data, model, trainer; a comparison has config, set,",
        ),
        (["d2.yaml"], "error: d2.yaml has no rows; add rows:"),
        (["d3.yaml"], "error: d3.yaml: repeat one is 3; expected settings, such as {data.init_args.batch_size: 4}.\n"),
        (["d5.yaml"], "error: d5.yaml: row a is trained_by 'b'; name a row above it that trains.\n"),
        (["d4.yaml"], "error: d4.yaml: plot is ['n']; expected two metrics, such as {x: content, y: twin}.\n"),
    ],
)
def test_mistakes(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    write("d2.yaml", {"config": ["toy.yaml"]})
    write("d3.yaml", COMPARISON | {"repeat": {"one": 3}})
    write("d5.yaml", COMPARISON | {"rows": {"a": {"trained_by": "b"}, "b": {"fit": True}}})
    write("d4.yaml", COMPARISON | {"plot": ["n"]})
    assert main(["compare", *arguments]) == 1
    assert capsys.readouterr().err.startswith(expected)


def test_dotted_and_nested_settings_are_one_tree() -> None:
    tree = nested({"a.b": 1, "a": {"c.d": 2}, "e": [3]})
    assert tree == {"a": {"b": 1, "c": {"d": 2}}, "e": [3]}
    assert merged(tree, {"a": {"b": 5}, "e": [4]}) == {"a": {"b": 5, "c": {"d": 2}}, "e": [4]}
    assert (listed(None), listed("x"), listed(["x", "y"])) == ([], ["x"], ["x", "y"])


def test_metrics_by_strength_and_the_curves_of_the_plot() -> None:
    metrics = {"n": 4.0, "twin@10": 0.1, "content@10": 0.2, "twin@2.5": 0.3, "content@2.5": 0.4}
    assert list(by_strength(metrics).items()) == [
        (None, {"n": 4.0}),
        ("2.5", {"twin": 0.3, "content": 0.4}),
        ("10", {"twin": 0.1, "content": 0.2}),
    ]
    point = {"twin": 0.5, "content": 0.6}
    table = [{"label": "none"}, {"label": "curve", "metrics": metrics | point}, {"label": "point", "metrics": point}]
    assert curves(table, Axes("content", "twin")) == [
        Curve("curve", ["2.5", "10"], [0.4, 0.2], [0.3, 0.1]),
        Curve("point", [""], [0.6], [0.5]),
    ]
    assert axis_name("twin") == "twin (lower is better)"
    assert axis_name("dreamsim_diversity") == "dreamsim_diversity (higher is better)"


def test_rows_are_compared_where_their_curves_meet() -> None:
    """y minus that of the first row at the same x, in each repetition; what lies beyond its curve is left out."""
    axes = Axes("content", "twin")

    def run(*places: tuple[float, float]) -> dict[str, Any]:
        return {"metrics": {f"{name}@{i}": v for i, place in enumerate(places) for name, v in zip(axes, place)}}  # noqa: B905

    straight, steep = run((0.0, 1.0), (1.0, 2.0), (3.0, 4.0)), run((0.0, 1.0), (1.0, 3.0), (2.0, 5.0))  # 1 + x, 1 + 2 x
    table = [
        {"label": "first", "repeats": {"a": straight, "b": steep, "c": {}}},
        {
            "label": "second",
            "repeats": {"a": run((0.5, 1.0), (2.0, 2.0), (9.0, 9.0)), "b": run((0.5, 3.0)), "c": straight},
        },
        {"label": "beyond", "repeats": {"a": run((4.0, 4.0)), "b": {}, "c": {}}},
    ]
    (found,) = differences(table, axes)
    assert (found["label"], found["runs"]) == ("second", 2)
    assert found["mean"] == pytest.approx(((-0.5 - 1.0) / 2 + 1.0) / 2)
    assert found["half_width"] == pytest.approx(12.7062 * (1.0 + 0.75) / 2, rel=1e-4)
    assert difference_lines(table, [found], axes)[1:] == [
        "| row | twin minus that of first at the same content | runs |",
        "|---|---:|---:|",
        "| second | +0.125 +- 11 | 2 |",
    ]
    assert differences([{"label": "alone", **straight}], axes) == []


def test_rows_of_the_shipped_comparison(tmp_path: Path) -> None:
    rows = read_rows(find_config("configs/tiny/compare_sms.yaml"), tmp_path, [], [])
    assert len(rows) == 17
    assert {row.files[0] for row in rows} == {"configs/tiny/sms.yaml"}
    by_name = {row.name: row.settings["model"]["init_args"] for row in rows}
    assert [by_name[name]["strength"] for name in ("nothing", "sdedit_0.7")] == [0, 0.7]
    assert by_name["no_relevance"]["relevance"] is False
    assert by_name["sms"].keys() == {"metrics"}


def test_rows_of_the_shipped_pairs_say_where_the_style_comes_in(tmp_path: Path) -> None:
    """Under guidance and under the LoRA's scale at the same step (arXiv 2405.01536, section 3.3)."""
    expected = {
        "pair_scale/sketch_animal": ("scale", 800),
        "pair_whole/sketch_animal": ("guidance", None),
        "pair_scale_whole/sketch_animal": ("scale", None),
        "slider_scale/sketch_animal": ("scale", 800),
    }
    rows = read_rows(find_config("configs/tiny/compare_pair.yaml"), tmp_path, [], [])
    found = {}
    for row in (row for row in rows if row.name in expected):
        resolve(row)
        method = parse_only(["test", *row.arguments])["model"]["init_args"]
        found[row.name] = method["mode"], method["style_start"]
    assert found == expected
