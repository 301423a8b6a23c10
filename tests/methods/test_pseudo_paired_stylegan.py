"""PseudoPairedStyleGAN as a method: what each step trains, the constraints, its preparation, files in and out."""

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from callbacks.interruption import InterruptedPreparation, Interruption
from datamodules import Pictures
from lightning_styles.errors import UserError
from lightning_styles.imaging import read_image, save_png
from lightning_styles.losses.gan import lazy_adam
from lightning_styles.methods import pseudo_pairs
from lightning_styles.methods.pseudo_paired_stylegan import PseudoPairedStyleGAN
from lightning_styles.methods.pseudo_pairs_prepare import Preparation
from lightning_styles.models.psp import GradualStyleEncoder
from lightning_styles.models.stylegan2 import Discriminator, Generator
from lightning_styles.models.stylegan2.mixing import truncate
from lightning_styles.pretrained.networks import load_perceptual
from lightning_styles.pretrained.psp import PSP, load_psp, save_psp
from lightning_styles.pretrained.stylegan2 import StyleGAN2, load_stylegan2, save_rosinality, save_stylegan2
from lightning_styles.square import to_square
from tests.micro import quiet_trainer
from tests.micro_stylegan import LAYERS, SIZE, STYLE, make_method, shaken, style_images
from tests.sheets import cells
from tests.trust.methods import Gradients

pytest_plugins = ["tests.micro_stylegan"]
PLAIN = {"weights": {"semantic": 0.0, "paired": 0.0}}
SEMANTIC = {"weights": {"paired": 0.0}}
METRICS = {"style_features": "tiny/perceptual"}


def fit(folder: Path, method: PseudoPairedStyleGAN, steps: int = 2, data: Any = None, **settings: Any) -> Any:
    run = quiet_trainer(folder, steps, **settings)
    run.fit(method, datamodule=data or style_images(), weights_only=True)
    return run


