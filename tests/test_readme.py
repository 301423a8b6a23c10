"""What README.md promises: its commands run, from top to bottom in one folder, and its links and tables hold.

Commands on the embedded models run for real, with two iterations. Those on real weights are parsed, those of other
tools are checked as far as that goes without them.
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lightning_styles.__main__ import LIGHT, TRAINING, main
from lightning_styles.cli import parse_only
from lightning_styles.commands import compare
from lightning_styles.imaging import save_png
from lightning_styles.required_files import import_class

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")
PROGRAM = ["python", "-m", "lightning_styles"]
ITERATIONS = 2


def blocks(language: str) -> list[str]:
    """Fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Every command in the bash blocks as words, in their order."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


OWN = [words[len(PROGRAM) :] for words in commands() if words[: len(PROGRAM)] == PROGRAM]
OTHER = [words for words in commands() if words[: len(PROGRAM)] != PROGRAM]


def on_real_weights(words: list[str]) -> bool:
    """Whether a command needs more than what ships with the package."""
    return any(word.startswith("configs/") and not word.startswith("configs/tiny/") for word in words)


def shortened(words: list[str]) -> list[str]:
    """The same command with few iterations, on the CPU."""
    if words[0] == "stylize":
        return [*words, "--device", "cpu"]
    if words[0] not in {*TRAINING, "compare"} or "--print_config" in words or "--model.help" in words:
        return words
    if words[0] == "compare":
        words = [*words, "--rows", "nothing,sms"]  # the last one counts
    if "configs/tiny/style_lora.yaml" in words:
        words = [*words, "--data.images", "scene:portrait/0-15", "--model.steps", "2"]
    if "configs/tiny/osasis.yaml" in words:
        words = [*words, "--model.candidates", "2", "--data.pool", "4", "--vars.photos", '["scene:portrait/0?seed=1"]']
        words = [*words, "--model.steps", "{encode: 4, decode: 4}", "--model.predict_steps", "{encode: 4, decode: 4}"]
    if "configs/tiny/pair_customization.yaml" in words:
        words = [*words, "--model.style_from", "0", "--model.steps", "2", "--model.strengths", "[1]"]
    if "configs/tiny/style_guidance.yaml" in words:
        words = [*words, "--model.steps", "2", "--model.strengths", "[1]"]
    if "configs/tiny/pseudo_paired_stylegan.yaml" in words:
        words = [*words, "--model.finetune_iterations", "1", "--model.pairs.steps", "1"]
        words = [*words, "--vars.styles", "scene:portrait/0-7?seed=2"]
    more = ITERATIONS + 1 if "--ckpt_path" in words else ITERATIONS
    return [*words, "--trainer.max_steps", str(more), "--trainer.accelerator", "cpu"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the pictures and the config that README speaks of."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    monkeypatch.delenv("LIGHTNING_STYLES_MODELS", raising=False)
    from datamodules import scenes

    pictures = scenes.render(scenes.sample_scenes(5, range(3)), "photo", 64)
    for name, picture in zip(("photo.png", "photos/a.png", "photos/b.png"), pictures, strict=True):
        save_png(tmp_path / name, picture)
    for block in blocks("yaml"):
        name = block.splitlines()[0].removeprefix("# ")
        assert name.endswith(".yaml")
        (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


def test_every_command_is_known() -> None:
    assert {words[0] for words in OWN} <= {*TRAINING, *LIGHT, "--help"}
    assert {words[0] for words in OTHER} <= {"make", "export", "tensorboard", "sbatch"}
    assert {words[0] for words in OWN} >= {"fit", "test", "predict", "check", "compare", "stylize"}


@pytest.mark.slow
def test_commands_on_the_embedded_models_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = {}
    for words in OWN:
        if on_real_weights(words):
            continue
        code = main(shortened(words))
        output = capsys.readouterr()
        if code:
            failed[" ".join(words)] = output.err
    assert failed == {}
    run = Path("runs/tiny_sms/version_0")
    written = {str(file.relative_to(run)) for file in run.rglob("*") if file.is_file()}
    assert written >= {"config.yaml", "run.json", "checkpoints/last.ckpt", "previews/progress.webp"}
    assert {"results/portrait_8_seed1.png", "results/portrait_8_seed1_before_after.png"} <= written
    assert Path("runs/tiny_style_lora/version_0/export/style_lora.safetensors").is_file()
    assert sorted(file.name for file in Path("out").glob("*.png")) == ["a.png", "b.png"]
    assert sorted(file.name for file in Path("out/osasis").glob("*.png")) == ["a.png", "b.png"]
    assert sorted(file.name for file in Path("out/faces").glob("*.png")) == ["a.png", "b.png"]
    assert Path("runs/tiny_compare_sms/table.md").is_file()


@pytest.mark.parametrize("words", [w for w in OWN if on_real_weights(w)], ids=" ".join)
def test_commands_on_real_weights_parse(folder: Path, words: list[str]) -> None:
    config = parse_only(["fit" if words[0] == "check" else words[0], *words[1:]])
    import_class(config["model"]["class_path"])


@pytest.mark.parametrize("words", [w for w in OWN if w[0] == "compare"], ids=" ".join)
def test_rows_to_compare_exist(words: list[str]) -> None:
    options, flags = compare.parser().parse_known_args(words[1:])
    rows = compare.read_rows(ROOT / options.comparison, Path("out"), flags, options.config)
    rows = compare.chosen(rows, options.rows)
    assert [row.name for row in rows] == (options.rows.split(",") if options.rows else [row.name for row in rows])
    assert "sms" in {row.name for row in rows}


def test_check_lists_what_is_missing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = [words for words in OWN if words[0] == "check"]
    assert main(words) == 1
    missing = [line for line in capsys.readouterr().out.splitlines() if line.startswith("MISSING")]
    assert ["'stable-diffusion-v1-5'" in missing[0], "'pyramid-lora-ghibli-n3'" in missing[1]] == [True, True]


@pytest.mark.parametrize("words", [w for w in OTHER if w[0] == "make"], ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    run = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ".venv/bin" in run.stdout


@pytest.mark.parametrize("words", [w for w in OTHER if w[0] == "sbatch"], ids=" ".join)
def test_batch_scripts_are_shell(words: list[str]) -> None:
    subprocess.run(["bash", "-n", str(ROOT / words[1])], check=True)
    for word in words[2:]:
        assert not word.startswith("configs/") or (ROOT / word).is_file()


def test_links_and_pictures_exist() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert len(targets) >= 5
    assert [target for target in targets if "://" not in target and not (ROOT / target).exists()] == []


def test_the_table_of_configs_is_complete() -> None:
    named = set(re.findall(r"`(\w+\.yaml)`", README))
    assert named >= {path.name for path in (ROOT / "configs").glob("*.yaml")}


def test_keys_in_the_text_exist() -> None:
    named = set(re.findall(r"`(?:--)?((?:model|data|trainer)\.\w+)[ `]", README))
    assert len(named) > 8
    config = parse_only(["fit", "--config", "configs/tiny/sms.yaml"])
    for key in named:
        part, name = key.split(".", 1)
        known = config[part] if part == "trainer" else config[part]["init_args"]
        assert name in known, key


def test_the_example_config_is_the_one_that_runs(folder: Path) -> None:
    config = parse_only(["fit", "--config", "configs/tiny/sms.yaml", "--config", "mine.yaml"])
    mine = yaml.safe_load(Path("mine.yaml").read_text("utf-8"))
    settings = config["model"]["init_args"]
    own = mine["model"]["init_args"]
    assert settings["identity"] == own["identity"]
    assert settings["weights"] == {"style": 1.0, **own["weights"]}
    assert config["trainer"]["callbacks"][3]["init_args"]["output_dir"] == mine["vars"]["output_dir"]


def test_readme_is_short_and_plain() -> None:
    assert README.startswith("# lightning_styles\n")
    assert README.count("\n") <= 250
    assert README.isascii()


def test_the_results_page_names_comparisons_and_pictures_that_exist() -> None:
    text = (ROOT / "docs" / "results.md").read_text("utf-8")
    commands = re.findall(r"^python -m lightning_styles compare (.*?)$", text.replace("\\\n", " "), re.MULTILINE)
    for command in commands:
        options, flags = compare.parser().parse_known_args(shlex.split(command))
        assert flags == []
        assert [file for file in options.config if not (ROOT / file).is_file()] == []
        rows = compare.read_rows(ROOT / options.comparison, Path("out"), flags, options.config)
        assert [row.label for row in rows if f"| {row.label} |" not in text.replace("**", "")] == []
    assert len(commands) == 6
    assert [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not (ROOT / "docs" / link).exists()] == []
