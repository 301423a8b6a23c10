"""The shipped experiments: each parses, prints itself, and names classes, weights and settings that exist."""

import copy
import functools
import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_styles.__main__ import main
from lightning_styles.cli import parse_only
from lightning_styles.errors import UserError
from lightning_styles.files import existing
from lightning_styles.metrics.networks import required_models
from lightning_styles.pretrained import locate, registry
from lightning_styles.required_files import class_paths, import_class, required_files
from tests.shipped import CONFIGS, FILES, OVERLAYS, ROOT

SMS = [name for name in CONFIGS if "sms" in name]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs are found beside the package, whatever the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])


@functools.cache
def parsed(name: str) -> dict[str, Any]:
    """The experiment of a shipped config."""
    return parse_only(["fit", "--config", name])


def leaves(tree: Any) -> Iterator[Any]:
    """Every value in nested dicts and lists."""
    if isinstance(tree, (dict, list)):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(branch)
    else:
        yield tree


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_parses_and_its_classes_exist(name: str) -> None:
    config = parsed(name)
    found = list(class_paths({key: config[key] for key in ("model", "data", "trainer")}))
    assert [config["model"]["class_path"], config["data"]["class_path"]] == found[:2]
    assert [path for path in found if not isinstance(import_class(path), type)] == []
    assert [leaf for leaf in leaves(config) if isinstance(leaf, str) and "${" in leaf] == []