def state(network: torch.nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


def moved(before: dict[str, Tensor], after: torch.nn.Module) -> set[str]:
    return {key for key, value in after.state_dict().items() if not torch.equal(value, before[key])}


class Losses(Gradients):
    """Also notes the losses as they are logged."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_fit_start(trainer, pl_module)
        log, self.losses = pl_module.log_losses, []

        def noted(losses: dict[str, Tensor]) -> None:
            self.losses.append((pl_module.iteration, {k: float(v.detach()) for k, v in losses.items()}))
            log(losses)

        pl_module.log_losses = noted


def watched(folder: Path, method: PseudoPairedStyleGAN, steps: int = 1) -> Losses:
    """The losses and gradients of iterations that move nothing."""
    seen = Losses()
    fit(folder, method, steps, callbacks=[seen])
    return seen


# ---- one iteration


def test_an_iteration_is_a_step_of_each_and_regularisers_are_lazy(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, iterations=7, r1_every=3, path=2.0, path_every=2, **PLAIN)
    run = fit(tmp_path, method, 7)
    assert run.global_step == 7
    generator, discriminator = run.optimizers
    steps = [max(int(s["step"]) for s in o.state.values()) for o in (generator, discriminator)]
    assert steps == [7 + 4, 7 + 3]  # path at 0, 2, 4, 6; R1 at 0, 3, 6
    for optimizer, (lr, betas) in zip(run.optimizers, (lazy_adam(2e-3, 2), lazy_adam(2e-3, 3)), strict=True):
        assert [(group["lr"], group["betas"]) for group in optimizer.param_groups] == [(lr, betas)]
    assert float(method.path_mean) > 0


def test_regularisers_have_steps_of_their_own_only_at_their_iterations(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, iterations=4, r1_every=2, path=2.0, path_every=3, **PLAIN)
    seen = watched(tmp_path, method, 4)
    named = [(i, name) for i, losses in seen.losses for name in losses if name in ("r1", "path")]
    assert named == [(0, "r1"), (0, "path"), (2, "r1"), (3, "path")]
    order = [name[0] for name, _ in seen.seen]
    assert "".join(order) == "ddgg" + "dg" + "ddg" + "dgg"


def test_the_mapping_and_the_first_layers_of_d_stay(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, freeze_d=4, path=2.0, path_every=1, **PLAIN)
    method.configure_model()
    g, d = state(method.styled), state(method.discriminator)
    fit(tmp_path, method, 2)
    changed = moved(g, method.styled)
    assert not any(key.startswith(("style.", "noises.")) for key in changed)
    assert {key for key in g if not key.startswith(("style.", "noises."))} - changed == {
        key for key in g if key.endswith(".kernel")
    }
    still = {key for key in d if key not in moved(d, method.discriminator) and not key.endswith(".kernel")}
    # The layer from RGB and the first block: its two convolutions and its path.
    assert still == {key for key in d if key.startswith(("convs.0.", "convs.1.")) and not key.endswith(".kernel")}


def test_the_mapping_is_trained_if_asked(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, freeze_mapping=False, path=2.0, **PLAIN)
    method.configure_model()
    before = state(method.styled)
    fit(tmp_path, method, 1)
    assert {key for key in before if key.startswith("style.")} <= moved(before, method.styled)


def test_the_strengths_of_the_noise_stay_if_asked(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, freeze_noise=True, path=2.0, **PLAIN)
    method.configure_model()
    before = state(method.styled)
    fit(tmp_path, method, 2)
    changed = moved(before, method.styled)
    assert {key for key in before if key.endswith("activate.bias")} <= changed
    assert not any(key.endswith("noise.weight") for key in changed)


def test_frozen_parts_are_those_of_the_average_where_a_file_has_a_training_copy(
    micro_stylegan: Path, tmp_path: Path
) -> None:
    model = load_stylegan2(micro_stylegan / "stylegan2_0.safetensors", finetune=True)
    model.trained = shaken(copy.deepcopy(model.generator))  # type: ignore[assignment]
    save_rosinality(tmp_path / "both.pt", model)
    frozen = make_method(micro_stylegan, source=str(tmp_path / "both.pt"), freeze_noise=True)
    free = make_method(micro_stylegan, source=str(tmp_path / "both.pt"), freeze_mapping=False)
    for method in (frozen, free):
        method.configure_model()
        differ = moved(state(method.source), method.styled)
        assert "conv1.conv.weight" in differ, "the rest is the training copy"
        kept = [key for key in state(method.source) if key.startswith("style.") or key.endswith("noise.weight")]
        assert differ.isdisjoint(kept) == (method is frozen)
        assert differ.issuperset(kept) == (method is free)


def test_the_average_follows(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, ema=0.75, iterations=1, **PLAIN)
    method.configure_model()
    start = dict(method.average.named_parameters())["conv1.conv.weight"].clone()
    fit(tmp_path, method, 1)
    now, average = method.styled.conv1.conv.weight, method.average.conv1.conv.weight
    torch.testing.assert_close(average, 0.75 * start + 0.25 * now)
    assert not any(p.requires_grad for p in method.average.parameters())


def test_styles_are_one_two_or_apart(micro_stylegan: Path) -> None:
    counts = {}
    for name, settings in {
        "one": {"mixing": 0.0, "z_plus": 0.0},
        "two": {"mixing": 1.0, "z_plus": 0.0},
        "apart": {"mixing": 0.0, "z_plus": 1.0},
        "half": {"mixing": 0.0, "z_plus": 0.5},
    }.items():
        method = make_method(micro_stylegan, **settings)
        method.configure_model()
        z = method.draw_codes(64, "codes")
        assert z.shape == (64, LAYERS, STYLE)
        counts[name] = [len({row[0].item() for row in rows}) for rows in z]
    assert {name: set(found) for name, found in counts.items()} == {
        "one": {1}, "two": {2}, "apart": {LAYERS}, "half": {1, LAYERS},
    }  # fmt: skip
    assert 0.3 < counts["half"].count(LAYERS) / 64 < 0.7


# ---- the constraints


def test_the_semantic_term_begins_at_0_and_grows_with_the_distance(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, iterations=3, lr=0.02, **SEMANTIC)
    seen: list[float] = []
    loss = method.semantic_loss

    def noted(*arguments: Any) -> Tensor:
        seen.append(float(loss(*arguments).detach()))
        return loss(*arguments)

    method.semantic_loss = noted  # type: ignore[method-assign]
    fit(tmp_path, method, 3)
    assert seen[0] == pytest.approx(0.0, abs=1e-5)
    assert seen[0] < seen[1]
    assert seen[2] > 1e-3


def test_no_gradient_of_a_constraint_reaches_more_than_the_styled_generator(
    micro_stylegan: Path, tmp_path: Path
) -> None:
    terms = {"adversarial": 0.0, "semantic": 0.0, "paired": 1.0}
    method = make_method(micro_stylegan, iterations=1, weights=terms, r1=0.0)
    seen = watched(tmp_path, method)
    assert [name for name, _ in seen.seen] == ["discriminator", "generator"]
    gradients = seen.seen[1][1]
    assert gradients
    assert all(key.startswith("styled.") for key in gradients)
    assert sum(float(g.norm()) for g in gradients.values()) > 0
    frozen = [*method.source.parameters(), *method.judge.parameters(), *method.average.parameters()]
    assert all(p.grad is None for p in frozen)
    assert not method.pairs.w.requires_grad


def test_the_paired_term_compares_with_the_style_pictures(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, iterations=1, pair_batch=6)
    seen = watched(tmp_path, method)
    (logged,) = [losses for _, losses in seen.losses if "paired" in losses]
    method.generator = lambda purpose: PseudoPairedStyleGAN.generator(method, purpose)  # type: ignore[method-assign]
    order = torch.randperm(6, generator=method.generator("pairs"))
    maps = method.draw_noise(6, "pairs/noise")
    distance = load_perceptual("tiny/perceptual")
    expected = distance(method.source(method.pairs.w[order], maps), method.pairs.style[order]).mean()
    assert logged["paired"] == pytest.approx(float(expected), rel=1e-4)
    assert logged["total"] == pytest.approx(sum(logged[k] for k in ("adversarial", "semantic", "paired")), rel=1e-5)


def test_maps_of_style_pictures_are_computed_once_as_far_as_they_fit() -> None:
    judge, asked = load_perceptual("tiny/perceptual"), []

    class Counting:
        def embed(self, image: Tensor) -> list[Tensor]:
            asked.append(len(image))
            return judge.embed(image)

    style = torch.rand(3, 3, SIZE, SIZE)
    one = sum(x.nbytes for x in judge.embed(style[:1])) / 1e9
    targets = pseudo_pairs.Targets(Counting(), style, gigabytes=2.5 * one)
    for _ in range(2):
        found = targets.maps([2, 0, 1])
    assert asked == [1, 1, 1, 1]  # the third does not fit
    for ours, theirs in zip(found, judge.embed(style[[2, 0, 1]]), strict=True):
        torch.testing.assert_close(ours, theirs)


# ---- preparation


def prepared(method: PseudoPairedStyleGAN, folder: Path, data: Any = None) -> Preparation:
    """What `prepare` works with."""
    method.trainer = quiet_trainer(folder, 1)
    return Preparation(method, data or style_images())


def test_pairs_are_made_once_and_go_on_in_the_middle(
    micro_stylegan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    method = make_method(micro_stylegan, cache=str(tmp_path / "pairs"))
    whole, batches = pseudo_pairs.pseudo_pairs, []

    def dying(nets: Any, style: Tensor, *rest: Any) -> Any:
        if len(batches) == 2:
            raise KeyboardInterrupt
        batches.append(len(style))
        return whole(nets, style, *rest)

    monkeypatch.setattr(pseudo_pairs, "pseudo_pairs", dying)
    with pytest.raises(KeyboardInterrupt):
        prepared(method, tmp_path).find()
    done = {f: f.stat().st_mtime_ns for f in (tmp_path / "pairs").glob("portrait*.safetensors")}
    assert len(done) == 4
    monkeypatch.setattr(pseudo_pairs, "pseudo_pairs", whole)
    method.trainer = quiet_trainer(tmp_path, 1)
    method.prepare(style_images())
    said = capsys.readouterr().out
    files = sorted((tmp_path / "pairs").glob("portrait*.safetensors"))
    assert len(files) == 6
    assert {f: f.stat().st_mtime_ns for f in done} == done, "what was done is not done again"
    (sheet,) = (tmp_path / "pairs").glob("sheet_*.png")
    assert str(sheet) in said
    shown = cells(read_image(sheet), 6, 4, SIZE)  # S and three levels
    assert shown.flatten(2).std(-1).min() > 0.01, "no empty cell"
    straight = prepared(make_method(micro_stylegan), tmp_path).find()
    monkeypatch.setattr(pseudo_pairs, "pseudo_pairs", None)
    pairs = prepared(method, tmp_path).find()
    torch.testing.assert_close(pairs.w, straight.w, rtol=1e-3, atol=1e-3)


def test_the_level_is_the_best_of_each_picture_or_that_of_the_config(micro_stylegan: Path, tmp_path: Path) -> None:
    chosen = [prepared(make_method(micro_stylegan, level=n), tmp_path).find() for n in (1, 2, 3)]
    best = prepared(make_method(micro_stylegan), tmp_path).find()
    styles = Preparation(make_method(micro_stylegan), style_images()).styles
    source = load_stylegan2(micro_stylegan / "stylegan2_0.safetensors").generator
    judge = load_perceptual("tiny/perceptual")
    from lightning_styles.pretrained.networks import load_identity

    identity = load_identity("tiny/identity")
    scores = []
    for pairs in chosen:
        images = source(pairs.w)
        scores.append(judge(images, pairs.style) + 1 - (identity(images) * identity(pairs.style)).sum(1))
    assert best.level.tolist() == (torch.stack(scores).argmin(0) + 1).tolist()
    for i, level in enumerate(best.level.tolist()):
        torch.testing.assert_close(best.w[i], chosen[level - 1].w[i])
        torch.testing.assert_close(best.style[i], styles[i].image)
    assert [pairs.level.tolist() for pairs in chosen] == [[n] * 6 for n in (1, 2, 3)]


def test_other_networks_settings_or_pictures_are_other_pairs(micro_stylegan: Path, tmp_path: Path) -> None:
    def name(data: Any = None, **changes: Any) -> str:
        preparation = prepared(make_method(micro_stylegan, **changes), tmp_path, data)
        return preparation.files.file(preparation.styles[0]).name

    settings = make_method(micro_stylegan).hparams.pairs
    names = [
        name(),
        name(source=str(micro_stylegan / "stylegan2_1.safetensors")),
        name(refiner=None),
        name(identity=None),
        name(lr=1e-3),
        name(seed=1),
        name(pairs={**settings, "psi": 0.5}),
        name(style_images(style="watercolor")),
        name(style_images(batch_size=3)),  # of G*
    ]
    assert len(set(names)) == len(names)
    assert name(level=2, weights={"paired": 2.0}, iterations=9, pairs={**settings, "batch_size": 1}) == names[0]


def test_g_star_is_trained_without_constraints_and_goes_on_where_it_was_killed(
    micro_stylegan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_styles.methods import pseudo_pairs_prepare

    monkeypatch.setattr(pseudo_pairs_prepare, "EVERY", 2)
    settings = {"finetune_iterations": 5, "cache": str(tmp_path / "whole")}
    method = make_method(micro_stylegan, **settings)
    method.hparams["_class_path"] = "as the command line leaves behind"
    straight = prepared(method, tmp_path).finetuned_file()
    settings["cache"] = str(tmp_path / "cut")
    step = PseudoPairedStyleGAN.training_step
    seen: list[int] = []

    def dying(self: Any, batch: Any, index: int) -> None:
        if self.iteration == 3 and len(seen) == 3:
            raise RuntimeError("killed")
        seen.append(self.iteration)
        assert self.terms == {"adversarial": 1.0, "semantic": 0.0, "paired": 0.0}
        step(self, batch, index)

    monkeypatch.setattr(PseudoPairedStyleGAN, "training_step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        prepared(make_method(micro_stylegan, **settings), tmp_path).finetuned_file()
    resumed = prepared(make_method(micro_stylegan, **settings), tmp_path).finetuned_file()
    assert seen == [0, 1, 2, 2, 3, 4]
    assert resumed.name == straight.name
    ours, theirs = (load_stylegan2(path).generator.state_dict() for path in (resumed, straight))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    source = load_stylegan2(micro_stylegan / "stylegan2_0.safetensors").generator
    assert moved(source.state_dict(), load_stylegan2(resumed).generator)
    assert not resumed.with_suffix("").exists()


@pytest.mark.parametrize("during", ["G*", "pairs"])
def test_a_signal_ends_the_preparation_of_a_run_and_what_is_made_is_kept(
    micro_stylegan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, during: str
) -> None:
    method = make_method(micro_stylegan, cache=str(tmp_path / "c"), finetune_iterations=5)
    step, made, asked = PseudoPairedStyleGAN.training_step, pseudo_pairs.pseudo_pairs, []

    def ask() -> None:
        asked.append(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    def training_step(self: Any, batch: Any, index: int) -> None:
        step(self, batch, index)
        if during == "G*" and self.iteration == 3 and not asked:
            ask()

    def pseudo(*given: Any) -> Any:
        if during == "pairs" and not asked:
            ask()
        return made(*given)

    monkeypatch.setattr(PseudoPairedStyleGAN, "training_step", training_step)
    monkeypatch.setattr(pseudo_pairs, "pseudo_pairs", pseudo)
    with pytest.raises(InterruptedPreparation) as stop:
        fit(tmp_path, method, 1, callbacks=[Interruption()], enable_checkpointing=True)
    assert (stop.value.code, stop.value.iterations) == (143, 0)
    begun = sorted(path.name.partition("_")[0] for path in (tmp_path / "c").iterdir())
    assert begun == (["finetuned"] if during == "G*" else ["finetuned", *["portrait"] * 4])
    if during == "G*":
        (saved,) = (tmp_path / "c").glob("*/*.ckpt")
        assert torch.load(saved, weights_only=True)["global_step"] == 4
    fit(tmp_path, method, 1, callbacks=[Interruption()], enable_checkpointing=True)
    assert len(list((tmp_path / "c").glob("portrait*.safetensors"))) == 6


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "data", "message"),
    [
        ({}, {"images": "scene:portrait/0-2"}, "There are 3 style pictures for batches of 4; add pictures or set"),
        ({}, {"batch_size": 6}, "data.batch_size is 6; the discriminator compares 4 pictures at a time"),
        ({}, {"resolution": 64}, "data.resolution is 64; .* draws 32 px: set it to 32"),
        ({"finetuned": "source"}, {}, "is the source generator itself"),
        ({"freeze_d": 99}, {}, "freeze_d is 99; the discriminator has 13 layers"),
        ({"encoder": None}, {}, "the paired term needs model.encoder"),
        ({"encoder": "refiner"}, {}, "encodes into W[+]; pseudo pairs begin in Z[+]"),
        ({"perceptual": None}, {}, "need a judge: set model.lpips or model.perceptual"),
        ({"weights": {"pair": 1.0}}, {}, "weights has pair; expected adversarial, semantic, paired"),
        ({"z_plus": 1.5}, {}, "z_plus is 1.5; it must be from 0 to 1"),
        ({"pairs": {"steps": -1}}, {}, "pairs.steps is -1"),
        ({"level": 3, "refiner": None}, {}, "level is 3, but without model.refiner"),
        ({"policies": ["colour"]}, {}, "policies has colour; expected color, translation, cutout"),
        ({"encoder": "other_psp"}, {}, "other.* encodes for another generator: .* has 8 styles of length 16"),
        ({"refiner": "other_psp"}, {}, "other.* encodes for another generator"),
        ({"discriminator": "other"}, {}, "other.* judges 16 px, .* draws 32 px; give the one"),
        ({"finetuned": "other"}, {}, "other.* is no copy of .*: it has another architecture"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(
    micro_stylegan: Path, tmp_path: Path, changes: dict[str, Any], data: dict[str, Any], message: str
) -> None:
    small = Generator(16, STYLE, 2, channels={4: 8, 8: 8, 16: 8})
    judge = Discriminator(16, channels={4: 8, 8: 8, 16: 8})
    save_stylegan2(tmp_path / "other.safetensors", StyleGAN2(small, small.mean_latent(9)[0], judge))
    encoder = GradualStyleEncoder(LAYERS + 2, STYLE, SIZE, widths=(16, 16, 16), blocks=(1, 1, 1))
    save_psp(tmp_path / "other_psp.safetensors", PSP(encoder, "z_plus"))
    files = {"source": micro_stylegan / "stylegan2_0.safetensors"}
    files |= {"refiner": micro_stylegan / "psp_w_plus.safetensors"}
    files |= {name: tmp_path / f"{name}.safetensors" for name in ("other", "other_psp")}
    given = {k: str(files.get(v, v)) for k, v in changes.items() if isinstance(v, str)}
    with pytest.raises(UserError, match=message):
        fit(
            tmp_path,
            make_method(micro_stylegan, cache=str(tmp_path / "c"), **(changes | given)),
            1,
            style_images(**data),
        )
    assert not list(tmp_path.glob("c/finetuned_*")), "nothing was trained before"


def test_photographs_need_the_encoder_that_the_settings_name(micro_stylegan: Path) -> None:
    with pytest.raises(UserError, match="content is refiner, .* there is none: set model.refiner"):
        make_method(micro_stylegan, content="refiner", refiner=None)


def test_without_the_paired_term_there_is_nothing_to_prepare(
    micro_stylegan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    method = make_method(micro_stylegan, cache=str(tmp_path / "c"), encoder=None, **SEMANTIC)
    method.prepare(style_images())
    assert "Nothing to prepare: the weight of the paired term is 0" in capsys.readouterr().out
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [(40, 48, "wide.png is 48 x 40 px; style pictures must be square"), (24, 24, None)],
)
def test_style_pictures_must_be_square_and_not_tiny(
    micro_stylegan: Path, tmp_path: Path, height: int, width: int, message: str | None
) -> None:
    save_png(tmp_path / "wide.png", torch.rand(3, height, width) * 2 - 1)
    data = style_images(images=str(tmp_path / "wide.png"), batch_size=1)
    preparation = prepared(make_method(micro_stylegan), tmp_path, data)
    if message is None:
        preparation.check()
        preparation.source.generator.size = 128
        data.resolution = 128
        message = "wide.png has 24 px, far from the 128 px that the generator draws"
    with pytest.raises(UserError, match=message):
        preparation.check()


# ---- what comes of it


def test_photographs_are_encoded_and_drawn_by_the_average(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, ema=0.5, psi=0.8, **SEMANTIC)
    fit(tmp_path, method).save_checkpoint(tmp_path / "last.ckpt")
    photos = Pictures(images="scene:portrait/7-8", resolution=48, batch_size=2)
    results = {}
    for content, space in (("encoder", "z_plus"), ("refiner", "w_plus")):
        fresh = make_method(micro_stylegan, content=content, psi=0.8, perceptual="gone", identity="gone")
        run = quiet_trainer(tmp_path, 1)
        (batch,) = run.predict(fresh, photos, ckpt_path=tmp_path / "last.ckpt", weights_only=True)  # type: ignore[misc]
        results[content] = torch.stack(batch["image"])  # type: ignore[call-overload]
        encoder = load_psp(micro_stylegan / f"psp_{space}.safetensors")
        images = torch.stack([picture["image"] for picture in photos.pictures()])
        codes = encoder.encoder(to_square(images, SIZE, "crop"))
        w = codes + encoder.latent_avg if encoder.latent_avg is not None else method.source.mapping(codes)
        expected = method.average(truncate(w, method.latent_avg, 0.8)).clamp(-1, 1)
        torch.testing.assert_close(results[content], expected, rtol=1e-4, atol=1e-4)
    assert (results["encoder"] - results["refiner"]).abs().max() > 1e-3
    other = make_method(micro_stylegan, source=str(micro_stylegan / "stylegan2_1.safetensors"))
    with pytest.raises(UserError, match="was trained on base"):
        quiet_trainer(tmp_path, 1).predict(other, photos, ckpt_path=tmp_path / "last.ckpt", weights_only=True)


def test_evaluation_measures_twins_and_the_distance_of_the_generators(micro_stylegan: Path, tmp_path: Path) -> None:
    metrics = {"perceptual": "tiny/perceptual", "identity": "tiny/identity"}
    method = make_method(micro_stylegan, metrics=metrics, semantic_samples=5, lr=0.02, ema=0.0, iterations=3, **PLAIN)
    photos = Pictures(images="scene:portrait/7-8", resolution=SIZE, twin_style="cartoon")
    run = quiet_trainer(tmp_path, 3)
    (before,) = run.test(method, datamodule=photos, verbose=False)
    assert before["test/semantic"] == pytest.approx(0.0, abs=1e-6)
    assert before["test/semantic_n"] == 5
    assert {"test/content", "test/identity", "test/twin"} <= before.keys()
    run = fit(tmp_path, method, 3)
    (after,) = run.test(method, datamodule=photos, verbose=False)
    assert after["test/semantic"] > 1e-3


def test_exports_are_read_again(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, ema=0.5, **SEMANTIC)
    fit(tmp_path, method)
    for layout, name in method.formats.items():
        method.export(tmp_path / name, layout)
        found = load_stylegan2(tmp_path / name, finetune=True)
        for ours, theirs in ((found.generator, method.average), (found.trained, method.styled)):
            assert ours is not None
            torch.testing.assert_close(dict(ours.named_parameters()), dict(theirs.named_parameters()))
        assert torch.equal(found.latent_avg, method.latent_avg)


def test_previews_show_photographs_pairs_and_results(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan)
    assert method.preview() == {}
    fit(tmp_path, method)
    columns = method.preview()
    assert list(columns) == ["source", "result", "pair", "pair result", "style"]
    assert {tuple(column.shape) for column in columns.values()} == {(4, 3, SIZE, SIZE)}
    torch.testing.assert_close(columns["style"], method.pairs.style[:4].clamp(-1, 1))


@pytest.mark.parametrize("augment", ["ada", "diffaugment", "none"])
def test_the_discriminator_sees_augmented_pictures(micro_stylegan: Path, tmp_path: Path, augment: str) -> None:
    method = make_method(micro_stylegan, augment=augment, ada_start=0.9, ada_ramp=10, iterations=4, **PLAIN)
    method.configure_model()
    image = torch.rand(4, 3, SIZE, SIZE)
    seen = method.augmentation(image, torch.Generator().manual_seed(0))
    assert torch.equal(seen, image) == (augment == "none")
    fit(tmp_path, method, 4)
    p = float(method.augmentation.p)
    # After 4 iterations, 16 pictures over a ramp of 10 move p to one of its ends.
    assert p in ((0.0, 1.0) if augment == "ada" else (0.0,))


def test_results_are_compared_with_the_style_pictures_of_the_data(micro_stylegan: Path, tmp_path: Path) -> None:
    method = make_method(micro_stylegan, metrics=METRICS)
    data = style_images(photos="scene:portrait/0-1", twin_style="cartoon")
    quiet_trainer(tmp_path, 1).test(method, datamodule=data, verbose=False)
    assert method.evaluation.given_style
    assert (method.evaluation.n.compute(), method.evaluation.style_n.compute()) == (2, 6)
    for i in range(3):
        save_png(tmp_path / "styles" / f"{i}.png", torch.rand(3, 40, 40) * 2 - 1)
    method = make_method(micro_stylegan, metrics=METRICS | {"style_images": str(tmp_path / "styles")})
    quiet_trainer(tmp_path, 1).test(method, datamodule=data, verbose=False)
    assert method.evaluation.style_n.compute() == 3, "the given ones instead"
