"""Pretraining of pSp encoders: what is drawn and known exactly, every term, overfitting, files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks import Export
from datamodules import Pictures
from datamodules.scene_pool import ScenePool
from lightning_styles.errors import UserError
from lightning_styles.losses.semantic import identity_distance
from lightning_styles.models.stylegan2.mixing import truncate
from lightning_styles.pretrained.psp import load_psp
from lightning_styles.pretraining.psp import PSpPretraining
from tests.micro import quiet_trainer
from tests.micro_stylegan import LAYERS, SIZE, STYLE, make_stylegan, style_images, write_stylegan

pytest_plugins = ["tests.micro_stylegan"]
KNOWN = 5  # latents of a picture
COUNTER = {"images": "scene:portrait/0-1", "resolution": SIZE, "batch_size": 2}


def make(folder: Path, **changes: Any) -> PSpPretraining:
    settings: dict[str, Any] = {
        "iterations": 2, "stylegan2": write_stylegan(folder), "perceptual": "tiny/perceptual", "generated": 3,
        "architecture": {"widths": [16, 16, 16], "blocks": [1, 1, 1], "head_width": 24}, "lr": 3e-3,
    }  # fmt: skip
    return PSpPretraining(**(settings | changes))


def built(folder: Path, **changes: Any) -> PSpPretraining:
    """The method with its networks, outside of a run."""
    method = make(folder, **changes)
    method.configure_model()
    method._load_judges()
    return method


def fit(folder: Path, method: PSpPretraining, data: Any = None, **trainer: Any) -> dict[str, float]:
    """Train, and return the terms of the last iteration."""
    run = quiet_trainer(folder, method.iterations, **trainer)
    run.fit(method, datamodule=data or Pictures(**COUNTER))
    return {key.removeprefix("train/"): value.item() for key, value in run.callback_metrics.items()}


# ---- what is drawn


def test_what_is_drawn_is_a_function_of_seed_and_iteration(micro_stylegan: Path) -> None:
    method, again, other = (built(micro_stylegan, seed=seed) for seed in (0, 0, 1))
    draws = []
    for one in (method, again, other):
        maps = one.draw_noise(3)
        draws.append(one.draw(3, maps))
    (w, image), (w_again, image_again), (w_other, _) = draws
    assert torch.equal(w, w_again)
    assert torch.equal(image, image_again)
    assert (w - w_other).abs().max() > 0.1
    again.iteration = 1
    assert (again.draw(3, maps)[0] - w).abs().max() > 0.1
    torch.testing.assert_close(method.G(w, method.draw_noise(3)), image)
    assert not image.requires_grad


def test_styles_are_single_truncated_or_mixed(micro_stylegan: Path) -> None:
    method = built(micro_stylegan, generated=32)
    maps = method.draw_noise(32)
    w, _ = method.draw(32, maps)
    assert w.shape == (32, LAYERS, STYLE)
    assert torch.equal(w, w[:, :1].expand_as(w))
    method.hparams.psi = 0.5
    near, _ = method.draw(32, maps)
    torch.testing.assert_close(near, truncate(w, method.latent_avg, 0.5))
    method.hparams.psi, method.hparams.mixing = 1.0, 1.0
    mixed, _ = method.draw(32, maps)
    changes = (mixed[:, 1:] - mixed[:, :-1]).abs().amax(2) > 0
    assert (changes.sum(1) == 1).all(), "one crossover each"
    assert set(changes.int().argmax(1).tolist()) == set(range(LAYERS - 1))
    assert torch.equal(mixed[:, 0], w[:, 0])


# ---- terms


def test_the_right_codes_cost_nothing(micro_stylegan: Path) -> None:
    method = built(micro_stylegan, identity="tiny/identity")
    w, image = method.draw(3, method.draw_noise(3))
    terms = method.picture_terms(method.G(w, method.draw_noise(3)), image)
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(dict.fromkeys(terms, 0), abs=1e-5)
    assert set(terms) == {"mse", "perceptual", "identity"}
    off = image + 0.5
    terms = method.picture_terms(off, image)
    assert terms["mse"] == pytest.approx(0.25, rel=1e-4)
    torch.testing.assert_close(terms["perceptual"], method.judge(off, image).mean())
    torch.testing.assert_close(terms["identity"], identity_distance(method.recogniser, off, image).mean())


def test_codes_of_a_fresh_encoder_into_w_plus_are_about_the_mean(micro_stylegan: Path) -> None:
    method = built(micro_stylegan, space="w_plus").eval()
    for head in method.encoder.styles:
        head.linear.weight.data.zero_()
        head.linear.bias.data.zero_()
    codes, w, terms = method.encode(torch.randn(2, 3, SIZE, SIZE))
    assert codes.abs().max() == 0
    torch.testing.assert_close(w, method.latent_avg.expand(2, LAYERS, -1))
    assert set(terms) == {"w_norm"}
    assert terms["w_norm"].item() == pytest.approx(0)


def test_the_variational_head_draws_in_training_and_not_after(micro_stylegan: Path) -> None:
    method = built(micro_stylegan, variational=True).eval()
    image = torch.randn(2, 3, SIZE, SIZE)
    codes, w, terms = method.encode(image)
    assert set(terms) == {"kl", "w_norm"}
    assert terms["kl"] == 0, "a fresh head is the prior"
    draw = method.randn_like(torch.empty(2, LAYERS, STYLE), "codes")
    torch.testing.assert_close(codes, draw)
    torch.testing.assert_close(w, method.G.mapping(draw))
    expected = method.G(method.G.mapping(torch.zeros(2, LAYERS, STYLE))).clamp(-1, 1)
    torch.testing.assert_close(method.reconstruct(image), expected)


# ---- training


@pytest.mark.parametrize("settings", [{"space": "w_plus"}, {"space": "z_plus"}, {"variational": True}], ids=str)
def test_an_encoder_overfits_a_few_pictures(micro_stylegan: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    class Few(PSpPretraining):
        """The same pictures in each iteration."""

        def generator(self, purpose: str) -> torch.Generator:
            return torch.Generator().manual_seed(7) if purpose == "styles" else super().generator(purpose)

        def draw_noise(self, count: int) -> list[Tensor]:
            return self.G.draw_noise(count, torch.Generator().manual_seed(7))

    weights = {"codes": 1.0, "kl": 1e-5, "moments": 0.0}
    base = dict(make(micro_stylegan).hparams)
    first = fit(tmp_path, Few(**(base | {"iterations": 1, "weights": weights} | settings)))
    last = fit(tmp_path, Few(**(base | {"iterations": 90, "lr": 6e-3, "weights": weights} | settings)))
    for name in ("mse", "perceptual", "codes"):
        assert last[name] < 0.5 * first[name], (name, first, last)


def test_latents_of_the_data_are_learnt_and_nothing_is_drawn(micro_stylegan: Path, tmp_path: Path) -> None:
    class Same(ScenePool):
        """The same pictures in each iteration, with no more latents than the micro StyleGAN2 has."""

        def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
            self.kept = getattr(self, "kept", batch | {"latents": batch["latents"][:, :KNOWN]})
            return self.kept

    pool = {"kinds": {"portrait": 4}, "styles": {"photo": 1.0}, "size": SIZE, "batch_size": 2, "described": 3}
    weights = {"mse": 0.0, "perceptual": 0.0, "identity": 0.0, "latents": 1.0}
    settings = {"generated": 0, "weights": weights, "lr": 6e-3}
    cache = str(tmp_path / "scenes")
    first = fit(tmp_path, make(micro_stylegan, **settings, iterations=1), Same(**pool, cache=cache))
    assert set(first) == {"moments", "w_norm", "latents", "total"}
    method = make(micro_stylegan, **settings, iterations=60)
    data = Same(**pool, cache=cache)
    last = fit(tmp_path, method, data, callbacks=[Export(folder=str(tmp_path / "export"))])
    assert last["latents"] < 0.5 * first["latents"]
    with torch.no_grad():
        found = method.encoder.train()(data.kept["image"])[..., :KNOWN]
    known = data.kept["latents"][:2, None].expand_as(found)
    torch.testing.assert_close((found - known).square().mean().item(), last["latents"], rtol=0.2, atol=0.02)
    fresh = [built(micro_stylegan, weights=w).encoder(torch.randn(2, 3, SIZE, SIZE)).std() for w in (weights, None)]
    assert fresh[0] < 0.05 * fresh[1], "it begins at the mean of the latents"
    again = built(micro_stylegan, start=str(tmp_path / "export/psp.safetensors"))
    for ours, theirs in zip(again.encoder.parameters(), method.encoder.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.half().float())
    with pytest.raises(UserError, match="the weight latents is for z_plus and data that bring latents"):
        fit(tmp_path, make(micro_stylegan, **settings), style_images())
    with pytest.raises(UserError, match="a picture has 81 latents, codes have 16 numbers"):
        fit(tmp_path, make(micro_stylegan, **settings), ScenePool(**pool, cache=cache))


def test_only_the_encoder_is_trained_and_kept(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make(micro_stylegan, space="w_plus")
    before = make_stylegan().generator.state_dict()
    fit(tmp_path, method)
    assert {name.partition(".")[0] for name in method.state_dict()} == {"encoder"}
    for key, value in method.G.state_dict().items():
        torch.testing.assert_close(value, before[key])
    assert all(p.grad is None for p in method.G.parameters())


def test_pictures_of_the_data_are_encoded_too(micro_stylegan: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    class Watched(PSpPretraining):
        def encode(self, image: Tensor) -> Any:
            seen.append(len(image))
            return super().encode(image)

    base = dict(make(micro_stylegan).hparams)
    with_known = fit(tmp_path, Watched(**base), style_images())
    without = fit(tmp_path, Watched(**(base | {"generated": 0})), style_images(resolution=40))
    assert seen == [7, 7, 4, 4]
    assert "codes" in with_known
    assert "codes" not in without
    with pytest.raises(UserError, match="nothing to encode: set model.generated"):
        fit(tmp_path, Watched(**(base | {"generated": 0})))


def test_a_file_encodes_as_the_run_did(micro_stylegan: Path, tmp_path: Path) -> None:
    for space in ("w_plus", "z_plus"):
        method = make(micro_stylegan, space=space)
        fit(tmp_path, method, callbacks=[Export(folder=str(tmp_path / space))])
        found = load_psp(tmp_path / space / "psp.safetensors")
        assert found.space == space
        assert (found.latent_avg is None) == (space == "z_plus")
        if found.latent_avg is not None:
            torch.testing.assert_close(found.latent_avg, method.latent_avg.expand(LAYERS, -1), rtol=1e-2, atol=1e-2)
        image = torch.randn(2, 3, SIZE, SIZE)
        torch.testing.assert_close(found.encoder(image), method.eval().encoder(image), rtol=3e-2, atol=3e-2)


def test_previews_and_predictions_show_pictures_and_reconstructions(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make(micro_stylegan)
    photos = Pictures(images="scene:portrait/0-2", resolution=SIZE, batch_size=2)
    batches: Any = quiet_trainer(tmp_path, 1).predict(method, datamodule=photos)
    results = torch.stack([image for batch in batches for image in batch["image"]])
    pictures = torch.stack([picture["image"] for picture in photos.pictures()])
    torch.testing.assert_close(results, method.eval().reconstruct(pictures), rtol=1e-4, atol=1e-4)
    shown = method.preview()
    torch.testing.assert_close(shown["result"], method.reconstruct(shown["source"]))
    measured = quiet_trainer(tmp_path, 1).test(
        make(micro_stylegan, metrics={"perceptual": "tiny/perceptual"}), datamodule=photos, verbose=False
    )
    assert measured[0]["test/n"] == 3
    assert measured[0]["test/content"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variational": True, "space": "w_plus"}, "set space to z_plus"),
        ({"lpips": "vgg16-imagenet"}, "set one of model.lpips"),
        ({"weights": {"l2": 1.0}}, "weights has l2; expected mse, perceptual"),
        ({"architecture": {"width": 3}}, "architecture has width; expected size, widths"),
        ({"architecture": {"size": 64}}, "architecture.size is 64; .* draws 32 px"),
        ({"generated": -1}, "generated is -1; it must be at least 0"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_are_refused(micro_stylegan: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(micro_stylegan, **changes)
