"""What `predict` of OSASIS can do: official checkpoints, kept encodings, sheets over settings, edits by text."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import Export, ImageWriter
from datamodules import Pictures
from lightning_styles.__main__ import main
from lightning_styles.diffusion import ddim
from lightning_styles.diffusion.respacing import decode_indices
from lightning_styles.errors import UserError
from lightning_styles.imaging import find_images, read_image
from lightning_styles.losses.clip_direction import cosine_distance
from lightning_styles.methods.osasis import OSASIS
from lightning_styles.models.diffae import DiffAE, DiffAEUNet
from lightning_styles.models.spn import MappingNetTime
from lightning_styles.pretrained.diffae import frozen_diffae
from lightning_styles.pretrained.osasis import load_osasis
from lightning_styles.required_files import missing_files
from tests.methods.test_osasis import fit
from tests.micro import quiet_trainer
from tests.micro_osasis import SIZE, MicroOSASIS, make_osasis, samples
from tests.sheets import cells

pytest_plugins = ["tests.micro_osasis"]


@pytest.fixture(scope="module")
def run(micro_osasis: MicroOSASIS, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained run: last.ckpt and export/iter.pt."""
    folder = tmp_path_factory.mktemp("run")
    method = make_osasis(micro_osasis)
    fit(folder, method, samples(micro_osasis), callbacks=[Export(folder=str(folder / "export"))]).save_checkpoint(
        folder / "last.ckpt"
    )
    return folder


def predict(method: OSASIS, folder: Path, checkpoint: Path | None = None, callbacks: Any = None) -> list[Tensor]:
    """The pictures that `predict` makes of two photos."""
    photos = Pictures(images="scene:portrait/0-1?seed=1", resolution=SIZE, batch_size=2)
    trainer = quiet_trainer(folder, 1, callbacks=callbacks)
    batches: Any = trainer.predict(method, datamodule=photos, ckpt_path=checkpoint, weights_only=True)
    return [image for batch in batches for image in batch["image"]]


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# ---- official checkpoints


def test_an_exported_file_has_the_official_layout(micro_osasis: MicroOSASIS, run: Path) -> None:
    found = load_osasis(run / "export" / "iter.pt", frozen_diffae(micro_osasis.diffae).model.config)
    assert found.iteration == 2
    saved = torch.load(run / "last.ckpt", weights_only=True)["state_dict"]
    ours, spn = found.model.state_dict(), found.spn
    assert isinstance(spn, MappingNetTime)
    assert all(torch.equal(saved[f"spn.{key}"], value) for key, value in spn.state_dict().items())
    base = frozen_diffae(micro_osasis.diffae).model.state_dict()
    for key, value in ours.items():
        assert torch.equal(value, saved.get(f"B.{key}", base[key])), key
    assert any(not torch.equal(value, base[key]) for key, value in ours.items())


def test_predict_starts_from_an_official_file(micro_osasis: MicroOSASIS, run: Path, tmp_path: Path) -> None:
    ours = predict(make_osasis(micro_osasis), tmp_path, run / "last.ckpt")
    fresh = make_osasis(micro_osasis, trained=str(run / "export" / "iter.pt"))
    assert equal(ours, predict(fresh, tmp_path))
    going_on = make_osasis(micro_osasis, trained=str(run / "export" / "iter.pt"), lr=0.0, spn_lr=0.0)
    fit(tmp_path, going_on, samples(micro_osasis))
    assert equal(ours, predict(going_on, tmp_path))


