"""Inversion against the reference, its terms one by one, and the way back to the picture."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.scenes import render, sample_scenes
from lightning_styles.diffusion.guidance_rows import Rows
from lightning_styles.diffusion.inversion import (
    LOSSY,
    ReNoise,
    _warn_of_loss,
    correlation,
    ddim_inversion,
    draw_shifts,
    invert,
    patch_divergence,
    patch_statistics,
    regularized,
)
from lightning_styles.diffusion.latents import to_latents, to_pixels
from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.errors import UserError
from lightning_styles.pretrained.stable_diffusion import load_stable_diffusion
from tests.golden.fill import load_case, relative_error, values
from tests.golden.paircustom_world import World
from tests.golden.sms_world import SCHEDULER
from tests.micro import Micro

pytest_plugins = ["tests.micro"]

CASE, EXPECTED = load_case("paircustom/e_inversion")
WORLD = World(CASE["config"])
SCHEDULE = NoiseSchedule.from_config(SCHEDULER)
STEPS = CASE["config"]["steps"]
STEPS_THERE = 20  # and back
TRUE_NOISE = values("true", (1, 4, 16, 16), 3)


def network(x: Tensor, t: Tensor) -> Tensor:
    return Rows(WORLD.unet, [(None, WORLD.text("base"))] * len(x), WORLD.time_ids).evaluate(x, t)


def trace(renoise: ReNoise | None, tag: str = "renoise") -> tuple[list[int], list[float]]:
    """Timesteps and the relative error after each of them."""
    times: list[int] = []
    found: list[Tensor] = []
    ddim_inversion(
        network, WORLD.latents("inv.z0"), SCHEDULE, STEPS, renoise, WORLD.latents("inv.noise"),
        on_step=lambda t, x: (times.append(t), found.append(x)),  # type: ignore[func-returns-value]
    )  # fmt: skip
    return times, [relative_error(a, b) for a, b in zip(found, EXPECTED[f"{tag}.trace"], strict=True)]


@pytest.mark.parametrize("run", CASE["runs"], ids=lambda run: run["tag"])
def test_both_inversions_follow_the_reference(run: dict) -> None:
    settings = CASE["renoise_config"]
    renoise = ReNoise(
        steps=run["num_renoise_steps"],
        first_below=settings["first_step_max_timestep"],
        first_steps=settings["max_num_renoise_steps_first_step"],
        first_average=tuple(settings["average_first_step_range"]),
        average=tuple(settings["average_step_range"]),
        kl=settings["lambda_kl"],
        correlation=settings["lambda_ac"],
        regularizations=run["reg_steps"],
        rolls=settings["num_ac_rolls"],
        shift=1,
    )
    times, errors = trace(renoise if run["num_renoise_steps"] else None, run["tag"])
    assert times == run["timesteps"]
    assert max(errors) < 1e-5


@pytest.mark.parametrize(
    "change", [{"kl": 0.0}, {"correlation": 0.0}, {"regularizations": 3}, {"steps": 2}, {"first_below": 500}]
)
def test_the_reference_would_show_another_setting(change: dict) -> None:
    assert max(trace(ReNoise(shift=1, **change))[1]) > 5e-3


def test_no_further_evaluation_is_ddim_inversion() -> None:
    assert max(trace(ReNoise(steps=0, regularizations=0), "ddim_inversion")[1]) < 1e-5


@pytest.mark.parametrize("loss", [patch_divergence, correlation])
def test_the_terms_sum_over_pictures(loss: Callable) -> None:
    a, b = (values(name, (1, 4, 32, 32), 2) for name in "ab")
    other = torch.cat([b, a]) if loss is patch_divergence else [1, 3, 2]
    single = [b, a] if loss is patch_divergence else [other, other]
    both = loss(torch.cat([a, b]), other)
    torch.testing.assert_close(both, loss(a, single[0]) + loss(b, single[1]))


def test_patch_divergence_knows_gaussians() -> None:
    like = values("like", (1, 4, 8, 8), 0)
    assert patch_divergence(like, like).abs() < 1e-4
    _, var = patch_statistics(like, 4)
    assert var.shape == (1, 4, 4)
    torch.testing.assert_close(var[0, 1, 3], like[0, 1, 4:, 4:].var())
    expected = (0.25 / var).sum()  # a shift of 0.5 adds its square over the variance
    torch.testing.assert_close(patch_divergence(like + 0.5, like), expected, rtol=1e-4, atol=1e-4)


def test_correlation_knows_stripes() -> None:
    stripes = torch.tensor([1.0, -1.0]).repeat(8).expand(1, 1, 16, 16)
    # Rows: mean(-1) at shift 1, columns: mean(1); the 2 x 2 averages are 0.
    assert correlation(stripes, [1, 1]).item() == pytest.approx(2.0)
    assert correlation(torch.ones(1, 3, 16, 16), [1, 1]).item() == pytest.approx(3 * 2 * 2)


def test_shifts_are_pinned_or_drawn_for_every_size() -> None:
    generator = torch.Generator().manual_seed(0)
    assert draw_shifts(64, 1, generator) == [1, 1, 1, 1]
    drawn = torch.tensor([draw_shifts(64, None, generator) for _ in range(300)])
    assert drawn.amin(0).tolist() == [1, 1, 1, 1]
    assert drawn.amax(0).tolist() == [31, 15, 7, 3]


def test_regularization_takes_a_correlated_prediction_towards_noise() -> None:
    flat = TRUE_NOISE + 0.5 * torch.nn.functional.avg_pool2d(TRUE_NOISE, 5, 1, 2)
    found = regularized(flat, TRUE_NOISE, ReNoise(shift=1), torch.Generator())
    assert correlation(found, [1, 1]) < 0.5 * correlation(flat, [1, 1])
    pictures = torch.cat([flat, TRUE_NOISE])
    both = regularized(pictures, torch.cat([TRUE_NOISE] * 2), ReNoise(shift=1), torch.Generator())
    torch.testing.assert_close(both[:1], found)


def returned(pipeline: Any, images: Tensor, words: list[str], renoise: ReNoise | None, **settings: Any) -> float:
    """Relative error of the latents after inversion and sampling."""
    x = invert(pipeline, images, words, steps=STEPS_THERE, renoise=renoise)
    sizes = {"height": images.shape[-2], "width": images.shape[-1], "num_inference_steps": STEPS_THERE, "latents": x}
    back = pipeline(words, output_type="latent", **(sizes | {"guidance_scale": 1.0} | settings)).images
    return relative_error(back, to_latents(pipeline.vae, images))


def test_sampling_from_inverted_latents_gives_a_picture_back() -> None:
    pipeline = make("tiny/stable-diffusion")
    images = render(sample_scenes(0, [1]), "photo", 64)
    fixed_point = ReNoise(steps=4, first_average=(9, 9), average=(9, 9))
    errors = [returned(pipeline, images, ["a photo of a woman"], one) for one in (None, ReNoise(), fixed_point)]
    assert errors[0] < 0.3
    assert errors[1] < errors[0] / 1.5
    assert errors[2] < errors[0] / 4


@pytest.mark.parametrize(
    ("steps", "renoise", "advice"),
    [(2, ReNoise(), "more steps."), (5, None, "more steps, or ReNoise."), (10, ReNoise(), None)],
)
def test_an_inversion_that_loses_the_picture_says_so_once(
    steps: int, renoise: ReNoise | None, advice: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    _warn_of_loss.cache_clear()
    pipeline, images = make("tiny/stable-diffusion"), render(sample_scenes(0, [1]), "photo", 64)
    for _ in range(2 if steps == 2 else 1):
        x = invert(pipeline, images, "a photo of a woman", steps=steps, renoise=renoise)
    expected = [f"{steps} steps of inversion lose some of the picture"] if advice else []
    assert [record.getMessage().split(":")[0] for record in caplog.records] == expected
    assert caplog.text.strip().endswith(f"take {advice}" if advice else "")
    back = pipeline("a photo of a woman", latents=x, num_inference_steps=steps, guidance_scale=1.0,
                    height=64, width=64, output_type="latent").images  # fmt: skip
    z = to_latents(pipeline.vae, images)
    assert ((back - z).norm() > LOSSY * z.norm()) == (advice is not None)


def test_sdxl_gives_pictures_back_with_their_prompt_alone(micro: Micro) -> None:
    pipeline = make(micro.base_xl)
    pipeline.unet.conv_out.weight *= 0.02  # random weights alone are no network that DDIM could invert
    images = to_pixels(pipeline.vae, values("z", (2, 4, 8, 12), 1))
    words = ["a photo of a woman", "a drawing"]
    fixed_point = ReNoise(steps=4, first_average=(9, 9))
    error = returned(pipeline, images, words, fixed_point)
    assert error < 0.01
    negative = returned(pipeline, images, words, fixed_point, guidance_scale=7.0, negative_prompt=words)
    assert negative == pytest.approx(error, abs=1e-3)
    assert returned(pipeline, images, words, fixed_point, guidance_scale=7.0) > 10 * error


def test_each_picture_is_inverted_by_itself(micro: Micro) -> None:
    pipeline = make(micro.base_xl)
    images = to_pixels(pipeline.vae, values("z", (2, 4, 8, 8), 1))
    settings = {"steps": 5, "renoise": ReNoise(shift=1, first_below=1000, kl=0.0)}
    both = invert(pipeline, images, "a photo", **settings)
    torch.testing.assert_close(both[:1], invert(pipeline, images[:1], "a photo", **settings), rtol=1e-3, atol=1e-4)


def test_other_samplers_are_refused(micro: Micro) -> None:
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    image = torch.zeros(1, 3, 32, 32)
    pipeline = make(micro.base)
    for scheduler in (EulerDiscreteScheduler(), DDIMScheduler(clip_sample=True)):
        pipeline.scheduler = scheduler
        with pytest.raises(UserError, match="DDIM"):
            invert(pipeline, image, "a photo")
    pipeline.scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    with pytest.raises(UserError, match="leading"):
        invert(pipeline, image, "a photo")


def test_a_regularization_that_diverges_is_told(micro: Micro) -> None:
    pipeline = make(micro.base)
    with pytest.raises(UserError, match="diverged"):
        invert(pipeline, torch.zeros(1, 3, 32, 32), "a photo", steps=5, renoise=ReNoise(correlation=1e4))


def make(name: str) -> Any:
    from diffusers import DDIMScheduler

    from lightning_styles.diffusion.style_guidance import StyleGuidancePipeline, StyleGuidanceXLPipeline

    base = load_stable_diffusion(name)
    scheduler = DDIMScheduler(**SCHEDULER, clip_sample=False)
    return base.assemble(StyleGuidanceXLPipeline if base.is_xl else StyleGuidancePipeline, scheduler=scheduler)
