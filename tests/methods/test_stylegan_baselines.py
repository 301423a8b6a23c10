"""Layer swap, JoJoGAN and Mind the Gap on a micro StyleGAN2: what is taken from whom, and what training moves."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from callbacks import Export
from datamodules import Pictures
from lightning_styles.__main__ import main
from lightning_styles.alignment import align, face_quad, paste_back
from lightning_styles.errors import UserError
from lightning_styles.imaging import read_image
from lightning_styles.methods.encoded_faces import EncodedFaces
from lightning_styles.metrics.evaluation import Evaluation
from lightning_styles.models.stylegan2.mixing import mix, resolution_of
from lightning_styles.models.stylegan2.pairing import encode_w
from lightning_styles.models.stylegan2.pnorm import pnorm_space, whiten
from lightning_styles.module import StyleModule
from lightning_styles.pretrained.psp import load_psp
from tests.micro import quiet_trainer, write_picture
from tests.micro_baselines import make_gap, make_jojo, make_swap, networks
from tests.micro_osasis import MicroOSASIS
from tests.micro_stylegan import LAYERS, SIZE, STYLE, make_method, make_psp, style_images, write_psp, write_stylegan

pytest_plugins = ["tests.micro_stylegan", "tests.micro_osasis"]
METRICS = {"perceptual": "tiny/perceptual"}


def photos(**changes: Any) -> Pictures:
    return Pictures(**({"images": "scene:portrait/0-2", "resolution": SIZE, "batch_size": 2} | changes))


def predict(
    method: StyleModule, folder: Path, data: Pictures | None = None, ckpt: Path | None = None
) -> dict[str, Tensor]:
    """Results by name."""
    trainer = quiet_trainer(folder, 1)
    batches: Any = trainer.predict(method, datamodule=data or photos(), ckpt_path=ckpt, weights_only=True)
    return {n: x for batch in batches for n, x in zip(batch["name"], batch["image"], strict=True)}


def fit(method: StyleModule, folder: Path, **trainer: Any) -> dict[str, float]:
    """Train, keep last.ckpt, and return the terms of the last iteration."""
    run = quiet_trainer(folder, method.iterations, **trainer)
    run.fit(method, datamodule=photos())
    run.save_checkpoint(folder / "last.ckpt")
    return {key.removeprefix("train/"): value.item() for key, value in run.callback_metrics.items()}


def codes(folder: Path, images: Tensor, space: Any = "w_plus") -> Tensor:
    return encode_w(load_psp(Path(write_psp(folder, space))), networks(folder)[0], images)


def pictures(data: Pictures | None = None) -> Tensor:
    return torch.stack([picture["image"] for picture in (data or photos()).pictures()])


# ---- layer swap


@pytest.mark.parametrize("low", ["target", "source"])
def test_weights_are_swapped_at_a_resolution(micro_stylegan: Path, tmp_path: Path, low: str) -> None:
    ours, theirs = (g.state_dict() for g in networks(micro_stylegan))
    below, above = (theirs, ours) if low == "target" else (ours, theirs)
    mixed, _ = networks(micro_stylegan)
    state = {}
    for key in ours:
        side = resolution_of(key)
        state[key] = ours[key] if side is None else (below if side < 16 else above)[key]
    mixed.load_state_dict(state)
    results = predict(make_swap(micro_stylegan, low=low), tmp_path)
    expected = mixed(codes(micro_stylegan, pictures())).clamp(-1, 1)
    torch.testing.assert_close(torch.stack(list(results.values())), expected, rtol=1e-4, atol=1e-5)


def test_a_ramp_lies_between_the_networks(micro_stylegan: Path) -> None:
    method = make_swap(micro_stylegan, low="source", resolution=16, ramp=1)
    method.configure_model()
    (source, target), mixed = networks(micro_stylegan), method.mixed
    for ours, theirs, found, share in (
        (source.convs[1], target.convs[1], mixed.convs[1], 0.0),  # 8 px
        (source.convs[3], target.convs[3], mixed.convs[3], 0.5),  # 16 px
        (source.convs[5], target.convs[5], mixed.convs[5], 1.0),  # 32 px
        (source.style[1], target.style[1], mixed.style[1], 0.0),
    ):
        for a, b, c in zip(ours.parameters(), theirs.parameters(), found.parameters(), strict=True):
            torch.testing.assert_close(c, a + share * (b - a))


@pytest.mark.parametrize("resolution", [8, 16])
def test_maps_of_the_source_go_on_in_the_target(micro_stylegan: Path, tmp_path: Path, resolution: int) -> None:
    source, target = networks(micro_stylegan)
    w = codes(micro_stylegan, pictures())
    results = predict(make_swap(micro_stylegan, swap="maps", resolution=resolution), tmp_path)
    expected = target(w, replace={resolution: source.features(w, resolution)}).clamp(-1, 1)
    torch.testing.assert_close(torch.stack(list(results.values())), expected, rtol=1e-4, atol=1e-5)


def test_random_styles_follow_from_seed_and_name(micro_stylegan: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"swap": "maps", "resolution": 8, "style": "random"}
    first = predict(make_swap(micro_stylegan, **settings), tmp_path)
    alone = predict(make_swap(micro_stylegan, **settings), tmp_path, photos(batch_size=1))
    other = predict(make_swap(micro_stylegan, seed=1, **settings), tmp_path)
    for name, image in first.items():
        torch.testing.assert_close(alone[name], image, rtol=1e-4, atol=1e-5)
        assert (other[name] - image).abs().mean() > 0.01
    center = make_swap(micro_stylegan, psi=0.0, **settings)
    center.configure_model()
    torch.testing.assert_close(center.random_styles(["a", "b"]), center.latent_avg.expand(2, -1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 0}, "the source itself; give the finetuned generator"),
        ({"resolution": 64}, r"resolution is 64; with swap weights expected one of \[8, 16, 32\]"),
        ({"resolution": 32, "swap": "maps"}, r"with swap maps expected one of \[4, 8, 16\]"),
        ({"ramp": -1}, "ramp is -1; it must be at least 0"),
    ],
    ids=str,
)
def test_swaps_that_mean_nothing_are_refused(micro_stylegan: Path, changes: dict[str, Any], message: str) -> None:
    if "target" in changes:
        changes = {"target": write_stylegan(micro_stylegan, 0)}
    with pytest.raises(UserError, match=message):
        make_swap(micro_stylegan, **changes).configure_model()


def test_an_encoder_of_another_generator_is_refused(micro_stylegan: Path, tmp_path: Path) -> None:
    from lightning_styles.models.psp import GradualStyleEncoder
    from lightning_styles.pretrained.psp import PSP, save_psp

    other = PSP(GradualStyleEncoder(10, STYLE, 64, (16, 16, 16), (1, 1, 1)), "z_plus")
    save_psp(tmp_path / "other.safetensors", other)
    with pytest.raises(UserError, match=f"has {LAYERS} styles of length {STYLE}; give the encoder"):
        predict(make_swap(micro_stylegan, encoder=str(tmp_path / "other.safetensors")), tmp_path)


# ---- faces in photos


def photo_with_face(folder: Path) -> np.ndarray:
    """Write a photo of 90 x 120 px with a face at an angle, and return its quad."""
    points = np.tile([0.5, 0.9], (68, 1))
    points[36:42], points[42:48], points[48], points[54] = (0.375, 0.475), (0.625, 0.475), (0.42, 0.725), (0.58, 0.725)
    turn = 48 * np.array([[0.96, -0.28], [0.28, 0.96]])
    landmarks = points @ turn.T + (45, 15)
    write_picture(folder / "me.png", 90, 120)
    (folder / "me.json").write_text(json.dumps(landmarks.tolist()))
    return face_quad(landmarks)


def test_a_face_is_cut_out_and_put_back(micro_stylegan: Path, tmp_path: Path) -> None:
    quad = photo_with_face(tmp_path)
    photo = read_image(tmp_path / "me.png")
    data = photos(images=str(tmp_path / "me.png"), resolution=None)
    square = predict(make_swap(micro_stylegan), tmp_path, data)["me"]
    method = make_swap(micro_stylegan)
    method.configure_model()
    expected = method.results(align(photo, quad, SIZE)[None], ["me"])[0]
    torch.testing.assert_close(square, expected, rtol=1e-4, atol=1e-5)
    whole = predict(make_swap(micro_stylegan, paste_back=True), tmp_path, data)["me"]
    torch.testing.assert_close(whole, paste_back(photo, square, quad), rtol=1e-4, atol=0.01)
    assert torch.equal(whole[:, :, :10], photo[:, :, :10])
    doubled = predict(make_swap(micro_stylegan), tmp_path, photos(images=str(tmp_path / "me.png"), resolution=180))
    assert (doubled["me"] - square).abs().mean() < 0.02, "landmarks follow the photo's size"


def test_squares_are_measured_against_their_twins(micro_stylegan: Path, tmp_path: Path) -> None:
    data = photos(twin_style="cartoon")
    method = make_swap(micro_stylegan, metrics={"perceptual": "tiny/perceptual"})
    (measured,) = quiet_trainer(tmp_path, 1).test(method, datamodule=data, verbose=False)
    results = torch.stack(list(predict(make_swap(micro_stylegan), tmp_path).values()))
    twins = torch.stack([picture["twin"] for picture in data.pictures()])
    assert measured["test/n"] == 3
    assert measured["test/twin_l1"] == pytest.approx((results - twins).abs().mean().item(), rel=1e-4)


# ---- JoJoGAN


def test_jojogan_moves_the_code_of_the_style_picture_towards_it(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_jojo(micro_stylegan, iterations=40, alpha=1.0, batch_size=2)
    fit(method, tmp_path)
    with torch.no_grad():
        before, after = (g(method.codes) - method.pictures for g in (method.source, method.styled))
    assert after.abs().mean() < 0.5 * before.abs().mean()
    random = make_jojo(micro_stylegan, iterations=40)
    fit(random, tmp_path)
    with torch.no_grad():
        assert (random.styled(random.codes) - random.pictures).abs().mean() < 0.8 * before.abs().mean()
        w = random.source.mapping(torch.randn(8, STYLE))
        towards = [(g(w) - random.pictures).abs().mean() for g in (random.source, random.styled)]
    assert towards[1] < 0.9 * towards[0], "other faces take the style, too"


def test_versions_differ_in_the_free_layers(micro_stylegan: Path) -> None:
    method = make_jojo(micro_stylegan)
    method.configure_model()
    w = torch.randn(3, LAYERS, STYLE)
    changed = [method.versions(w), make_and_vary(micro_stylegan, w, keep_colours=True)]
    free = [set(torch.nonzero((x - w).abs().amax((0, 2)) > 0).flatten().tolist()) for x in changed]
    assert free == [set(range(3, LAYERS)), {4, 5, 7}]
    rows = changed[0][:, 3:]
    assert torch.equal(rows, rows[:, :1].expand_as(rows)), "one random style for all of them"
    torch.testing.assert_close(make_and_vary(micro_stylegan, w, alpha=1.0), w)
    half = make_and_vary(micro_stylegan, w, alpha=0.5)
    torch.testing.assert_close(half, (w + changed[0]) / 2)


def make_and_vary(folder: Path, w: Tensor, **changes: Any) -> Tensor:
    method = make_jojo(folder, **changes)
    method.configure_model()
    return method.versions(w)


def test_jojogan_keeps_and_exports_the_finetuned_generator(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_jojo(micro_stylegan)
    fit(method, tmp_path, callbacks=[Export(folder=str(tmp_path / "export"))])
    assert {name.partition(".")[0] for name in method.state_dict()} == {"styled"}
    for key, value in method.source.state_dict().items():
        torch.testing.assert_close(value, networks(micro_stylegan)[0].state_dict()[key])
        moved = not torch.equal(value, method.styled.state_dict()[key])
        assert moved == (not key.startswith(("style.", "noises.")) and "kernel" not in key), key
    results = predict(make_jojo(micro_stylegan, style_images="gone.png"), tmp_path, ckpt=tmp_path / "last.ckpt")
    expected = method.styled(codes(micro_stylegan, pictures())).clamp(-1, 1)
    torch.testing.assert_close(torch.stack(list(results.values())), expected, rtol=1e-4, atol=1e-4)
    exported = str(tmp_path / "export" / "stylegan2.safetensors")
    swapped = make_swap(micro_stylegan, target=exported, low="source")
    assert len(predict(swapped, tmp_path)) == 3


def test_a_checkpoint_of_the_finetuned_generator_is_a_target(micro_stylegan: Path, tmp_path: Path) -> None:
    trained = make_method(micro_stylegan, lr=0.05, weights={"semantic": 0.0, "paired": 0.0})
    run = quiet_trainer(tmp_path, 2)
    run.fit(trained, datamodule=style_images())
    run.save_checkpoint(tmp_path / "finetuned.ckpt")
    trained.export(tmp_path / "finetuned.safetensors", "safetensors")
    by_file = predict(make_swap(micro_stylegan, target=str(tmp_path / "finetuned.safetensors")), tmp_path)
    by_run = predict(make_swap(micro_stylegan, target=None), tmp_path, ckpt=tmp_path / "finetuned.ckpt")
    for name, image in by_run.items():
        torch.testing.assert_close(image, by_file[name], rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"set model\.target, or give --ckpt_path"):
        predict(make_swap(micro_stylegan, target=None), tmp_path)


def test_mind_the_gap_learns_at_the_pace_of_a_lazy_adam(micro_stylegan: Path, micro_osasis: MicroOSASIS) -> None:
    method = make_gap(micro_stylegan, micro_osasis)
    method.configure_model()
    (settings,) = method.named_optimizers()["generator"][0].param_groups
    assert settings["betas"] == pytest.approx((0.0, 0.99**0.8))


def test_results_are_compared_with_the_style_pictures_of_the_data(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_swap(micro_stylegan, metrics={"style_features": "tiny/perceptual"})
    data = style_images(photos="scene:portrait/0-1", twin_style="cartoon")
    quiet_trainer(tmp_path, 1).test(method, datamodule=data, verbose=False)
    assert method.evaluation.given_style
    assert (method.evaluation.n.compute(), method.evaluation.style_n.compute()) == (2, 6)


def test_a_row_of_a_comparison_swaps_layers_of_what_another_one_has_trained(
    micro_stylegan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning_styles"])
    method = make_method(micro_stylegan, lr=0.05, weights={"semantic": 0.0, "paired": 0.0}, metrics=METRICS)
    styles = {"images": "scene:portrait/0-5", "style": "cartoon", "prompt": "cartoon", "resolution": SIZE}
    experiment = {
        "model": {"class_path": class_path(method), "init_args": dict(method.hparams)},
        "data": {
            "class_path": "datamodules.StyleImages",
            "init_args": styles | {"batch_size": 4, "photos": "scene:portrait/0-2", "twin_style": "cartoon"},
        },
        "trainer": {"max_steps": 2, "accelerator": "cpu", "callbacks": [{"class_path": "callbacks.Checkpoints"}]},
    }
    swap = make_swap(micro_stylegan)
    settings = {key: swap.hparams[key] for key in ("encoder", "swap", "low", "resolution")}
    rows = {
        "trained": {"fit": True},
        "swapped": {"trained_by": "trained", "model": {"class_path": class_path(swap), "init_args": settings}},
    }
    for name, content in (("experiment", experiment), ("table", {"config": ["experiment.yaml"], "rows": rows})):
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    assert main(["compare", "table.yaml"]) == 0
    whole, part = (row["metrics"] for row in json.loads(Path("runs/table/table.json").read_text())["rows"])
    assert part["n"] == whole["n"] == 3
    assert part["twin"] != pytest.approx(whole["twin"], rel=1e-3)

    (checkpoint,) = Path("runs/table").rglob("last.ckpt")
    by_run = predict(make_swap(micro_stylegan, target=None), tmp_path, ckpt=checkpoint)
    evaluation = Evaluation(METRICS)
    truth = torch.cat([batch["twin"] for batch in photos(twin_style="cartoon").predict_dataloader()])
    evaluation.update(torch.stack(list(by_run.values())), pictures(), truth)
    assert part["twin"] == pytest.approx(float(evaluation.compute()["twin"]), rel=1e-4)

    experiment["model"] = {"class_path": class_path(swap), "init_args": dict(swap.hparams)}
    Path("experiment.yaml").write_text(yaml.safe_dump(experiment), encoding="utf-8")
    assert main(["fit", "--config", "experiment.yaml", "--ckpt_path", str(checkpoint)]) == 1
    assert f"holds a {class_path(method)}, the config asks for {class_path(swap)}" in capsys.readouterr().err


def class_path(method: StyleModule) -> str:
    return f"{type(method).__module__}.{type(method).__qualname__}"


# ---- Mind the Gap


def test_styles_are_white_in_p_norm_space(micro_stylegan: Path) -> None:
    source, _ = networks(micro_stylegan)
    w = source.mapping(torch.randn(4000, STYLE))
    space = whiten(w)
    v = space.to_v(w)
    torch.testing.assert_close(v.mean(0), torch.zeros(STYLE), rtol=0, atol=2e-3)
    torch.testing.assert_close(torch.cov(v.T), torch.eye(STYLE), rtol=0, atol=5e-3)
    torch.testing.assert_close(space.to_w(v), w, rtol=1e-3, atol=1e-4)
    own = pnorm_space(source, torch.Generator().manual_seed(0), 4000)
    assert torch.cov(own.to_v(w).T).diagonal().mean() == pytest.approx(1, abs=0.1)


def test_mind_the_gap_trains_all_but_mapping_and_colouring(
    micro_stylegan: Path, micro_osasis: MicroOSASIS, tmp_path: Path
) -> None:
    method = make_gap(micro_stylegan, micro_osasis)
    first = fit(make_gap(micro_stylegan, micro_osasis, iterations=1), tmp_path)
    assert first["across"] == 1, "G' is G, so that there is no direction"
    terms = fit(method, tmp_path)
    assert set(terms) == {"across", "within", "reference", "l2", "lpips", "total"}
    for key, value in method.source.state_dict().items():
        moved = not torch.equal(value, method.styled.state_dict()[key])
        still = key.startswith(("style.", "noises.", "to_rgb")) or "kernel" in key
        assert moved == (not still), key
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert {name.partition(".")[0] for name in saved} == {"styled", "code"}
    assert torch.equal(saved["code"], method.code)


def test_mind_the_gap_draws_the_style_picture_and_photos_take_its_upper_layers(
    micro_stylegan: Path, micro_osasis: MicroOSASIS, tmp_path: Path
) -> None:
    weights = {"across": 0.1, "within": 0.1, "lpips": 1.0}  # a random CLIP has little to say
    changes: dict[str, Any] = {"iterations": 60, "lr": 1e-2, "inversion_steps": 40, "weights": weights}
    method = make_gap(micro_stylegan, micro_osasis, **changes)
    terms = fit(method, tmp_path)
    with torch.no_grad():
        before, after = (
            (g(method.code[None]) - method.picture).square().mean() for g in (method.source, method.styled)
        )
    assert after < 0.6 * before
    assert terms["l2"] == pytest.approx(after.item(), rel=0.5)
    results = predict(make_gap(micro_stylegan, micro_osasis), tmp_path, ckpt=tmp_path / "last.ckpt")
    w = codes(micro_stylegan, pictures())
    expected = method.styled(mix(w, method.code.expand(3, -1, -1), 3)).clamp(-1, 1)
    torch.testing.assert_close(torch.stack(list(results.values())), expected, rtol=1e-3, atol=1e-4)
    plain = predict(make_gap(micro_stylegan, micro_osasis, mix_from=None), tmp_path, ckpt=tmp_path / "last.ckpt")
    torch.testing.assert_close(torch.stack(list(plain.values())), method.styled(w).clamp(-1, 1), rtol=1e-3, atol=1e-4)


def test_the_photo_of_the_style_picture_is_nearer_to_it_and_likely(
    micro_stylegan: Path, micro_osasis: MicroOSASIS, tmp_path: Path
) -> None:
    method = make_gap(micro_stylegan, micro_osasis, iterations=1, lr=0.0, inversion_steps=60)
    fit(method, tmp_path)
    space = pnorm_space(method.source, torch.Generator().manual_seed(0), 4000)
    with torch.no_grad():
        center = method.source(space.to_w(torch.zeros(1, STYLE)))
        near, far = (method.judge(x, method.picture) for x in (method.source(method.code[None]), center))
    assert near < 0.8 * far
    tight = make_gap(micro_stylegan, micro_osasis, iterations=1, lr=0.0, inversion_steps=60, inversion_norm=10.0)
    fit(tight, tmp_path)
    assert space.to_v(tight.code).square().mean() < 0.5 * space.to_v(method.code).square().mean()


@pytest.mark.parametrize(
    ("make", "changes", "message"),
    [
        (make_jojo, {"alpha": 2.0}, "alpha is 2.0; it must be from 0 to 1"),
        (make_gap, {"lpips": "vgg16-imagenet"}, "set one of model.lpips"),
        (make_gap, {"weights": {"accross": 1.0}}, "weights has accross; expected across, within"),
        (make_gap, {"mix_from": 19}, "mix_from is 19; expected a layer from 0 to 18"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    micro_stylegan: Path,
    micro_osasis: MicroOSASIS,
    make: Callable[..., EncodedFaces],
    changes: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        make(*([micro_stylegan] if make is make_jojo else [micro_stylegan, micro_osasis]), **changes)


def test_the_encoder_makes_the_micro_codes(micro_stylegan: Path) -> None:
    """The file and the network in memory agree, so that expectations above are about the methods."""
    images = pictures()
    expected = encode_w(make_psp("w_plus"), networks(micro_stylegan)[0], images)
    torch.testing.assert_close(codes(micro_stylegan, images), expected, rtol=1e-4, atol=1e-4)