def test_convert_writes_the_official_file(
    micro_osasis: MicroOSASIS, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(run / "last.ckpt"), str(tmp_path / "iter_2.pt"), "--to", "osasis"]) == 0
    ours, theirs = (torch.load(f, weights_only=True) for f in (tmp_path / "iter_2.pt", run / "export" / "iter.pt"))
    assert ours.keys() == theirs.keys() == {"iter", "diffae_B", "model_map"}
    assert ours["iter"] == theirs["iter"] == 2
    for part in ("diffae_B", "model_map"):
        assert all(torch.equal(value, theirs[part][key]) for key, value in ours[part].items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spn": "plain"}, "was trained with model.spn time, not plain"),
        ({"diffae": "other"}, "was trained on another autoencoder"),
        ({"trained": None}, "nothing is trained yet"),
        ({"trained": "nowhere.pt"}, "There is no file nowhere.pt"),
    ],
    ids=str,
)
def test_official_files_that_do_not_fit_are_refused(
    micro_osasis: MicroOSASIS, run: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    settings = {"trained": str(run / "export" / "iter.pt")} | changes
    if "diffae" in changes:
        settings["diffae"] = micro_osasis.other
    with pytest.raises(UserError, match=message):
        predict(make_osasis(micro_osasis, **settings), tmp_path)


def test_a_file_of_another_architecture_is_refused(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    config = frozen_diffae(micro_osasis.diffae).model.config
    torch.save({"iter": 1, "diffae_B": DiffAE(replace(config, res_blocks=2)).state_dict()}, tmp_path / "iter_1.pt")
    with pytest.raises(UserError, match=r"iter_1.pt does not fit DiffAE: 20 keys missing .first input_blocks"):
        predict(make_osasis(micro_osasis, trained=str(tmp_path / "iter_1.pt")), tmp_path)


def test_missing_weights_are_named_one_by_one() -> None:
    names = ("diffae", "domain_model", "clip", "perceptual", "style_image", "trained")
    settings = {name: f"nowhere/{name}" for name in names}
    config = {"model": {"class_path": "lightning_styles.methods.osasis.OSASIS", "init_args": settings}}
    lines = missing_files(config)
    assert len(lines) == len(names)
    assert all(any(path in line for line in lines) for path in settings.values())
    lines = missing_files(config, "predict")
    assert [any(settings[name] in line for line in lines) for name in ("diffae", "trained")] == [True, True]
    assert len(lines) == 2, "what only fit reads may be missing"


# ---- kept encodings


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Number of photos in each encoding step that A takes."""
    made: list[int] = []
    step_up = ddim.step_up

    def counted(process: Any, i: int, x: Tensor, eps: Tensor, clamp: bool = True) -> tuple[Tensor, Tensor]:
        made.append(len(x))
        return step_up(process, i, x, eps, clamp)

    monkeypatch.setattr(ddim, "step_up", counted)
    return made


def test_the_second_style_finds_the_photos_encoded(
    micro_osasis: MicroOSASIS, run: Path, tmp_path: Path, calls: list[int]
) -> None:
    plain = predict(make_osasis(micro_osasis), tmp_path, run / "last.ckpt")
    assert calls == [2] * 5
    kept = {"encoded": str(tmp_path / "kept")}
    first = predict(make_osasis(micro_osasis, **kept), tmp_path, run / "last.ckpt")
    assert calls == [2] * 10
    second = predict(make_osasis(micro_osasis, **kept), tmp_path, run / "last.ckpt")
    assert calls == [2] * 10, "A's UNet is not called again"
    assert equal(plain, first)
    assert equal(plain, second)
    files = list((tmp_path / "kept").iterdir())
    assert len(files) == 2
    files[0].write_bytes(b"damaged")
    again = predict(make_osasis(micro_osasis, **kept), tmp_path, run / "last.ckpt")
    assert calls == [2] * 10 + [1] * 5, "only what cannot be read"
    torch.testing.assert_close(torch.stack(again), torch.stack(plain), rtol=1e-3, atol=1e-3)
    other: list[dict[str, Any]] = [{"t0": 0.4}, {"predict_steps": {"encode": 20, "decode": 5}}]
    for changes in other:
        predict(make_osasis(micro_osasis, **kept, **changes), tmp_path, run / "last.ckpt")
    assert len(list((tmp_path / "kept").iterdir())) == 6


# ---- sheets


def test_a_sheet_shows_every_t0_and_strength(
    micro_osasis: MicroOSASIS, run: Path, tmp_path: Path, calls: list[int]
) -> None:
    grid = {"lambda_spn": [0.0, 0.1, 5.0], "t0": [0.5, 0.8]}  # rows are t0 whichever comes first
    writer = ImageWriter(str(tmp_path / "out"))
    sheets = predict(make_osasis(micro_osasis, grid=grid), tmp_path, run / "last.ckpt", [writer])
    assert calls == [2] * (5 + 8), "each t0 encodes once"
    shown = [cells(sheet, 2, 4, SIZE) for sheet in sheets]
    for row, t0 in enumerate(grid["t0"]):
        for column, strength in enumerate(grid["lambda_spn"]):
            alone = predict(make_osasis(micro_osasis, t0=t0, lambda_spn=strength), tmp_path, run / "last.ckpt")
            for pictures, result in zip(shown, alone, strict=True):
                assert torch.equal(pictures[row, column + 1], result)
    photo = Pictures(images="scene:portrait/0?seed=1", resolution=SIZE).pictures()[0]["image"]
    assert torch.equal(shown[0][0, 0], photo)
    assert (sheets[0][:, :26] < 0).any(), "labels"
    names = [file.stem for file in find_images(tmp_path / "out")]
    assert all(name.endswith("_grid") for name in names)
    assert read_image(tmp_path / "out" / f"{names[0]}.png").shape == sheets[0].shape
    made = len(calls)
    trainer = quiet_trainer(tmp_path, 1, callbacks=[writer])
    photos = Pictures(images="scene:portrait/0-1?seed=1", resolution=SIZE, batch_size=2)
    trainer.predict(make_osasis(micro_osasis, grid=grid), photos, ckpt_path=run / "last.ckpt", weights_only=True)
    assert len(calls) == made, "finished sheets are skipped"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"t0": [], "lambda_spn": [0.1]}, r"grid.t0 is \[\]; expected a list of at least one number"),
        ({"t0": [0.5, 1.0], "lambda_spn": [0.1]}, "grid.t0 holds 1.0; expected numbers between 0 and 1"),
        ({"t0": [0.5], "lambda_spn": [-0.1]}, "grid.lambda_spn holds -0.1; expected numbers of 0 or more"),
        ({"t0": [0.5], "lambda_spn": [float("nan")]}, "grid.lambda_spn holds nan"),
        ({"t0": [0.5]}, "grid has t0; expected lists for t0 and lambda_spn"),
    ],
    ids=str,
)
def test_sheets_of_nothing_are_refused(micro_osasis: MicroOSASIS, grid: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_osasis(micro_osasis, grid=grid)


# ---- text

TEXT = {"source": "a photo of a woman", "target": "a photo of a smiling man", "steps": 40, "lr": 0.05}


def started(method: OSASIS, folder: Path, checkpoint: Path) -> tuple[OSASIS, Callable[..., Any]]:
    """The method as `predict` uses it, and its starts of two photos."""
    predict(method, folder, checkpoint)
    photos = samples_of_two(method)
    return method, lambda: method.start(photos, method.encoder, method.hparams.t0)


def samples_of_two(method: OSASIS) -> Tensor:
    pictures = Pictures(images="scene:portrait/0-1?seed=1", resolution=SIZE).pictures()
    return torch.stack([picture["image"] for picture in pictures])


def test_a_text_moves_the_code_alone(micro_osasis: MicroOSASIS, run: Path, tmp_path: Path) -> None:
    _, plain = started(make_osasis(micro_osasis), tmp_path, run / "last.ckpt")
    method, edited = started(make_osasis(micro_osasis, text=TEXT), tmp_path, run / "last.ckpt")
    before = {key: value.clone() for key, value in method.A.state_dict().items()}
    (z, x), (z_star, x_star) = plain(), edited()
    assert torch.equal(x, x_star), "x_t0 stays"
    assert (z_star - z).abs().max() > 0.1
    assert all(torch.equal(value, before[key]) for key, value in method.A.state_dict().items())
    assert all(p.grad is None for p in method.A.parameters())
    photos = samples_of_two(method)
    source, target = method.clip.text([TEXT["source"], TEXT["target"]])

    def loss(code: Tensor) -> Tensor:
        indices = decode_indices(len(method.decoder), 0.5)
        shown = ddim.decode(lambda noisy, t: method.A(noisy, t, code), x, method.decoder, indices)
        with torch.no_grad():
            change = method.clip.image(shown) - method.clip.image(photos)
        return cosine_distance((target - source)[None], change)

    assert (loss(z_star) < loss(z) - 0.05).all(), "the picture that z* decodes to is nearer to the text"
    kept, _ = started(make_osasis(micro_osasis, text=TEXT | {"keep": 100.0}), tmp_path, run / "last.ckpt")[1]()
    assert (kept - z).norm() < 0.5 * (z_star - z).norm()


def test_what_is_stylized_has_the_moved_code(micro_osasis: MicroOSASIS, run: Path, tmp_path: Path) -> None:
    codes: list[Tensor] = []

    class Watched(OSASIS):
        def stylize(self, images: Tensor, start: Any, *rest: Any, **words: Any) -> Tensor:
            codes.append(start[0])
            return super().stylize(images, start, *rest, **words)

    plain = predict(make_osasis(micro_osasis), tmp_path, run / "last.ckpt")
    method = Watched(**(dict(make_osasis(micro_osasis).hparams) | {"text": TEXT}))
    edited = predict(method, tmp_path, run / "last.ckpt")
    encoded, _ = method.encode(samples_of_two(method), method.encoder, 0.5)
    assert (codes[0] - encoded).abs().max() > 0.1
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(plain, edited, strict=True))
    assert isinstance(method.B, DiffAEUNet)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"source": "a man", "target": "a man"}, "CLIP sees no difference between 'a man' and 'a man'"),
        ({"source": "a man", "target": " "}, "text needs a source and a target"),
        (
            {"source": "a man", "target": "a cat", "rate": 1},
            "text has rate; expected source, target, steps",
        ),
        ({"source": "a man", "target": "a cat", "steps": 0}, "text.steps is 0; it must be at least 1"),
    ],
    ids=str,
)
def test_texts_that_say_nothing_are_refused(
    micro_osasis: MicroOSASIS, run: Path, tmp_path: Path, text: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        predict(make_osasis(micro_osasis, text=text), tmp_path, run / "last.ckpt")
