"""PairCustomization and the other LoRA methods from data to pictures and files."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from datamodules import Pairs
from datamodules.filters import apply_filter
from lightning_styles.errors import UserError
from lightning_styles.losses.denoising import denoising_loss
from lightning_styles.methods.concept_slider import ConceptSlider
from lightning_styles.methods.lora_method import STYLE, LoRAMethod
from lightning_styles.methods.pair_customization import BOTH, CONTENT, PairCustomization
from lightning_styles.methods.style_guidance import StyleGuidance
from lightning_styles.methods.style_lora import StyleLoRA
from lightning_styles.metrics.perceptual import load_distance
from lightning_styles.models.adapters import adapter_parameters, lora_layers, routed
from lightning_styles.pretrained.stable_diffusion import load_stable_diffusion
from lightning_styles.pretrained.style_lora import load_style_lora
from tests.golden.fill import fill_
from tests.micro import Micro, quiet_trainer
from tests.sheets import cells

pytest_plugins = ["tests.micro"]
DRAWING: dict[str, Any] = {"iterations": 3, "style_phrase": "cartoon style", "size": 32, "steps": 3, "guidance": 2.0}
PAIR: dict[str, Any] = DRAWING | {"style_from": 1, "content_rank": 4, "style_rank": 4, "lr": 0.05}


def pairs(**changes: Any) -> Pairs:
    settings = {
        "content": "scene:portrait/0",
        "filter": "posterize",
        "prompt": "a photo of {caption}",
        "resolution": 32,
    }
    return Pairs(**(settings | {"prompts": ["a photo of a woman", "a photo of a man"]} | changes))


def fit(method: LoRAMethod, folder: Path, steps: int = 3, **changes: Any) -> L.Trainer:
    run = quiet_trainer(folder, steps)
    run.fit(method, datamodule=pairs(**changes))
    return run


@pytest.fixture(scope="module", params=["base_xl", "base"])
def trained(request: pytest.FixtureRequest, micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The method after three iterations, and the base it was trained on."""
    base = getattr(micro, request.param)
    method = PairCustomization(base=base, **PAIR)
    fit(method, tmp_path_factory.mktemp("pair"))
    return method, base


