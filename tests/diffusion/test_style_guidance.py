"""Style guidance against the reference, and against the pipelines of diffusers wherever both must agree."""

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

from lightning_styles.diffusion.style_guidance import (
    StyleGuidancePipeline,
    StyleGuidanceXLPipeline,
    style_guidance,
)
from lightning_styles.diffusion.styles import Style
from lightning_styles.errors import UserError
from lightning_styles.models.adapters import adapter_parameters, add_lora, routed
from lightning_styles.pretrained.stable_diffusion import StableDiffusion, Text, load_stable_diffusion
from lightning_styles.pretrained.style_lora import load_style_lora
from tests.golden.fill import fill_, load_case, relative_error, values
from tests.golden.paircustom_world import ATTENTION, World
from tests.golden.sms_world import SCHEDULER
from tests.micro import Micro

pytest_plugins = ["tests.micro"]

CASE, EXPECTED = load_case("paircustom/c_guidance")
NOISE = {key: value for key, value in SCHEDULER.items() if key != "set_alpha_to_one"}
SCHEDULERS: dict[str, Any] = {
    "euler": lambda: EulerDiscreteScheduler(**NOISE, timestep_spacing="leading"),
    "ddim": lambda: DDIMScheduler(**SCHEDULER, clip_sample=False),
    "pndm": lambda: PNDMScheduler(**SCHEDULER, skip_prk_steps=True),
    "heun": lambda: HeunDiscreteScheduler(**NOISE),
    "ancestral": lambda: EulerAncestralDiscreteScheduler(**NOISE),
    "dpm": lambda: DPMSolverMultistepScheduler(**NOISE),
}
WORDS = ["a photo of a woman", "a drawing of hair"]
ART, INK = Style("art", "in cartoon style", 3.0), Style("ink", "as a long drawing", 2.0)


def seeds(count: int = 2) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(count)]


SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_inference_steps": 4}


class GoldenPipeline(StyleGuidanceXLPipeline):
    """The pipeline on the network and the embeddings of the golden runs."""

    def _encode(self, prompts: list[str], negative: Any, count: int, unconditional: bool) -> tuple[Text | None, Text]:
        return self.world.text("neg") if unconditional else None, self.world.text(prompts[0].split()[-1])


