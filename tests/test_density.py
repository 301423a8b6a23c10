"""`density`: rare and common pictures of a folder."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lightning_styles import noise
from lightning_styles.__main__ import main
from lightning_styles.commands import density
from lightning_styles.diffusion.density import stochastic_reconstruction
from lightning_styles.diffusion.respacing import Respaced, even_timesteps, linear_betas
from lightning_styles.imaging import read_image, read_settings, save_png
from lightning_styles.pretrained.diffae import load_diffae
from lightning_styles.pretrained.networks import load_perceptual
from tests.micro_osasis import SIZE, MicroOSASIS

pytest_plugins = ["tests.micro_osasis"]


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with five photos, one of them wide."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    for name in "abcde":
        save_png(f"photos/{name}.png", torch.rand(3, SIZE, SIZE + 16 * (name == "c")) * 2 - 1)
    return tmp_path / "photos"


def words(micro: MicroOSASIS, *more: str) -> list[str]:
    common = ["density", "photos", "--diffae", micro.diffae, "--perceptual", "tiny/perceptual", "--device", "cpu"]
    return [*common, "--resolution", str(SIZE), "--steps", "4", "--top", "2", "--out", "out", *more]


def table() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(Path("out/density.json").read_text())["pictures"]}


def test_a_reconstruction_keeps_the_code_alone(micro_osasis: MicroOSASIS) -> None:
    model = load_diffae(Path(micro_osasis.diffae)).model
    images, x = torch.rand(2, 3, SIZE, SIZE), torch.randn(2, 3, SIZE, SIZE)
    result = stochastic_reconstruction(model, images, x, steps=2)
    process = Respaced.of(linear_betas(), even_timesteps(2))
    with torch.no_grad():
        for i in (1, 0):
            a, before = (float(values[i]) for values in (process.alpha_bar, process.alpha_bar_prev))
            eps = model(x, torch.tensor([500 * i] * 2), model.encoder(images))
            x_0 = ((x - (1 - a) ** 0.5 * eps) / a**0.5).clamp(-1, 1)
            x = before**0.5 * x_0 + (1 - before) ** 0.5 * (x - a**0.5 * x_0) / (1 - a) ** 0.5
    torch.testing.assert_close(result, x, rtol=1e-4, atol=1e-5)


def test_the_table_ranks_by_the_distance_of_the_reconstruction(micro_osasis: MicroOSASIS) -> None:
    assert main(words(micro_osasis, "--batch-size", "3", "--seed", "7")) == 0
    rows, judge = table(), load_perceptual("tiny/perceptual")
    model = load_diffae(Path(micro_osasis.diffae)).model
    for name in "ac":
        image = read_image(f"photos/{name}.png")[None, :, :, 8 * (name == "c") :][..., :SIZE]
        x_T = torch.randn(1, 3, SIZE, SIZE, generator=noise.generator(7, name, "density"))
        distance = judge(stochastic_reconstruction(model, image, x_T, steps=4), image).item()
        assert rows[name]["distance"] == pytest.approx(distance, rel=1e-3)
    ordered = sorted(rows.values(), key=lambda row: -row["distance"])
    assert [row["rank"] for row in ordered] == [1, 2, 3, 4, 5]
    with Path("out/density.csv").open() as file:
        assert [(row["rank"], row["name"]) for row in csv.DictReader(file)] == [
            (str(row["rank"]), row["name"]) for row in ordered
        ]
    with Image.open("out/low_density.png") as low, Image.open("out/high_density.png") as high:
        assert low.size == high.size == (132, 262)  # two pictures of 128 px with a border of 2
        assert low.tobytes() != high.tobytes()
    settings = read_settings("out/low_density.png")
    assert settings is not None
    assert {key: settings[key] for key in ("steps", "seed", "resolution")} == {
        "steps": 4, "seed": 7, "resolution": SIZE
    }  # fmt: skip
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "density.csv", "density.json", "high_density.png", "low_density.png"
    ]  # fmt: skip


def test_what_is_in_the_table_is_not_measured_again(
    micro_osasis: MicroOSASIS, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(micro_osasis)) == 0
    first = table()
    Path("out/density.json").unlink()
    measured = density.measured

    def killed(*arguments: Any) -> Any:
        for done, row in enumerate(measured(*arguments)):
            if done == 3:
                raise KeyboardInterrupt
            yield row

    monkeypatch.setattr(density, "measured", killed)
    assert main(words(micro_osasis, "--batch-size", "2")) == 130
    assert sorted(table()) == ["a", "b", "c"]
    monkeypatch.setattr(density, "measured", measured)
    capsys.readouterr()
    assert main(words(micro_osasis)) == 0
    assert "5 pictures, 2 to measure" in capsys.readouterr().out
    assert table() == {
        name: row | {"distance": pytest.approx(row["distance"], rel=1e-4)} for name, row in first.items()
    }
    for changes, count in ((["--seed", "1"], 5), (["--seed", "1"], 0), (["--seed", "1", "--fresh"], 5)):
        assert main(words(micro_osasis, *changes)) == 0
        assert f"5 pictures, {count} to measure" in capsys.readouterr().out


def test_broken_files_are_named_and_left_out(
    micro_osasis: MicroOSASIS, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (photos / "b.png").write_bytes(b"no picture")
    assert main(words(micro_osasis)) == 0
    assert sorted(table()) == ["a", "c", "d", "e"]
    assert "b.png" in caplog.text


@pytest.mark.parametrize(
    ("changes", "code", "expected"),
    [
        (["--top", "0"], 1, "error: --top is 0; it must be at least 1.\n"),
        (["--steps", "300"], 1, "error: 300 steps do not divide 1000 timesteps evenly; the nearest"),
        (["--resolution", "33"], 1, "error: --resolution is 33; "),
        (["--resolution", "5"], 1, "error: resolution is 5; expected 16 to 8192 px.\n"),
        (["--diffae", "nothing"], 1, "error: diffae 'nothing' is neither a file or folder nor a known name"),
        (["--diffae", "tiny/perceptual"], 1, "error: 'tiny/perceptual' is a perceptual, but a diffae is needed here"),
        (["--device", "gpu0"], 1, "error: --device is gpu0; expected auto, cpu"),
        (["--lpips", "vgg16-imagenet"], 2, "error: argument --lpips: not allowed with argument --perceptual"),
        (["--tops", "3"], 2, "error: unrecognized arguments: --tops 3"),
    ],
)
def test_mistakes(
    micro_osasis: MicroOSASIS, changes: list[str], code: int, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(micro_osasis, *changes)) == code
    assert capsys.readouterr().err.startswith(expected)
    assert not Path("out").exists() or not list(Path("out").iterdir())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[1, 2]", ": it holds a list of 2, expected a mapping with recipe, pictures; remove it"),
        ("[", " is no table of density; remove it"),
        ("[" * 50_000, " is no table of density; remove it"),
        ('{"recipe": {}, "pictures": {}}', ": pictures is a mapping of 0, expected a list"),
        ('{"recipe": {}, "pictures": [{"name": "a", "path": 3}]}', ": pictures.0.path is 3, expected text"),
        (
            '{"recipe": {}, "pictures": [{"name": "a", "path": "", "distance": NaN}]}',
            ": pictures.0.distance is nan, expected a finite number",
        ),
    ],
)
def test_a_folder_of_something_else(
    text: str, says: str, micro_osasis: MicroOSASIS, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("out").mkdir()
    Path("out/density.json").write_text(text)
    assert main(words(micro_osasis)) == 1
    assert capsys.readouterr().err.startswith(f"error: out/density.json{says}")
    assert Path("out/density.json").read_text() == text