def question(base: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Latents, timesteps and what the UNet of this base is told, to compare UNets on."""
    generator = torch.Generator().manual_seed(3)
    width = base.unet.config.cross_attention_dim
    told: dict[str, Any] = {"encoder_hidden_states": torch.randn(2, 12, width, generator=generator)}
    if base.is_xl:
        added = {"text_embeds": torch.randn(2, 8, generator=generator), "time_ids": torch.full((2, 6), 32.0)}
        told["added_cond_kwargs"] = added
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([101, 701]), told


def test_both_loras_learn_and_nothing_else(trained: Any) -> None:
    method, path = trained
    untouched = load_stable_diffusion(path)
    weights = {key.replace(".base_layer", ""): p for key, p in method.unet.named_parameters() if ".lora_" not in key}
    assert all(torch.equal(weights[key], p) for key, p in untouched.unet.named_parameters())
    for name in (CONTENT, STYLE):
        ups = [p for key, p in adapter_parameters(method.unet, name).items() if "lora_B" in key]
        assert all(p.abs().max() > 1e-3 for p in ups)
    assert all(".lora_B." in key for key in method.state_dict())


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "official", "content_kohya", "content_diffusers"])
def test_a_file_does_in_a_fresh_pipeline_and_in_ours_what_it_does_here(
    trained: Any, tmp_path: Path, layout: str
) -> None:
    method, path = trained
    name = CONTENT if layout.startswith("content") else STYLE
    file = tmp_path / method.formats[layout]
    method.export(file, layout)
    fresh, again = load_stable_diffusion(path), load_stable_diffusion(path)
    z, t, told = question(fresh)
    with torch.no_grad():
        with routed(method.unet, name):
            ours = method.unet(z, t, **told).sample
        base = fresh.unet(z, t, **told).sample
        pipeline: Any = fresh.pipeline()
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        theirs = pipeline.unet(z, t, **told).sample
        load_style_lora(again.unet, file, strength=1.0)
        with routed(again.unet, STYLE):
            loaded = again.unet(z, t, **told).sample
    effect = (ours - base).abs().max()
    assert effect > 0.01
    assert (theirs - ours).abs().max() < 1e-4 * effect
    assert (loaded - ours).abs().max() < 1e-4 * effect


def test_a_file_says_where_it_comes_from(trained: Any, tmp_path: Path) -> None:
    from safetensors import safe_open

    method, path = trained
    method.export(tmp_path / "style.safetensors", "kohya")
    with safe_open(tmp_path / "style.safetensors", framework="pt") as file:
        found = file.metadata()
    assert found["ss_network_dim"] == "4"
    assert found["lightning_styles.style_phrase"] == "cartoon style"
    assert load_stable_diffusion(path).sha256[:12] in found["lightning_styles.base"]


def test_posteriors_are_computed_once(micro: Micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    compute = PairCustomization.posterior
    monkeypatch.setattr(PairCustomization, "posterior", lambda self, x: (calls.append(len(x)), compute(self, x))[1])
    method = PairCustomization(base=micro.base_xl, **PAIR)
    fit(method, tmp_path)
    assert calls == [1, 1]  # photo and twin, in three iterations


def test_one_joint_step_is_the_gradient_of_both_losses(micro: Micro, tmp_path: Path) -> None:
    """The style's gradient is the same in both ways, as long as the content LoRA has not moved in between."""
    found = {}
    for update in ("sequential", "joint"):
        method = PairCustomization(base=micro.base_xl, **(PAIR | {"updates": update, "style_from": 0, "lr": 0.0}))
        seen: list[dict[str, Tensor]] = []

        class Seen(L.Callback):
            def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
                named = pl_module.unet.named_parameters()
                seen.append({k: p.grad.clone() for k, p in named if p.grad is not None})  # noqa: B023

        run = quiet_trainer(tmp_path, 1, callbacks=[Seen()])
        run.fit(method, datamodule=pairs())
        found[update] = {k: g for step in seen for k, g in step.items()}
        assert [sorted({k.split(".")[-2] for k in step}) for step in seen] == (
            [["content"], ["style"]] if update == "sequential" else [["content", "style"]]
        )
    assert found["joint"].keys() == found["sequential"].keys()
    for key, gradient in found["joint"].items():
        torch.testing.assert_close(gradient, found["sequential"][key], rtol=1e-5, atol=1e-7)


def test_products_with_shared_matrices_are_the_same(trained: Any) -> None:
    """Whether the layers hold one matrix A, whose products are shared, or copies of it changes nothing."""
    method, path = trained
    other = load_stable_diffusion(path)
    copy = PairCustomization(base=path, **PAIR)
    copy.configure_model()
    copy.load_state_dict(method.state_dict(), strict=False)
    for _, layer in lora_layers(copy.unet):
        for name in (CONTENT, STYLE):
            layer.lora_A[name].weight = torch.nn.Parameter(layer.lora_A[name].weight.clone(), requires_grad=False)
    z, t, told = question(other)
    route = [None, ((CONTENT, 1.0), (STYLE, 0.5))]
    with torch.no_grad(), routed(method.unet, route), routed(copy.unet, route):
        found, expected = method.unet(z, t, **told).sample, copy.unet(z, t, **told).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    with torch.no_grad(), routed(method.unet, None):
        base = method.unet(z, t, **told).sample
    torch.testing.assert_close(found[0], base[0], rtol=0, atol=1e-5)
    assert (found[1] - base[1]).abs().max() > 1e-3


@pytest.mark.slow
def test_a_compiled_unet_is_one_graph_with_the_same_gradients(trained: Any) -> None:
    method, path = trained
    z, t, told = question(load_stable_diffusion(path))
    found = []
    for unet in (method.unet, torch.compile(method.unet, backend="eager", fullgraph=True)):
        method.zero_grad()
        with routed(method.unet, BOTH, detached=[CONTENT]):
            unet(z, t, **told).sample.square().mean().backward()
        assert all(p.grad is None for p in method.trained[CONTENT])
        found.append([p.grad.clone() for p in method.trained[STYLE]])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-7)


def test_min_snr_weighs_clean_timesteps_less() -> None:
    eps, eps_hat = torch.zeros(2, 3), torch.tensor([[1.0, 1, 1], [2, 2, 2]])
    alpha_bar = torch.tensor([0.9, 0.5])  # SNR 9 and 1
    assert denoising_loss(eps_hat, eps, alpha_bar).item() == pytest.approx(2.5)
    assert denoising_loss(eps_hat, eps, alpha_bar, snr_gamma=5.0).item() == pytest.approx((5 / 9 + 4) / 2)


@pytest.mark.parametrize(
    ("method_class", "own"),
    [(PairCustomization, PAIR), (ConceptSlider, DRAWING), (StyleLoRA, DRAWING | {"rank": 2, "mode": "scale"})],
)
def test_prompts_are_drawn_at_every_strength(
    micro: Micro, tmp_path: Path, method_class: type[LoRAMethod], own: dict[str, Any]
) -> None:
    metrics = {"perceptual": "tiny/perceptual"}
    method = method_class(base=micro.base_xl, **(own | {"strengths": [0.0, 2.0], "metrics": metrics}))
    run = fit(method, tmp_path)
    ups = {key: p for key, p in adapter_parameters(method.unet, STYLE).items() if "lora_B" in key}
    fill_(ups, 3, scale=10.0)  # a style that shows in the measures
    (batch, *others) = run.predict(method, datamodule=pairs(eval_batch_size=2))  # type: ignore[misc]
    assert not others
    base, zero, two, twin = torch.stack([cells(image, 1, 4, 32)[0] for image in batch["image"]], 1)  # type: ignore[index]
    assert torch.equal(base, zero)
    assert (base - two).abs().amax((1, 2, 3)).min() > 1e-4
    assert torch.equal(twin, apply_filter(base, "posterize"))
    (measured,) = run.test(method, datamodule=pairs(eval_batch_size=2), verbose=False)
    distance = load_distance(None, "tiny/perceptual")
    assert measured["test/content@0"] == pytest.approx(0, abs=1e-7)
    with torch.no_grad():
        assert measured["test/content@2"] == pytest.approx(distance(two, base).mean().item(), rel=2e-4)
        for strength, result in ((0, zero), (2, two)):
            assert measured[f"test/twin@{strength}"] == pytest.approx(distance(result, twin).mean().item(), rel=2e-4)
    assert abs(measured["test/twin@2"] / measured["test/twin@0"] - 1) > 1e-3