@pytest.mark.parametrize("run", CASE["runs"], ids=lambda run: run["tag"])
def test_every_step_follows_the_reference(run: dict[str, Any]) -> None:
    world = World(CASE["config"])
    world.add_style("style_weights", 4)
    world.add_style("style_b", 5)
    parts = dict.fromkeys(("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipeline = GoldenPipeline(**parts, unet=world.unet, scheduler=SCHEDULERS[run["scheduler"]](), add_watermarker=False)
    pipeline.world = world
    pipeline.set_progress_bar_config(disable=True)
    steps: list[tuple[float, Tensor]] = []

    def on_step(_: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        steps.append((t.item(), tensors["latents"]))
        return tensors

    names = zip(run["adapters"], run["lambda_style"], strict=True)
    final = pipeline(
        "base",
        styles=[Style(name, f"style{i}", strength) for i, (name, strength) in enumerate(names)],
        guidance_scale=run["lambda_cfg"],
        num_inference_steps=CASE["config"]["steps"],
        style_start=run["start_LoRA_step"],
        latents=world.latents("init_latents"),
        output_type="latent",
        callback_on_step_end=on_step,
    ).images
    assert [t for t, _ in steps] == run["timesteps"]
    for (_, found), expected in zip(steps, EXPECTED[f"{run['tag']}.trace"], strict=True):
        assert relative_error(found, expected) < 1e-5
    assert relative_error(final, EXPECTED[f"{run['tag']}.final"]) < 1e-5


def test_the_formula() -> None:
    empty, prompt, one, two = (values(name, (2, 4, 8, 8), 0) for name in "abcd")
    assert torch.equal(style_guidance(empty, prompt, [], 5.0, []), empty + 5 * (prompt - empty))
    found = style_guidance(empty, prompt, [one, two], 5.0, [2.0, 3.0])
    torch.testing.assert_close(found, -4 * empty + 2 * one + 3 * two)  # 2 + 3 = 5: the prompt's own term cancels
    with pytest.raises(UserError, match="1 strengths for 2 styles"):
        style_guidance(empty, prompt, [one, two], 5.0, [2.0])


# ---- on a base with random weights


@pytest.fixture(params=["sd", "xl"])
def base(request: pytest.FixtureRequest, micro: Micro) -> StableDiffusion:
    base = load_stable_diffusion(micro.base_xl if request.param == "xl" else micro.base)
    add_styles(base)
    return base


def add_styles(base: StableDiffusion) -> None:
    for seed, name in enumerate(("art", "ink")):
        add_lora(base.unet, name, 4, 4, ATTENTION)
        fill_(dict(adapter_parameters(base.unet, name)), seed, scale=0.3)


def guided(base: StableDiffusion, scheduler: str = "ddim") -> Any:
    pipeline_class = StyleGuidanceXLPipeline if base.is_xl else StyleGuidancePipeline
    return base.assemble(pipeline_class, scheduler=SCHEDULERS[scheduler]())


def paint(pipeline: Any, prompt: Any = WORDS, **settings: Any) -> Tensor:
    """Latents, or what output_type says."""
    defaults = {"output_type": "latent", "generator": seeds(1 if isinstance(prompt, str) else len(prompt))}
    return pipeline(prompt, **(SMALL | defaults | settings)).images


def differ(a: Tensor, b: Tensor) -> bool:
    return relative_error(a, b) > 1e-2


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_without_strength_it_is_the_pipeline_of_diffusers(base: StableDiffusion, scheduler: str) -> None:
    plain = base.pipeline(scheduler=SCHEDULERS[scheduler]())
    with routed(base.unet, None):
        expected = paint(plain, guidance_scale=5.0, output_type="pt")
    for styles in ([], [replace(ART, strength=0.0)]):
        found = paint(guided(base, scheduler), styles=styles, output_type="pt")
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.shape == (2, 3, 32, 48)


def test_further_arguments_mean_what_they_mean_in_diffusers(base: StableDiffusion) -> None:
    settings: dict[str, Any] = {
        "negative_prompt": ["red hair", "style"],
        "num_images_per_prompt": 2,
        "generator": seeds(4),
        "guidance_scale": 3.0,
    }
    if base.is_xl:
        settings |= {"original_size": (100, 90), "target_size": (64, 32), "crops_coords_top_left": (5, 7)}
    with routed(base.unet, None):
        expected = paint(base.pipeline(scheduler=SCHEDULERS["ddim"]()), **settings)
    found = paint(guided(base), **(settings | {"generator": seeds(4)}))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert differ(found, paint(guided(base), **(settings | {"generator": seeds(4), "negative_prompt": None})))
    pictures = paint(guided(base), output_type="pil", height=None, width=None)
    assert [picture.size for picture in pictures] == [(64, 64)] * 2


def test_without_negative_prompt_sdxl_sees_zeros(micro: Micro) -> None:
    pipeline = guided(load_stable_diffusion(micro.base_xl))
    (_, empty), _ = pipeline._groups(WORDS, None, [], "guidance", 5.0, 1)[0]
    assert not empty.states.any()
    assert not empty.pooled.any()
    (_, empty), _ = pipeline._groups(WORDS, ["", ""], [], "guidance", 5.0, 1)[0]
    assert empty.states.any()
    assert empty.pooled.any()


@pytest.mark.parametrize("mode", ["guidance", "scale"])
def test_a_batch_equals_single_pictures(base: StableDiffusion, mode: str) -> None:
    pipeline = guided(base)
    styles = [ART, INK] if mode == "guidance" else [replace(one, strength=0.4) for one in (ART, INK)]
    settings = {"styles": styles, "mode": mode}
    both = paint(pipeline, **settings)
    single = [paint(pipeline, p, generator=[g], **settings) for p, g in zip(WORDS, seeds(), strict=True)]
    torch.testing.assert_close(both, torch.cat(single), rtol=1e-3, atol=1e-4)
    assert differ(both, paint(pipeline))


def test_two_halves_are_one_style(base: StableDiffusion) -> None:
    pipeline, half = guided(base), replace(ART, strength=ART.strength / 2)
    whole = paint(pipeline, styles=[ART])
    torch.testing.assert_close(paint(pipeline, styles=[half, half]), whole, rtol=1e-3, atol=1e-4)
    assert differ(paint(pipeline, styles=[half]), whole)


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_the_gate_opens_at_its_timestep(base: StableDiffusion, scheduler: str) -> None:
    def trace(**settings: Any) -> list[Tensor]:
        found = []
        paint(
            guided(base, scheduler),
            callback_on_step_end=lambda _, i, t, tensors: found.append(tensors["latents"]) or {},
            **settings,
        )
        return found

    plain, late = trace(), trace(styles=[ART], style_start=501)  # t = 751, 501, 251, 1
    assert torch.equal(late[0], plain[0])
    assert differ(late[1], plain[1])
    always = trace(styles=[ART], style_start=None)
    assert differ(always[0], plain[0])
    assert all(torch.equal(a, b) for a, b in zip(always, trace(styles=[ART], style_start=800), strict=True))
    assert torch.equal(trace(styles=[ART], style_start=500)[1], plain[1])


def test_at_the_strength_of_the_guidance_the_prompt_cancels(base: StableDiffusion) -> None:
    pipeline = guided(base)
    settings = {"guidance_scale": 3.0, "style_start": None}
    whole = paint(pipeline, ["a photo of hair"], styles=[replace(ART, suffix="in cartoon style")], **settings)
    other = paint(pipeline, ["a photo"], styles=[replace(ART, suffix="of hair in cartoon style")], **settings)
    torch.testing.assert_close(whole, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("styles", [[replace(ART, strength=0.6)], [replace(ART, strength=0.6), INK]])
def test_mode_scale_is_the_adapters_of_diffusers(base: StableDiffusion, styles: list[Style]) -> None:
    found = paint(guided(base), styles=styles, mode="scale", style_start=None)
    base.unet.set_adapters([style.adapter for style in styles], [style.strength for style in styles])
    words = [" ".join([word, *(style.suffix for style in styles)]) for word in WORDS]
    expected = paint(base.pipeline(scheduler=SCHEDULERS["ddim"]()), words, guidance_scale=5.0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def told(pipeline: Any, words: str) -> list[dict[str, Any]]:
    """What the UNet is told without a prompt and with `words`, as the pipelines of diffusers tell it."""
    if not isinstance(pipeline, StableDiffusionXLPipeline):
        prompt, empty = pipeline.encode_prompt(words, "cpu", 1, True)
        return [{"encoder_hidden_states": states} for states in (empty, prompt)]
    prompt, empty, pooled, pooled_empty = pipeline.encode_prompt(words)
    sizes = torch.tensor([[32.0, 48, 0, 0, 32, 48]])
    return [
        {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": one, "time_ids": sizes}}
        for states, one in ((empty, pooled_empty), (prompt, pooled))
    ]


@torch.no_grad()
def scaled(base: StableDiffusion, styles: list[Style], start: int | None) -> Tensor:
    """Guidance 5 on the prompt alone, then equation 3, row by row with the adapters of diffusers; t = 801, 601, ..."""
    pipeline = base.pipeline(scheduler=SCHEDULERS["ddim"]())
    pipeline.scheduler.set_timesteps(5)
    base.unet.set_adapters([style.adapter for style in styles], [style.strength for style in styles])
    pictures = []
    for word, generator in zip(WORDS, seeds(), strict=True):
        x = torch.randn(1, 4, 8, 12, generator=generator)
        for t in pipeline.scheduler.timesteps:
            styled = start is None or t <= start
            (base.unet.enable_adapters if styled else base.unet.disable_adapters)()
            words = " ".join([word, *(style.suffix for style in styles)]) if styled else word
            empty, prompt = (base.unet(x, t, **one).sample for one in told(pipeline, words))
            x = pipeline.scheduler.step(empty + 5 * (prompt - empty), t, x).prev_sample
        pictures.append(x)
    return torch.cat(pictures)


def test_mode_scale_is_equation_3_behind_steps_of_the_base_alone(base: StableDiffusion) -> None:
    styles = [replace(ART, strength=0.6), INK]
    settings: dict[str, Any] = {"styles": styles, "mode": "scale", "num_inference_steps": 5}
    found = {start: paint(guided(base), style_start=start, **settings) for start in (None, 800, 400, 0)}
    assert all(differ(a, b) for a, b in combinations(found.values(), 2))
    assert torch.equal(found[0], paint(guided(base), num_inference_steps=5))
    for start, picture in found.items():
        assert relative_error(picture, scaled(base, styles, start)) < 1e-3


def test_one_batch_holds_what_a_step_needs_and_no_more(base: StableDiffusion) -> None:
    rows: list[int] = []
    base.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({"styles": [ART, INK], "style_start": 501}, [4, 8, 8, 8]),
        ({"styles": [ART, replace(INK, strength=0.0)], "style_start": None}, [6] * 4),
        ({"styles": [ART], "guidance_scale": 1.0, "style_start": None}, [4] * 4),
        ({"styles": [ART, INK], "mode": "scale"}, [4] * 4),
        ({}, [4] * 4),
    ]
    for settings, expected in cases:
        rows.clear()
        paint(guided(base), **settings)
        assert rows == expected


def test_a_callback_can_change_latents_and_stop(base: StableDiffusion) -> None:
    def stop(pipeline: Any, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        pipeline._interrupt = step == 1
        return {"latents": tensors["latents"] * 0 + step}

    assert torch.equal(paint(guided(base), callback_on_step_end=stop), torch.ones(2, 4, 8, 12))


# ---- LoRA files


def test_files_read_by_diffusers_and_by_this_package_agree(base: StableDiffusion, micro: Micro) -> None:
    pipeline, file = guided(base), micro.lora_xl if base.is_xl else micro.lora
    pipeline.load_lora_weights(file, adapter_name="theirs")
    load_style_lora(base.unet, file, name="ours", strength=1.0)
    found = [paint(pipeline, styles=[Style(name, "in cartoon style")]) for name in ("theirs", "ours")]
    assert torch.equal(*found)
    assert differ(found[0], paint(pipeline))


def test_a_lora_of_the_text_encoder_reaches_the_styled_prompt_alone(micro: Micro) -> None:
    base = load_stable_diffusion(micro.base)
    plain = paint(guided(base))
    load_style_lora(base.unet, micro.lora_with_text, name="unet", strength=1.0)
    load_style_lora(base.unet, micro.lora_with_text, text_encoder=base.text_encoder, name="both", strength=1.0)
    styled = {name: paint(guided(base), styles=[Style(name, "in cartoon style")]) for name in ("unet", "both")}
    torch.testing.assert_close(paint(guided(base)), plain)
    assert differ(styled["unet"], styled["both"])


# ---- ControlNet


@pytest.fixture
def controlnet(base: StableDiffusion, micro: Micro) -> ControlNetModel:
    """One whose last layers are zero, on the weights of the same base without adapters."""
    return new_controlnet(micro.base_xl if base.is_xl else micro.base)


def new_controlnet(name: str) -> ControlNetModel:
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        unet = load_stable_diffusion(name).unet
        return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 32)).eval()


def shake(controlnet: ControlNetModel) -> None:
    for name, module in controlnet.named_modules():
        if "controlnet" in name and isinstance(module, torch.nn.Conv2d):
            torch.nn.init.normal_(module.weight, std=0.1, generator=seeds()[1])


def test_a_controlnet_is_used_as_in_diffusers(base: StableDiffusion, controlnet: ControlNetModel) -> None:
    settings: dict[str, Any] = {
        "control_image": torch.rand(2, 3, 32, 48, generator=seeds()[0]),
        "controlnet": controlnet,
    }
    torch.testing.assert_close(paint(guided(base), **settings), paint(guided(base)))  # its last layers are zero
    shake(controlnet)
    found = paint(guided(base), controlnet_scale=0.7, height=None, width=None, **settings)
    control_class = StableDiffusionXLControlNetPipeline if base.is_xl else StableDiffusionControlNetPipeline
    plain = base.assemble(control_class, scheduler=SCHEDULERS["ddim"](), controlnet=controlnet)
    with routed(base.unet, None):
        expected = paint(plain, image=settings["control_image"], controlnet_conditioning_scale=0.7, guidance_scale=5.0)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert differ(found, paint(guided(base)))


def test_residuals_belong_to_each_prompt(base: StableDiffusion, controlnet: ControlNetModel) -> None:
    shake(controlnet)
    image = torch.rand(1, 3, 32, 48, generator=seeds()[0])
    settings: dict[str, Any] = {"styles": [ART, INK], "controlnet": controlnet, "control_image": image}
    both = paint(guided(base), style_start=None, **settings)
    single = [paint(guided(base), p, generator=[g], style_start=None, **settings) for p, g in zip(WORDS, seeds())]  # noqa: B905
    torch.testing.assert_close(both, torch.cat(single), rtol=1e-3, atol=1e-4)
    rows: list[Tensor] = []
    controlnet.register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(kwargs["encoder_hidden_states"]), with_kwargs=True
    )
    paint(guided(base), "a photo", style_start=None, **settings)
    assert all(len(text) == 4 for text in rows)
    assert len({text.tobytes() for text in rows[0].numpy()}) == 4


def test_half_precision_stays_close(base: StableDiffusion, controlnet: ControlNetModel) -> None:
    shake(controlnet)
    image = torch.rand(1, 3, 32, 48, generator=seeds()[0])
    settings: dict[str, Any] = {
        "styles": [replace(ART, strength=0.5)], "controlnet": controlnet, "control_image": image, "guidance_scale": 1.5,
        "latents": values("noise", (2, 4, 8, 12), 0), "output_type": "pt",
    }  # fmt: skip
    expected = paint(guided(base), **settings)
    found = paint(guided(base).to(torch.bfloat16), **settings)
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().mean() < 0.02


# ---- what is refused, and the sheet


def test_bad_requests_say_what_is_wrong(base: StableDiffusion, controlnet: ControlNetModel, micro: Micro) -> None:
    pipeline = guided(base)
    other = new_controlnet(micro.base if base.is_xl else micro.base_xl)
    image = torch.rand(1, 3, 32, 48)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("no adapter 'oil', it has art, ink", {"styles": [Style("oil", "in oil")]}),
        ("prompt is empty", {"prompt": ["a photo", " "]}),
        ("prompt is empty", {"prompt": []}),
        ("1 negative prompts for 2", {"negative_prompt": ["x"]}),
        ("mode is 'half'", {"mode": "half"}),
        ("needs a control_image", {"controlnet": controlnet}),
        ("needs a control_image", {"control_image": image}),
        ("cross_attention_dim", {"controlnet": other, "control_image": image}),
        ("3 control pictures for 2", {"controlnet": controlnet, "control_image": image.repeat(3, 1, 1, 1)}),
        ("3 latents for 2", {"latents": torch.zeros(3, 4, 8, 12)}),
        ("num_inference_steps", {"num_inference_steps": 0}),
        ("multiples of 4", {"height": 33}),
    ]
    if not base.is_xl:
        cases.append(("for SDXL", {"original_size": (32, 32)}))
    for message, settings in cases:
        with pytest.raises(UserError, match=message):
            paint(pipeline, **settings)
