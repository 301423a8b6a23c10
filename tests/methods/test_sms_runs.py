"""SMS through the trainer: predict, sizes, every option, refusals; tests/trust has resume and several processes."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from callbacks import ImageWriter
from datamodules import Pictures
from lightning_styles import noise
from lightning_styles.diffusion.scores import Query
from lightning_styles.errors import UserError
from lightning_styles.imaging import read_image
from lightning_styles.methods.sms import SMS
from lightning_styles.models.adapters import adapter_parameters
from lightning_styles.pretrained.stable_diffusion import encode_prompts, load_stable_diffusion
from tests.micro import Micro, quiet_trainer, write_picture
from tests.trust.methods import make_sms

pytest_plugins = ["tests.micro"]
SCENE = "scene:portrait/3?seed=1"


def pictures(images: str | list[str] = SCENE, resolution: int | None = 32, **settings: Any) -> Pictures:
    return Pictures(images=images, resolution=resolution, **settings)


def fit(folder: Path, method: SMS, data: Pictures | None = None, ckpt_path: Path | None = None) -> L.Trainer:
    run = quiet_trainer(folder, method.iterations)
    run.fit(method, datamodule=data or pictures(), ckpt_path=ckpt_path, weights_only=True)
    return run


def predict(folder: Path, method: SMS, data: Pictures, callbacks: list[L.Callback] | None = None) -> dict[str, Tensor]:
    """Results by name."""
    run = quiet_trainer(folder, 1, callbacks=callbacks or [])
    batches = run.predict(method, datamodule=data)
    found = [batch for batch in batches or [] if batch is not None]
    return {n: image for b in found for n, image in zip(b["name"], b["image"], strict=True)}  # type: ignore[call-overload]


def trained(method: SMS) -> dict[str, Tensor]:
    """What a checkpoint holds of a method."""
    return {key: value.clone() for key, value in method.state_dict().items()}


# ---- predict


def test_predict_gives_what_fit_gives(micro: Micro, tmp_path: Path) -> None:
    fitted = make_sms(micro)
    fit(tmp_path / "fit", fitted)
    predicted = predict(tmp_path / "predict", make_sms(micro), pictures())
    expected = fitted.decode(fitted.z_tgt)[0]
    torch.testing.assert_close(predicted["portrait_3_seed1"], expected, rtol=0, atol=1e-6)
    files = sorted(path.name for path in tmp_path.rglob("results/*.png"))
    assert files == ["portrait_3_seed1.png", "portrait_3_seed1_before_after.png"]
    written = read_image(next(tmp_path.rglob("portrait_3_seed1.png")))
    torch.testing.assert_close(written, expected, rtol=0, atol=1.01 / 255)


def test_a_result_does_not_depend_on_its_batch(micro: Micro, tmp_path: Path) -> None:
    two = ["scene:portrait/3", "scene:landscape/5"]
    together = predict(tmp_path, make_sms(micro), pictures(two, batch_size=2))
    alone = predict(tmp_path, make_sms(micro), pictures(two, batch_size=1))
    assert list(together) == ["portrait_3", "landscape_5"]
    for name, image in alone.items():
        torch.testing.assert_close(together[name], image, rtol=0, atol=1e-4)
    assert (alone["portrait_3"] - alone["landscape_5"]).abs().max() > 0.1


@pytest.mark.parametrize("size", [(40, 64), (64, 40), (37, 50)])
def test_pictures_keep_their_size(micro: Micro, tmp_path: Path, size: tuple[int, int]) -> None:
    data = pictures(write_picture(tmp_path / "wide.png", *size), None)
    method = make_sms(micro)
    fit(tmp_path, method, data)
    assert tuple(method.preview()["result"].shape) == (1, 3, *size)
    padded = tuple(-(-side // 8) * 8 // 4 for side in size)
    assert tuple(method.z_tgt.shape[-2:]) == padded
    assert tuple(predict(tmp_path, make_sms(micro), data)["wide"].shape) == (3, *size)


def test_predict_takes_pictures_of_different_sizes_and_skips_finished_ones(micro: Micro, tmp_path: Path) -> None:
    files = [write_picture(tmp_path / "in" / f"{h}.png", h, 40) for h in (40, 48)]
    first = predict(tmp_path, make_sms(micro), pictures(files, None), [ImageWriter(str(tmp_path / "out"))])
    assert {name: tuple(image.shape) for name, image in first.items()} == {"40": (3, 40, 40), "48": (3, 48, 40)}
    (tmp_path / "out" / "48.png").unlink()
    again = predict(tmp_path, make_sms(micro), pictures(files, None), [ImageWriter(str(tmp_path / "out"))])
    assert list(again) == ["48"]
    assert torch.equal(again["48"], first["48"])


class Poison(L.Callback):
    """Makes one value of the prediction `which` NaN in iteration 1, when the latents move."""

    def __init__(self, which: int) -> None:
        self.which = which

    def on_train_start(self, trainer: L.Trainer, pl_module: SMS) -> None:  # type: ignore[override]
        def spoil(scores: Any, words: Any, predictions: list[Tensor]) -> None:
            if pl_module.iteration == 1 and not torch.is_grad_enabled():
                predictions[self.which][0, 0, 0, 0, 0] = float("nan")

        pl_module.scores.register_forward_hook(spoil)

    on_predict_start = on_train_start


@pytest.mark.parametrize(("objective", "which"), [("sms", 0), ("sms", 2), ("sds", 0), ("dds", 0), ("pds", 0)])
@pytest.mark.parametrize("command", ["fit", "predict"])
def test_nan_in_a_score_is_noticed(micro: Micro, tmp_path: Path, command: str, objective: str, which: int) -> None:
    method = make_sms(micro, objective=objective, relevance=which == 2)
    run = quiet_trainer(tmp_path, 2, callbacks=[Poison(which)])
    with pytest.raises(UserError, match=r"^style.* became NaN or infinite in iteration 1(;|, which spoils p)"):
        getattr(run, command)(method, datamodule=pictures())
    assert not list(tmp_path.rglob("*.png"))


# ---- options


@pytest.mark.parametrize(
    ("objective", "relevance"), [("sms", True), ("vsd", False), ("sds", True), ("dds", False), ("pds", False)]
)
def test_every_objective_moves_the_latents(micro: Micro, tmp_path: Path, objective: str, relevance: bool) -> None:
    method = make_sms(micro, objective=objective, relevance=relevance, sampling="full", identity="none")
    run = fit(tmp_path, method)
    moved = (method.z_tgt - method.z_src).abs()
    assert torch.isfinite(method.z_tgt).all()
    assert moved.max() > 1e-2
    assert (moved > 1e-4).float().mean() > 0.9
    fakes = {key for key in trained(method) if ".fake" in key}
    assert (len(run.optimizers), bool(fakes)) == ((2, True) if objective in ("sms", "vsd") else (1, False))


@torch.no_grad()
@pytest.mark.parametrize("posterior", ["sample", "mode"])
def test_the_latents_start_at_the_picture(micro: Micro, tmp_path: Path, posterior: str) -> None:
    method, data = make_sms(micro, posterior=posterior, iterations=1), pictures()
    fit(tmp_path, method, data)  # the only step has rate 0
    vae = load_stable_diffusion(micro.base).vae
    found = vae.encode(data.pictures()[0]["image"][None]).latent_dist
    z = found.mean
    if posterior == "sample":
        z = z + found.std * torch.randn(z.shape, generator=noise.generator(0, "portrait_3_seed1", "posterior"))
    expected = 0.18215 * z
    torch.testing.assert_close(method.z_src, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(method.z_tgt.data, expected, rtol=1e-4, atol=1e-5)
    decoded = vae.decode(expected / 0.18215).sample.clamp(-1, 1)
    torch.testing.assert_close(method.preview()["result"], decoded, rtol=0, atol=1e-3)


def test_every_prompt_goes_to_its_model(micro: Micro, tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 32, 32)
    (tmp_path / "a.txt").write_text("long red hair")
    prompts = {"target_prompt": "a {style} of {caption}", "edit_prompt": "turn {style}"}
    method = make_sms(micro, iterations=1, source_prompt="{caption}, old", **prompts)
    fit(tmp_path, method, pictures(str(tmp_path / "a.png")))
    base = load_stable_diffusion(micro.base)
    tgt = "a cartoon style of long red hair"
    expected = {"tgt": tgt, "tgt_style": tgt, "edit": "turn cartoon style", "src": "long red hair, old"}
    assert method.text.keys() == expected.keys()
    for role, prompt in expected.items():
        text = encode_prompts(base.text_encoder, base.tokenizer, [prompt, ""])
        torch.testing.assert_close(method.text[role], text[None])
    asked: list[tuple[str, str]] = []
    method.scores.register_forward_pre_hook(
        lambda _, args: asked.extend(
            (query.role, role) for query in args[0] for role, text in method.text.items() if query.text is text
        )
    )
    for objective in ("sms", "dds"):
        method.hparams.objective = objective
        method.distill(torch.tensor([101]), torch.tensor([99]), torch.zeros_like(method.z_src))
    of_sms = [("style", "tgt_style"), ("fake", "tgt"), ("real", "edit")]
    assert asked == [*of_sms, ("style", "tgt_style"), ("style", "src"), ("real", "edit")]


@pytest.mark.parametrize("style_lora", [True, False])
def test_the_loras_have_their_strengths(micro: Micro, tmp_path: Path, style_lora: bool) -> None:
    settings: dict[str, Any] = {"lora_strength": 0.6, "rank": 3, "alpha": 12.0, "frozen_precision": "bfloat16"}
    method = make_sms(micro, iterations=1, grid_steps=100, **settings, **({} if style_lora else {"style_lora": None}))
    fit(tmp_path, method)
    assert method.grid[:3].tolist() == [1, 11, 21]
    layer = method.scores.real_unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q")
    own = {"style": 0.6} if style_lora else {}
    assert layer.scaling == pytest.approx(own | {"fake0": 12 / 3})
    assert tuple(layer.lora_A["fake0"].weight.shape) == (3, 16)
    assert layer.get_base_layer().weight.dtype == torch.bfloat16
    t, z, text = torch.tensor([101]), method.z_src, method.text["tgt"]
    with torch.no_grad():
        style, real = method.scores([Query("style", z, text), Query("real", z, text)], t)
    assert torch.equal(style, real) != style_lora


def test_relevance_weighs_the_gradient(micro: Micro, tmp_path: Path) -> None:
    method = make_sms(micro)
    fit(tmp_path, method)
    with torch.no_grad():
        t = torch.tensor([101])
        _, R = method.distill(t, t - 2, torch.randn_like(method.z_src))
    assert tuple(R.shape) == (1, 1, *method.z_src.shape[-2:])
    assert (R.min().item(), R.max().item()) == (0, 1)


def test_a_second_base_takes_two_unets(micro: Micro, tmp_path: Path) -> None:
    method = make_sms(micro, real=micro.other)
    fit(tmp_path, method)
    style, real = method.scores.style_unet, method.scores.real_unet
    assert style is not None
    assert not torch.equal(style.conv_in.weight, real.conv_in.weight)
    assert set(style.peft_config) == {"style"}
    assert set(real.peft_config) == {"fake0"}
    assert set(method.base_models) == {micro.base, micro.other, micro.lora}
    single = make_sms(micro)
    fit(tmp_path, single)
    assert single.scores.style_unet is None
    assert not torch.equal(single.z_tgt, method.z_tgt)


def test_the_loras_text_encoder_changes_the_style_models_prompts_alone(micro: Micro, tmp_path: Path) -> None:
    texts = []
    for used in (False, True):
        method = make_sms(micro, iterations=1, style_lora=micro.lora_with_text, lora_text_encoder=used)
        fit(tmp_path, method)
        texts.append(method.text)
    without, with_text = texts
    assert torch.equal(without["tgt_style"], without["tgt"])
    changed = {role for role in without if not torch.equal(without[role], with_text[role])}
    assert changed == {"tgt_style", "src"}, "the prompts of the style model"
    assert (with_text["tgt_style"] - without["tgt_style"]).abs().max() > 1e-3


def test_gradient_checkpointing_changes_no_number(micro: Micro, tmp_path: Path) -> None:
    plain, saving = (make_sms(micro, iterations=3, gradient_checkpointing=used) for used in (False, True))
    for method in (plain, saving):
        fit(tmp_path, method)
    theirs = trained(saving)
    for key, value in trained(plain).items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_compiling_changes_no_number(micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Graphs are captured and differentiated as ever; generating C++ for them would take minutes.
    compiling: list[torch.nn.Module] = []

    def compile(module: torch.nn.Module) -> None:
        compiling.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    plain, compiled = (make_sms(micro, compile=used) for used in (False, True))
    for method in (plain, compiled):
        fit(tmp_path, method)
    assert compiling == [compiled.scores.real_unet]
    theirs = trained(compiled)
    for key, value in trained(plain).items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_numbers_of_the_cpu(micro: Micro, tmp_path: Path) -> None:
    methods = [make_sms(micro, frozen_precision="float32") for _ in range(2)]
    for method, accelerator in zip(methods, ("cpu", "gpu"), strict=True):
        quiet_trainer(tmp_path, 2, accelerator=accelerator).fit(method, datamodule=pictures())
    theirs = trained(methods[1])
    for key, value in trained(methods[0]).items():
        torch.testing.assert_close(theirs[key].cpu(), value, rtol=1e-2, atol=1e-3)


# ---- checkpoints and refusals


def test_a_checkpoint_holds_what_is_trained_and_no_frozen_weight(micro: Micro, tmp_path: Path) -> None:
    method = make_sms(micro)
    fit(tmp_path, method).save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    lora = adapter_parameters(method.scores.real_unet, "fake0")
    assert len(saved["state_dict"]) == 2 + len(lora)
    assert {key for key in saved["state_dict"] if ".fake0." not in key} == {"z_tgt", "z_src"}
    base = sum(file.stat().st_size for file in Path(micro.base).rglob("*.safetensors"))
    assert (tmp_path / "last.ckpt").stat().st_size < base / 4
    assert saved["lightning_styles"]["pictures"] == ["portrait_3_seed1"]
    assert saved["lightning_styles"]["base_models"] == method.base_models


def test_another_picture_or_base_is_refused_on_resume(micro: Micro, tmp_path: Path) -> None:
    part = tmp_path / "part.ckpt"
    fit(tmp_path, make_sms(micro)).save_checkpoint(part)
    with pytest.raises(UserError, match="belongs to portrait_3_seed1, the data has portrait_4"):
        fit(tmp_path, make_sms(micro, iterations=3), pictures("scene:portrait/4"), part)
    with pytest.raises(UserError, match="was trained on base .*use the base of the checkpoint"):
        fit(tmp_path, make_sms(micro, iterations=3, base=micro.other), None, part)
    with pytest.raises(UserError, match="another architecture"):
        fit(tmp_path, make_sms(micro, iterations=3, rank=3), None, part)
    with pytest.raises(UserError, match="another architecture"):
        fit(tmp_path, make_sms(micro, iterations=3), pictures(resolution=40), part)


def test_a_checkpoint_does_not_touch_what_predict_makes(micro: Micro, tmp_path: Path) -> None:
    part, other = tmp_path / "part.ckpt", pictures("scene:portrait/4")
    fit(tmp_path, make_sms(micro)).save_checkpoint(part)
    run = quiet_trainer(tmp_path, 1)
    (batch,) = run.predict(make_sms(micro), datamodule=other, ckpt_path=part, weights_only=True)  # type: ignore[misc]
    assert torch.equal(batch["image"][0], predict(tmp_path, make_sms(micro), other)["portrait_4"])


def test_fit_refuses_pictures_of_two_sizes(micro: Micro, tmp_path: Path) -> None:
    files = [write_picture(tmp_path / f"{h}.png", h, 40) for h in (40, 48)]
    with pytest.raises(UserError, match=r"these have 2: \[\(40, 40\), \(48, 40\)\]"):
        fit(tmp_path, make_sms(micro), pictures(files, None))
