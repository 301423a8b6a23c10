"""OSASIS as a method: the official training loop, its options, the style picture's twin, stylizing any photo."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules import Pictures
from lightning_styles.diffusion.half_way import picture_process
from lightning_styles.diffusion.twin import twin_candidates
from lightning_styles.errors import UserError
from lightning_styles.imaging import read_image, save_png
from lightning_styles.methods.osasis import OSASIS
from lightning_styles.metrics.perceptual import load_distance
from lightning_styles.pretrained.diffae import frozen_diffae, load_diffae, load_guided_unet
from lightning_styles.square import to_square
from tests.micro import quiet_trainer
from tests.micro_osasis import SIZE, MicroOSASIS, make_osasis, samples

pytest_plugins = ["tests.micro_osasis"]


def fit(folder: Path, method: OSASIS, data: Any, steps: int = 2, **settings: Any) -> Any:
    run = quiet_trainer(folder, steps, **settings)
    run.fit(method, datamodule=data, weights_only=True)
    return run


def trained(method: OSASIS) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in method.state_dict().items()}


@pytest.fixture(scope="module")
def default(micro_osasis: MicroOSASIS, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """What one iteration with default settings learns."""
    method = make_osasis(micro_osasis, iterations=1)
    fit(tmp_path_factory.mktemp("default"), method, samples(micro_osasis), steps=1)
    return trained(method)


def test_an_iteration_updates_at_every_step_of_the_decoder(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    method = make_osasis(micro_osasis)
    run = fit(tmp_path, method, samples(micro_osasis))
    (optimizer,) = run.optimizers
    assert run.global_step == 2
    assert {int(state["step"]) for state in optimizer.state.values()} == {2 * 2}  # half of 4 steps, twice
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 1e-4]
    start, end = method.A.state_dict(), method.B.state_dict()
    assert not any(torch.equal(end[key], start[key]) for key in end), "every tensor of B has moved"
    assert all(p.grad is None and not p.requires_grad for p in method.A.parameters())
    assert set(trained(method)) == {
        *(f"B.{k}" for k in end),
        *(f"spn.{k}" for k in method.spn.state_dict()),
        "pictures",
    }


def plain_terms(method: OSASIS, photos: Tensor, o: dict[str, Any]) -> list[dict[str, float]]:
    """The terms at each step of the decoder in the training of `photos` with the settings `o`, written out."""
    A, B, clip = method.A, method.B, partial(method.clip.image, preprocess=o.get("clip_preprocess", "osasis"))
    a = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)
    t0, style = o.get("t0", 0.5), method.pictures[1:]
    images = torch.cat([method.pictures[:1], photos])
    z, x = A.encoder(images), images

    def moved(x: Tensor, eps: Tensor, t: int, to: float) -> tuple[Tensor, Tensor]:
        now = a[t].item()
        x_0 = ((x - (1 - now) ** 0.5 * eps) / now**0.5).clamp(-1, 1)
        return to**0.5 * x_0 + (1 - to) ** 0.5 * (x - now**0.5 * x_0) / (1 - now) ** 0.5, x_0

    def unit(e: Tensor) -> Tensor:
        return e / e.norm(dim=-1, keepdim=True) if o.get("normalize_directions") else e

    for t in range(0, round(1000 * t0), 100):
        x, _ = moved(x, A(x, torch.full((len(x),), t), z), t, a[t + 100].item())
    terms, e_images, e_style = [], unit(clip(images)), unit(clip(style))
    for j in o["decoder"]:
        factors = [o.get("lambda_style", 1.0)] + [o.get("lambda_spn", 0.1)] * len(photos)
        told = 250 * j if o.get("spn_time") == "timestep" else j
        if o.get("spn") != "none":
            x = x + torch.tensor(factors)[:, None, None, None] * method.spn(images, torch.full((len(x),), told))
        t, to = 250 * j, a[250 * (j - 1)].item() if j else 1.0
        x, x_0 = moved(x, B(x, torch.full((len(x),), t), z), t, to)
        e = unit(clip(x_0))
        again, wanted = clip(x_0[:1]), clip(style)
        far = (again - wanted).abs().mean() if o.get("re_clip") == "l1" else 1 - F.cosine_similarity(again, wanted)
        found = {
            "cross": (1 - F.cosine_similarity(e_style - e_images[:1], e[1:] - e_images[1:])).mean(),
            "in": (1 - F.cosine_similarity(e_images[1:] - e_images[:1], e[1:] - e_style)).mean(),
            "re_clip": far,
            "re_l1": (x_0[:1] - style).abs().mean(),
            "re_lpips": method.judge(x_0[:1], style).mean(),
        }
        weights = {"cross": 1.0, "in": 0.5, "re_clip": 30.0, "re_l1": 10.0, "re_lpips": 10.0} | o.get("weights", {})
        found["total"] = sum((weights[name] * value.mean() for name, value in found.items()), torch.tensor(0.0))
        terms.append({name: value.item() for name, value in found.items()})
    return terms


@pytest.mark.parametrize(
    ("options", "decoder"),
    [
        ({}, [1, 0]),
        (
            {"lambda_spn": 0.5, "lambda_style": 0.2, "spn_time": "timestep", "clip_preprocess": "clip"}
            | {"weights": {"cross": 0.0, "re_l1": 3.0}},
            [1, 0],
        ),
        ({"spn": "plain", "start": "aligned", "re_clip": "l1", "normalize_directions": True}, [2, 1, 0]),
        ({"spn": "none", "t0": 0.8, "fit_to_square": "crop"}, [3, 2, 1, 0]),
        ({"fit_to_square": "squash"}, [1, 0]),
    ],
    ids=["defaults", "weights", "aligned", "without SPN", "squash"],
)
def test_what_is_learned_is_the_plain_formula_with_every_option(
    micro_osasis: MicroOSASIS, tmp_path: Path, options: dict[str, Any], decoder: list[int]
) -> None:
    method, data = (
        make_osasis(micro_osasis, iterations=1, lr=0.0, spn_lr=0.0, dropout=False, **options),
        samples(micro_osasis),
    )
    terms: list[dict[str, float]] = []

    def noted(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
        total = OSASIS.total_loss(method, losses, weights)
        terms.append({name: value.item() for name, value in (losses | {"total": total}).items()})
        return total

    method.total_loss = noted  # type: ignore[method-assign]
    fit(tmp_path, method, data, steps=1)
    how = options.get("fit_to_square", "letterbox")
    assert torch.equal(method.pictures[1:], to_square(read_image(micro_osasis.style)[None], SIZE, how))
    with torch.no_grad():
        photos = samples(micro_osasis).sample([0, 1], torch.device("cpu"))
        expected = plain_terms(method, photos, options | {"decoder": decoder})
    assert len(terms) == len(expected)
    for ours, theirs in zip(terms, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3, abs=1e-4)


@pytest.mark.parametrize("dropout", [True, False])
def test_dropout_is_for_training_alone(micro_osasis: MicroOSASIS, tmp_path: Path, dropout: bool) -> None:
    method = make_osasis(micro_osasis, iterations=1, dropout=dropout)
    fit(tmp_path, method, samples(micro_osasis), steps=1)
    assert method.B.training == dropout
    start, processes = method.encode(method.shown, method.encoder, 0.5), (method.encoder, method.decoder)
    results = [method.stylize(method.shown, start, *processes, 0.5, 0.1) for _ in range(2)]
    assert torch.equal(*results)
    assert method.B.training == dropout


def test_gradient_checkpointing_changes_no_number(
    micro_osasis: MicroOSASIS, default: dict[str, Tensor], tmp_path: Path
) -> None:
    method = make_osasis(micro_osasis, iterations=1, gradient_checkpointing=True)
    fit(tmp_path, method, samples(micro_osasis), steps=1)
    theirs = trained(method)
    for key, value in default.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-5)


def test_b_starts_in_full_precision_whatever_that_of_a_is(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    method = make_osasis(micro_osasis, frozen_precision="bfloat16", lr=0.0, iterations=1)
    fit(tmp_path, method, samples(micro_osasis), steps=1)
    assert method.A.dtype == torch.bfloat16
    whole = load_diffae(Path(micro_osasis.diffae)).model.state_dict()
    assert all(torch.equal(value, whole[key]) for key, value in method.B.state_dict().items())


def test_half_precision_leaves_the_shared_autoencoder_as_it_is(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    method = make_osasis(micro_osasis, iterations=1)
    fit(tmp_path, method, samples(micro_osasis), steps=1, precision="bf16-true")
    assert method.A.dtype == torch.bfloat16
    assert frozen_diffae(micro_osasis.diffae).model.dtype == torch.float32
    for judge in (method.clip.model, method.judge):
        assert {p.dtype for p in judge.parameters()} == {torch.float32}, "small differences count"


def test_a_pool_gives_the_photos_that_sampling_gives(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    batches: list[list[Tensor]] = []
    for pool in (0, 3, 3):
        data = samples(micro_osasis, pool=pool, cache=str(tmp_path / "pool"))
        run = quiet_trainer(tmp_path, 2)
        data.trainer = run
        loader = data.train_dataloader()
        batches.append([data.on_after_batch_transfer(dict(batch), 0)["image"] for batch in loader])
        if pool:
            assert [chunk["image"].shape for chunk in data.pool] == [(3, 3, SIZE, SIZE)]
    files = list((tmp_path / "pool").rglob("*.pt"))
    assert len(files) == 1, "the second run found the pool of the first"
    assert torch.equal(torch.cat(batches[1]), torch.cat(batches[2]))
    direct = samples(micro_osasis).sample([0, 1, 2], torch.device("cpu"))
    first_pass = torch.cat(batches[1])[:3]
    distances = (first_pass[:, None] - direct[None]).abs().flatten(2).mean(2)
    assert sorted(distances.argmin(1).tolist()) == [0, 1, 2], "each picture of the pool once"
    assert distances.min(1).values.max() < 1e-3


def test_the_twin_is_the_best_candidate_and_made_once(
    micro_osasis: MicroOSASIS, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = make_osasis(micro_osasis, cache=str(tmp_path / "twins"), t0=0.7, seed=3)
    quiet_trainer(tmp_path, 2).strategy.connect(method)
    method.prepare(None)
    (twin, sheet) = sorted((tmp_path / "twins").iterdir(), key=lambda file: len(file.name))
    assert str(twin) in capsys.readouterr().out
    style = to_square(read_image(micro_osasis.style)[None], SIZE, "letterbox")
    judge, made = load_distance(None, method.hparams.perceptual), read_image(twin)[None]
    network = load_guided_unet(Path(micro_osasis.guided))
    (candidates,) = twin_candidates(network, style, 3, t0=0.7, seed=3)
    best = min(candidates.split(1), key=lambda x: (10 * (x - style).abs().mean() + judge(x, style)).item())
    torch.testing.assert_close(made, best.clamp(-1, 1), rtol=0, atol=1.01 / 255)
    scores = 10 * (made - style).abs().mean() + judge(made, style)
    assert scores.item() == pytest.approx(
        float(Image.open(twin).text["lightning_styles"].split('"score": ')[1][:6]), rel=1e-2
    )
    assert Image.open(sheet).size == ((SIZE + 2) * 4 + 2, SIZE + 4)
    written = twin.stat().st_mtime_ns
    method.prepare(None)
    assert twin.stat().st_mtime_ns == written
    method.hparams.resolution = SIZE // 2
    assert read_image(method.find_twin()).shape == (3, SIZE // 2, SIZE // 2), "another size is another twin"


@pytest.mark.parametrize("fit_to_square", ["letterbox", "crop"])
def test_photos_of_any_size_are_stylized(micro_osasis: MicroOSASIS, tmp_path: Path, fit_to_square: str) -> None:
    method = make_osasis(micro_osasis, fit_to_square=fit_to_square)
    fit(tmp_path, method, samples(micro_osasis))
    photos = Pictures(images=micro_osasis.style, resolution=None)
    (batch,) = quiet_trainer(tmp_path, 1).predict(method, datamodule=photos)  # type: ignore[misc]
    (image,) = batch["image"]
    assert image.shape == ((3, 23, 32) if fit_to_square == "letterbox" else (3, SIZE, SIZE))
    assert torch.isfinite(image).all()


def test_the_codes_are_mixed_by_resolution(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    method = make_osasis(micro_osasis)
    fit(tmp_path, method, samples(micro_osasis))
    photos = samples(micro_osasis).sample([0, 1], torch.device("cpu"))
    processes = [picture_process(steps) for steps in (10, 5)]
    results = {}
    for name, (f_ch, swap) in {
        "mixed": (32, False),
        "photo": (64, False),
        "style": (8, False),
        "swapped": (64, True),
    }.items():
        method.hparams.update(f_ch=f_ch, swap_codes=swap)
        results[name] = method.stylize(photos, method.encode(photos, processes[0], 0.5), *processes, 0.5, 0.1)
    # Without a level for the style's code the photo's is everywhere; swapped, that is the style's.
    assert (results["style"] - results["swapped"]).abs().max() > 0  # the middle always takes the content's code
    for one, other in (("mixed", "photo"), ("mixed", "style"), ("photo", "style"), ("photo", "swapped")):
        assert (results[one] - results[other]).abs().max() > 1e-4, (one, other)


def test_a_checkpoint_needs_no_style_picture(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    method = make_osasis(micro_osasis)
    fit(tmp_path, method, samples(micro_osasis)).save_checkpoint(tmp_path / "last.ckpt")
    photos = Pictures(images="scene:portrait/0-1?seed=1", resolution=SIZE, batch_size=2)
    run = quiet_trainer(tmp_path, 1)
    (ours,) = run.predict(method, datamodule=photos)  # type: ignore[misc]
    fresh = make_osasis(micro_osasis, style_image="gone.png")
    (theirs,) = run.predict(fresh, datamodule=photos, ckpt_path=tmp_path / "last.ckpt", weights_only=True)  # type: ignore[misc]
    assert all(torch.equal(a, b) for a, b in zip(ours["image"], theirs["image"], strict=True))
    other = make_osasis(micro_osasis, diffae=micro_osasis.other)
    with pytest.raises(UserError, match="was trained on base"):
        run.predict(other, datamodule=photos, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_a_checkpoint_of_another_style_is_not_gone_on_with(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    data = samples(micro_osasis)
    fit(tmp_path, make_osasis(micro_osasis), data, steps=1).save_checkpoint(tmp_path / "last.ckpt")
    save_png(tmp_path / "other.png", torch.rand(3, SIZE, SIZE) * 2 - 1)
    other = make_osasis(micro_osasis, style_image=str(tmp_path / "other.png"))
    with pytest.raises(UserError, match="trained on another style picture than .*other.png"):
        quiet_trainer(tmp_path, 2).fit(other, data, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_a_style_picture_that_is_its_own_twin_is_refused(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    method = make_osasis(micro_osasis, twin_image=micro_osasis.style)
    with pytest.raises(UserError, match="no difference between the style image and its photorealistic twin"):
        fit(tmp_path, method, samples(micro_osasis))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t0": 1.0}, "t0 is 1.0"),
        ({"t0": 0.01, "start": "aligned"}, "t0 is 0.01, less than one of the encoder's 10 steps"),
        ({"lpips": "lpips-vgg"}, "set one of model.lpips"),
        ({"perceptual": None}, "set one of model.lpips"),
        ({"steps": {"encode": 300, "decode": 4}}, "300 steps do not divide 1000"),
        ({"steps": {"encode": 10}}, "steps has encode; expected encode, decode"),
        ({"weights": {"croos": 1.0}}, "weights has croos; expected cross, in,"),
        ({"candidates": 0}, "candidates is 0; it must be at least 1"),
        ({"resolution": 33}, "resolution is 33; .* needs a multiple of 2"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(
    micro_osasis: MicroOSASIS, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        fit(tmp_path, make_osasis(micro_osasis, **changes), samples(micro_osasis))


def test_photos_can_be_real_ones(micro_osasis: MicroOSASIS, tmp_path: Path) -> None:
    class Photos(Pictures):
        def train_dataloader(self) -> DataLoader[Any]:
            return self.predict_dataloader()

    photos = Photos(images="scene:portrait/0-3", resolution=SIZE, batch_size=2)
    assert fit(tmp_path, make_osasis(micro_osasis), photos).global_step == 2