@pytest.mark.parametrize("name", CONFIGS)
def test_a_printed_config_is_the_same_experiment(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", name, "--print_config"]) == 0
    printed = capsys.readouterr().out
    Path("printed.yaml").write_text(printed, encoding="utf-8")
    assert main(["fit", "--config", "printed.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    assert {**parse_only(["fit", "--config", "printed.yaml"]), "config": None} == {**parsed(name), "config": None}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_names_weights_of_the_registry(name: str) -> None:
    model = parsed(name)["model"]
    ask = getattr(import_class(model["class_path"]), "required_models", None)
    weights = [pair for pair in ask(model["init_args"]) if pair[1] != "file"]  # pictures are the user's own
    named = [pair for pair in weights if not pair[0].startswith("runs/")]
    assert {weight: registry().get(weight, {}).get("kind") for weight, _ in named} == dict(named)


@pytest.mark.parametrize("name", sorted({file for file in CONFIGS if "tiny/" in file}))
def test_weights_of_the_tiny_configs_ship_with_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_STYLES_MODELS", raising=False)
    model = parsed(name)["model"]
    named = import_class(model["class_path"]).required_models(model["init_args"])  # type: ignore[attr-defined]
    package = Path(importlib.import_module("lightning_styles").__file__ or "").parent
    assert [weight for weight, kind in named if kind != "file" and package not in locate(weight, kind).parents] == []
    assert [file for file, kind in named if kind == "file" and not existing(file).is_file()] == []


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_changes_what_it_names_over_the_config_of_its_header(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    base, last = re.findall(r"--config (\S+)", text)
    assert last == name
    overlay = yaml.safe_load(text)
    variables = [word for key, value in overlay.get("vars", {}).items() for word in (f"--vars.{key}", value)]
    layered = parse_only(["fit", "--config", base, "--config", name])
    alone = parse_only(["fit", "--config", base, *variables])
    for key in ("model", "data"):
        changes = overlay.get(key, {}).get("init_args", {})
        assert layered[key]["class_path"] == alone[key]["class_path"]
        assert {**alone[key]["init_args"], **changes} == dict(layered[key]["init_args"])
        assert [name for name, value in changes.items() if alone[key]["init_args"][name] == value] == []


@pytest.mark.parametrize("name", FILES)
def test_a_config_begins_with_what_it_is_and_how_to_run_it(name: str) -> None:
    lines = (ROOT / name).read_text("utf-8").splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert lines[0].startswith("# ")
    assert max(map(len, lines)) <= 120
    assert "python -m lightning_styles" in header
    for file in re.findall(r"--config (\S+)", header):
        assert (ROOT / file).is_file(), file


@pytest.mark.parametrize("name", SMS)
def test_sms_runs_as_long_as_the_trainer(name: str) -> None:
    config = parse_only(["predict", "--config", name, "--trainer.max_steps", "7"])
    assert config["model"]["init_args"]["iterations"] == 7


@pytest.mark.parametrize("name", [name for name in SMS if "tiny/" not in name])
def test_sms_has_the_papers_settings(name: str) -> None:
    config = parsed(name)
    settings = config["model"]["init_args"]
    expected = {"iterations": 500, "guidance": 4.5, "lr": 0.1, "weight_decay": 0.01, "warmup": 100, "fake_lr": 0.001}
    expected |= {"rank": 8, "alpha": 32.0, "lora_strength": 0.8, "objective": "sms", "identity": "progressive"}
    assert {key: settings[key] for key in expected} == expected
    assert settings["weights"] == {"style": 1.0, "identity": 0.0002 if "pixel" in name else 0.0005}
    assert config["data"]["init_args"]["resolution"] == 512


@pytest.mark.parametrize("name", [name for name in CONFIGS if "osasis" in name and "tiny/" not in name])
def test_osasis_has_the_settings_of_its_official_code(name: str) -> None:
    config = parsed(name)
    settings, data = config["model"]["init_args"], config["data"]["init_args"]
    expected = {"iterations": 200, "lr": 5e-6, "spn_lr": 1e-4, "lambda_spn": 0.1, "t0": 0.5, "f_ch": 32, "spn": "time"}
    expected |= {"resolution": 256, "candidates": 30, "steps": {"encode": 50, "decode": 20}, "dropout": True}
    expected |= {"predict_steps": {"encode": 100, "decode": 50}, "lambda_style": 1.0, "start": "below"}
    expected |= {"weights": {"cross": 1.0, "in": 0.5, "re_clip": 30.0, "re_l1": 10.0, "re_lpips": 10.0}}
    assert {key: settings[key] for key in expected} == expected
    assert (data["diffae"], data["batch_size"], data["steps"]) == (settings["diffae"], 8, 20)
    domain = name.partition("osasis_")[2].removesuffix(".yaml").replace("_", "-")
    assert settings["diffae"] == f"diffae-{domain}256"
    assert settings["domain_model"] == f"p2-{domain}"


@pytest.mark.parametrize("name", [name for name in CONFIGS if "pair_sdxl" in name])
def test_pair_customization_has_the_settings_of_its_official_code(name: str) -> None:
    config = parsed(name)
    settings, data = config["model"]["init_args"], config["data"]["init_args"]
    expected = {"iterations": 750, "style_from": 250, "content_rank": 64, "style_rank": 64, "lr": 1e-5}
    expected |= {"weight_decay": 1e-4, "updates": "sequential", "down": "orthogonal", "basis_seed": 123846}
    expected |= {"targets": ["to_q", "to_k", "to_v", "to_out.0"], "snr_gamma": None, "noise_offset": 0.0}
    expected |= {"strength": 3.0, "guidance": 5.0, "steps": 50, "style_start": 800, "clip_norm": None}
    assert {key: settings[key] for key in expected} == expected
    assert (data["resolution"], data["flip"], data["batch_size"]) == (512, "always", 1)
    assert settings["base"] == "stable-diffusion-xl"


def test_every_style_writes_into_its_own_folder() -> None:
    folders = [yaml.safe_load((ROOT / name).read_text("utf-8"))["vars"]["output_dir"] for name in SMS]
    assert sorted(folders) == sorted(set(folders))


# ---- SLURM


def run_sbatch(script: str, *arguments: str, **variables: str) -> list[list[str]]:
    """The command lines that a batch script hands to srun."""
    Path("bin").mkdir(exist_ok=True)
    srun = Path("bin/srun")
    code = f"#!{sys.executable}\nimport json, sys\nprint('srun', json.dumps(sys.argv[1:]))\n"
    srun.write_text(code, encoding="utf-8")
    srun.chmod(0o755)
    environment = {**os.environ, **variables, "PATH": f"{srun.parent.absolute()}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "configs/slurm" / script), *arguments]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [json.loads(line.removeprefix("srun ")) for line in run.stdout.splitlines() if line.startswith("srun ")]


def test_array_tasks_share_the_photos_with_their_captions() -> None:
    photos = Path("my photos")
    photos.mkdir()
    for name in ("a.jpg", "b 2.jpg", "c.png", "b 2.txt"):
        (photos / name).write_text(name, encoding="utf-8")
    shares = []
    for task in range(4):
        variables = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "4"}
        arguments = ("configs/tiny/sms.yaml", str(photos), "out", "--trainer.max_steps", "9")
        started = run_sbatch("sms_array.sbatch", *arguments, **variables)
        if not started:
            continue
        words = started[0][1:]
        config = parse_only(words[words.index("lightning_styles") + 1 :])
        assert config["trainer"]["max_steps"] == 9
        assert config["trainer"]["callbacks"][3]["init_args"]["output_dir"] == "out"
        share = Path(config["data"]["init_args"]["images"])
        shares.append({link.name: link.read_text("utf-8") for link in share.iterdir()})
    expected = [{"a.jpg": "a.jpg"}, {"b 2.jpg": "b 2.jpg", "b 2.txt": "b 2.txt"}, {"c.png": "c.png"}]
    assert shares == expected


@pytest.mark.parametrize(("script", "nodes"), [("fit.sbatch", 1), ("fit_nodes.sbatch", 2)])
def test_fit_takes_one_process_a_gpu(script: str, nodes: int) -> None:
    variables = {"SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": str(nodes), "SLURM_JOB_ID": "7"}
    (words,) = run_sbatch(script, "--config", "configs/style_lora_sd15.yaml", **variables)
    config = parse_only(words[words.index("lightning_styles") + 1 :])
    trainer = config["trainer"]
    assert (str(trainer["devices"]), trainer["num_nodes"], config["run"]) == ("4", nodes, "job_7")


MEASURED = {
    "sms": {"lpips", "art_inception", "style_images"},
    "osasis": {"lpips", "art_inception", "structure", "style_images"},
    "pair": {"dreamsim"},
    "stylegan": {"lpips", "identity", "inception", "style_images"},
}


@pytest.mark.parametrize("name", [name for name in CONFIGS if re.match(r"configs/(sms|osasis|pair|stylegan)_", name)])
def test_a_config_of_a_paper_measures_what_the_paper_does(name: str, tmp_path: Path) -> None:
    config = parsed(name)
    metrics = config["model"]["init_args"]["metrics"]
    kind = Path(name).stem.partition("_")[0]
    assert metrics.keys() - {"identity"} == MEASURED[kind] - {"identity"}
    assert ("identity" in metrics) == (kind == "stylegan" or name.endswith("ffhq.yaml"))
    method, settings = import_class(config["model"]["class_path"]), config["model"]["init_args"]
    trained = method.required_models(settings | {"metrics": {}})
    own = set(required_models(metrics)) - set(trained)  # what is for the metrics alone
    for command, needed in {"check": own, "test": own, "fit": set(), "predict": set()}.items():
        found = {(file.name, file.kind) for file in required_files(config, command)}
        assert found & own == needed, command
    assert config["trainer"]["limit_val_batches"] == 0


@pytest.mark.parametrize("command", ["check", "fit", "predict", "test"])
def test_a_metric_that_there_is_not_is_refused_by_every_command(command: str) -> None:
    config = copy.deepcopy(parsed("configs/sms_ghibli.yaml"))
    config["model"]["init_args"]["metrics"] = {"art_incepton": "x"}
    with pytest.raises(UserError, match="There is no metric 'art_incepton': did you mean art_inception?"):
        required_files(config, command)
