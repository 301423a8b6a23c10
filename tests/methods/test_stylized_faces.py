"""Modes of PseudoPairedStyleGAN's `predict`: what is drawn of photographs, with whose styles, and where it goes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules import Pictures
from lightning_styles.__main__ import main
from lightning_styles.alignment import paste_back
from lightning_styles.errors import UserError
from lightning_styles.imaging import read_image, save_png
from lightning_styles.methods import references
from lightning_styles.methods.pseudo_paired_stylegan import PseudoPairedStyleGAN
from lightning_styles.methods.pseudo_pairs import Style
from lightning_styles.methods.pseudo_pairs_prepare import Preparation
from lightning_styles.methods.references import References, digest
from lightning_styles.models.stylegan2.factorization import factorize, modulation_weights
from lightning_styles.models.stylegan2.mixing import mix, truncate
from lightning_styles.models.stylegan2.pairing import encode_w
from lightning_styles.pretrained.psp import load_psp
from tests.methods.test_stylegan_baselines import photo_with_face, photos, pictures, predict
from tests.micro import quiet_trainer
from tests.micro_stylegan import LAYERS, SIZE, STYLE, make_method, make_stylegan, shaken, style_images
from tests.sheets import cells

pytest_plugins = ["tests.micro_stylegan"]


class Changed(PseudoPairedStyleGAN):
    """Its average is no copy of G, as after a training."""

    def configure_model(self) -> None:
        if not hasattr(self, "styled"):
            super().configure_model()
            shaken(self.average.convs)


def make(folder: Path, **changes: Any) -> Changed:
    return Changed(**dict(make_method(folder, **changes).hparams))


def ready(folder: Path, **changes: Any) -> tuple[Changed, Tensor]:
    """The method and w+ of the photographs, for expectations."""
    method = make(folder, **changes)
    method.configure_model()
    encoder = load_psp(folder / "psp_z_plus.safetensors")
    return method, encode_w(encoder, method.source, pictures())


def near(results: dict[str, Tensor], expected: Tensor) -> None:
    torch.testing.assert_close(torch.stack(list(results.values())), expected.clamp(-1, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("layer", "first"), [(None, 4), (6, 6)], ids=["default", "given"])
def test_random_styles_begin_at_the_layer(micro_stylegan: Path, tmp_path: Path, layer: int | None, first: int) -> None:
    settings: dict[str, Any] = {"mode": "multimodal", "layer": layer}
    method, w = ready(micro_stylegan, **settings)
    results = predict(make(micro_stylegan, **settings), tmp_path)
    style = truncate(method.average.mapping(method.random_codes(list(results), 0)), method.latent_avg, 0.7)
    near(results, method.average(torch.cat([w[:, :first], style[:, first:]], 1)))
    alone = predict(make(micro_stylegan, **settings), tmp_path, photos(batch_size=1))
    other = predict(make(micro_stylegan, seed=1, **settings), tmp_path)
    for name, image in results.items():
        torch.testing.assert_close(alone[name], image, rtol=1e-4, atol=1e-5)
        assert (other[name] - image).abs().mean() > 1e-3


def test_psi_draws_random_styles_to_the_mean_and_leaves_the_photograph(micro_stylegan: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mode": "multimodal", "layer": 2, "psi": 0.0}
    method, w = ready(micro_stylegan, **settings)
    expected = method.average(mix(w, method.latent_avg.expand(len(w), -1), 2))
    near(predict(make(micro_stylegan, **settings), tmp_path), expected)


def test_samples_are_one_labelled_picture(micro_stylegan: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mode": "multimodal", "layer": 1}
    first = predict(make(micro_stylegan, **settings), tmp_path)
    rows = predict(make(micro_stylegan, samples=3, **settings), tmp_path)
    for photo, (name, row) in zip(pictures(), rows.items(), strict=True):
        (shown,) = cells(row, 1, 4, SIZE)
        torch.testing.assert_close(shown[0], photo)
        torch.testing.assert_close(shown[1], first[name], rtol=1e-4, atol=1e-4)
        assert min((shown[i] - shown[j]).abs().mean() for i, j in ((1, 2), (1, 3), (2, 3))) > 1e-3


def test_layers_are_shown_side_by_side_or_above_samples(micro_stylegan: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"mode": "multimodal", "layer": [2, 5]}
    each = [predict(make(micro_stylegan, mode="multimodal", layer=layer), tmp_path) for layer in (2, 5)]
    row = predict(make(micro_stylegan, **settings), tmp_path)
    sheet = predict(make(micro_stylegan, samples=2, **settings), tmp_path)
    for photo, name in zip(pictures(), row, strict=True):
        (shown,) = cells(row[name], 1, 3, SIZE)
        for cell, expected in zip(shown, (photo, each[0][name], each[1][name]), strict=True):
            torch.testing.assert_close(cell, expected, rtol=1e-4, atol=1e-4)
        for line, expected in zip(cells(sheet[name], 2, 3, SIZE), each, strict=True):
            torch.testing.assert_close(line[1], expected[name], rtol=1e-4, atol=1e-4)


def test_a_reference_gives_its_styles_and_is_sought_once(
    micro_stylegan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_png(tmp_path / "art.png", torch.rand(3, SIZE, SIZE) * 2 - 1)
    settings: dict[str, Any] = {
        "mode": "reference", "reference": str(tmp_path / "art.png"), "reference_steps": 3, "cache": str(tmp_path / "c"),
    }  # fmt: skip
    method, w = ready(micro_stylegan, **settings)
    results = predict(make(micro_stylegan, **settings), tmp_path)
    (file,) = (tmp_path / "c").glob("reference_art_*.safetensors")
    shown, _ = cells(read_image(file.with_suffix(".png")), 1, 2, SIZE)[0]
    torch.testing.assert_close(shown, read_image(tmp_path / "art.png"), rtol=0, atol=0.01)
    files = References(tmp_path / "c", None, "tiny/perceptual", 3, 0)
    monkeypatch.setattr(references, "invert_reference", None)  # from here on all is read
    style = Style("art", read_image(tmp_path / "art.png"))
    space, v = files.find(style, method.average, method.latent_avg)
    torch.testing.assert_close(space.directions, factorize(modulation_weights(method.average)).directions)
    assert v.shape == (STYLE,)
    assert (space.to_w(v) - method.latent_avg).abs().max() > 1e-3
    expected = mix(w, space.to_w(v).expand(len(w), -1), 3)  # 6 of 18 is 3 of 8
    near(results, method.average(expected))
    near(predict(make(micro_stylegan, **settings), tmp_path), method.average(expected))
    near(predict(make(micro_stylegan, layer=LAYERS, **settings), tmp_path), method.average(w))
    mean = method.latent_avg.expand_as(w)
    expected = mix(mean, space.to_w(v).expand(len(w), -1), 3)
    near(predict(make(micro_stylegan, psi=0.0, **settings), tmp_path), method.average(expected))
    with pytest.raises(TypeError):
        files.find(style, shaken(make_stylegan().generator), method.latent_avg)  # type: ignore[arg-type]


def test_the_mode_does_not_matter_to_the_preparation(micro_stylegan: Path, tmp_path: Path) -> None:
    names = []
    for changes in ({}, {"mode": "reference", "reference": "a.png", "layer": 2}, {"mode": "multimodal", "samples": 2}):
        method = make_method(micro_stylegan, cache=str(tmp_path), **changes)
        method.trainer = quiet_trainer(tmp_path, 1)
        names.append(Preparation(method, style_images()).finetuned_file().name)
        (tmp_path / names[-1]).unlink()
    assert len(set(names)) == 1


def test_a_search_moves_towards_the_reference(micro_stylegan: Path, tmp_path: Path) -> None:
    generator, mean = make_stylegan().generator, make_stylegan().latent_avg
    z = torch.randn(1, STYLE, generator=torch.Generator().manual_seed(5))
    style = Style("own", generator(generator.mapping(z))[0].detach())
    distances = []
    for steps in (1, 60):
        References(tmp_path / str(steps), None, "tiny/perceptual", steps, 0).find(style, generator, mean)
        space, v = References(tmp_path / str(steps), None, "tiny/perceptual", steps, 0).find(style, generator, mean)
        distances.append((generator(space.to_w(v)[None])[0] - style.image).square().mean().item())
    assert distances[1] < 0.5 * distances[0]


def test_the_digest_is_of_parameters_alone() -> None:
    one, other = make_stylegan().generator, make_stylegan().generator
    other.noises.noise_0.add_(1)  # type: ignore[operator]
    assert digest(one) == digest(other)
    other.conv1.conv.weight.data[0, 0, 0, 0, 0] += 1e-3
    assert digest(one) != digest(other)


def test_a_face_is_cut_out_stylized_and_put_back(micro_stylegan: Path, tmp_path: Path) -> None:
    quad = photo_with_face(tmp_path)
    photo, data = read_image(tmp_path / "me.png"), photos(images=str(tmp_path / "me.png"), resolution=None)
    square = predict(make(micro_stylegan), tmp_path, data)["me"]
    assert square.shape == (3, SIZE, SIZE)
    whole = predict(make(micro_stylegan, paste_back=True), tmp_path, data)["me"]
    torch.testing.assert_close(whole, paste_back(photo, square, quad), rtol=1e-4, atol=0.01)
    row = predict(make(micro_stylegan, paste_back=True, mode="multimodal", samples=2), tmp_path, data)["me"]
    height, width = photo.shape[-2:]
    assert row.shape == (3, height + 28, 3 * (width + 4))
    before = row[:, 26:-2, 2 : 2 + width]
    assert (before - photo).abs().mean() < 0.1, "the face where it was"
    torch.testing.assert_close(before[:, :, :10], photo[:, :, :10])


def test_stylize_puts_faces_back_into_photos_of_any_size(
    micro_stylegan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    method = make(micro_stylegan, weights={"semantic": 0.0, "paired": 0.0})
    run = quiet_trainer(tmp_path, 1)
    run.fit(method, datamodule=style_images())
    run.save_checkpoint(tmp_path / "last.ckpt")
    (tmp_path / "photos").mkdir()
    photo_with_face(tmp_path / "photos")  # 90 x 120 px
    save_png(tmp_path / "photos" / "whole.png", torch.rand(3, 90, 120) * 2 - 1)  # without landmarks
    options = [
        "photos",
        "--style",
        "last.ckpt",
        "--trust",
        "--device",
        "cpu",
        "--batch-size",
        "2",
        "--set",
        "paste_back=true",
    ]
    assert main(["stylize", *options, "--out", "one"]) == 0
    assert read_image(tmp_path / "one" / "me.png").shape == (3, 90, 120)
    assert read_image(tmp_path / "one" / "whole.png").shape == (3, SIZE, SIZE)
    many = ["--out", "many", "--set", "mode=multimodal", "--set", "samples=2"]
    assert main(["stylize", *options, *many]) == 0
    for name, width in (("me", 120), ("whole", 4 * SIZE)):
        assert read_image(tmp_path / "many" / f"{name}.png").shape[-1] == 3 * (width + 4)
    assert not list(tmp_path.glob("*.png")), "the warning's picture lies beside the results"


def test_samples_are_measured_by_the_first(micro_stylegan: Path, tmp_path: Path) -> None:
    data = Pictures(images="scene:portrait/0-2", resolution=SIZE, batch_size=2, twin_style="cartoon")
    found = []
    for samples in (1, 2):
        method = make(micro_stylegan, mode="multimodal", samples=samples, metrics={"perceptual": "tiny/perceptual"})
        found += quiet_trainer(tmp_path, 1).test(method, datamodule=data, verbose=False)
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": 3}, "layer is 3, and mode is standard"),
        ({"layer": [], "mode": "multimodal"}, "layer is an empty list"),
        ({"samples": 2}, "samples is 2, and mode is standard, which has one result"),
        ({"samples": 0, "mode": "multimodal"}, "samples is 0; it must be at least 1"),
        ({"psi": -0.5}, "psi is -0.5; it must be at least 0"),
        ({"mode": "reference"}, "reference takes; there is none, and mode is reference"),
        ({"reference": "a.png"}, "reference takes; it is a.png, and mode is standard"),
        ({"mode": "multimodal", "layer": 9}, "layer is 9; the generator has 8 styles, so expected 0 to 8"),
        ({"mode": "reference", "reference": "gone.png"}, "There is no file gone.png"),
        (
            {
                "mode": "reference",
                "reference": "a.png",
                "perceptual": None,
                "weights": {"semantic": 0.0, "paired": 0.0},
            },
            "mode reference needs a judge: set model.lpips or model.perceptual",
        ),
    ],
    ids=str,
)
def test_modes_that_cannot_work_are_refused(
    micro_stylegan: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predict(make(micro_stylegan, **changes), tmp_path)