def test_sets_of_prompts_are_measured_apart(micro: Micro, tmp_path: Path) -> None:
    metrics = {"perceptual": "tiny/perceptual"}
    method = PairCustomization(base=micro.base_xl, **(PAIR | {"strength": 2.0, "metrics": metrics}))
    sets = {"same": ["a photo of a man"], "other": ["a photo of a woman", "a drawing"]}
    run = fit(method, tmp_path)
    (both,) = run.test(method, datamodule=pairs(prompts=sets, eval_batch_size=3), verbose=False)
    (alone,) = run.test(method, datamodule=pairs(prompts={"same": sets["same"]}), verbose=False)
    assert (both["test/n_same"], both["test/n_other"]) == (1, 2)
    assert both["test/twin_same"] == pytest.approx(alone["test/twin_same"], rel=1e-3)
    assert both["test/twin_other"] != both["test/twin_same"]


def test_photos_are_inverted_and_drawn_again(micro: Micro, tmp_path: Path) -> None:
    method = PairCustomization(base=micro.base_xl, **(PAIR | {"strengths": [0.0, 2.0]}))
    photos = {"prompts": None, "photos": "scene:portrait/7", "photo_caption": "a photo of a man"}
    run = fit(method, tmp_path, **photos)
    (batch,) = run.predict(method, datamodule=pairs(**photos))  # type: ignore[misc]
    photo, plain, styled = cells(batch["image"][0], 1, 3, 32)[0]  # type: ignore[index]
    assert (plain - styled).abs().max() > 1e-3
    drawn = next(iter(pairs(**photos).new.reader.read([0])))["image"]  # type: ignore[union-attr]
    torch.testing.assert_close(photo, drawn, rtol=0, atol=1e-6)


def test_blended_loras_are_the_sum_of_their_directions(micro: Micro, trained: Any, tmp_path: Path) -> None:
    """One LoRA twice at half its strength is that LoRA; the trainer's own pictures are those of its file."""
    method, path = trained
    method.export(tmp_path / "style.safetensors", "kohya")
    lora = str(tmp_path / "style.safetensors")
    drawing = {key: DRAWING[key] for key in ("size", "steps", "guidance")} | {"base": path, "strength": 2.0}
    drawn = {}
    for name, shares in (("one", [1.0]), ("two", [0.5, 0.5])):
        styles = [{"lora": lora, "phrase": "cartoon style", "share": share} for share in shares]
        other = StyleGuidance(styles=styles, **drawing)  # type: ignore[arg-type]
        other.configure_model()
        drawn[name] = other.draw(["a photo of a man"], ["x"], [0.0, 2.0])
    own = method.draw(["a photo of a man"], ["x"], [0.0, 2.0])
    for found in drawn.values():
        for ours, expected in zip(found, own, strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)
    assert (own[0] - own[1]).abs().max() > 1e-3


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style_phrase": " "}, "style_phrase is empty"),
        ({"style_from": 3}, "style_from is 3, but the run has 3 iterations"),
        ({"content_rank": 0}, "content_rank is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(micro: Micro, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PairCustomization(base=micro.base_xl, **(PAIR | changes))


def test_ranks_that_do_not_fit_are_refused(micro: Micro) -> None:
    method = PairCustomization(base=micro.base_xl, **(PAIR | {"content_rank": 20, "style_rank": 5}))
    with pytest.raises(UserError, match="the ranks content 20 [+] style 5 do not fit into .*, which has 24 inputs"):
        method.configure_model()


def test_nothing_to_draw_is_said(micro: Micro, tmp_path: Path) -> None:
    method = PairCustomization(base=micro.base_xl, **PAIR)
    with pytest.raises(UserError, match="nothing new to draw: set data.prompts or data.photos"):
        quiet_trainer(tmp_path, 1).predict(method, datamodule=pairs(prompts=None))


def test_a_lora_for_another_base_is_refused(micro: Micro, trained: Any, tmp_path: Path) -> None:
    method, path = trained
    method.export(tmp_path / "style.safetensors", "kohya")
    other = load_stable_diffusion(micro.base if path == micro.base_xl else micro.base_xl)
    with pytest.raises(UserError, match="is a LoRA for"):
        load_style_lora(other.unet, tmp_path / "style.safetensors")
