"""Inversion of real pictures: DDIM backwards (arXiv 2010.02502, eq. 14), made more exact by ReNoise (arXiv 2403.14602).

Sampling from the inverted latents with DDIM, the same steps and the same prompt gives the picture back; with styles on
top (`style_guidance`, guidance_scale 1 or negative_prompt = prompt) it gives the picture in that style.

Notation: x_p the latents (B, 4, h, w) one step below t, p = t - T / steps; eps(x, t) the network.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.diffusion.latents import to_latents
from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.errors import UserError, at_least

Network = Callable[[Tensor, Tensor], Tensor]
# Of the latents' length. Portraits of the embedded world come back with 0.29, 0.26, 0.18, 0.10, 0.05 after 2, 5, 10,
# 20, 50 steps of DDIM alone and with 0.23, 0.12, 0.06, 0.04, 0.02 after as many with ReNoise.
LOSSY = 0.09
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReNoise:
    """Settings of ReNoise; the defaults are those of PairCustomization's real pictures (arXiv 2405.01536).

    Attributes:
        steps: further evaluations of eps(x_t, t), each at the x_t that the one before led to.
        first_below: t from which on "first" settings no longer hold.
        first_steps: at most so many further evaluations where t < first_below.
        first_average: evaluations [from, to) whose mean is taken where t < first_below.
        average: likewise at all other t; the defaults reach none of them.
        kl: rate of the steps towards the local statistics of a prediction for truly noised latents.
        correlation: rate of the steps towards white noise.
        regularizations: how many times both are done.
        rolls: steps of `correlation` in each.
        shift: by how many latents noise is rolled against itself; None draws it anew each time, for each size.
    """

    steps: int = 1
    first_below: int = 250
    first_steps: int = 5
    first_average: tuple[int, int] = (0, 5)
    average: tuple[int, int] = (8, 10)
    kl: float = 0.065
    correlation: float = 20.0
    regularizations: int = 4
    rolls: int = 5
    shift: int | None = None


def step_up(schedule: NoiseSchedule, x_p: Tensor, eps: Tensor, t: int, p: int) -> Tensor:
    """x_t = sqrt(a_t / a_p) x_p + (sqrt(1 - a_t) - sqrt(a_t (1 - a_p) / a_p)) eps, with a = alpha_bar."""
    a_t, a_p = (schedule.alpha_bar(torch.tensor(one, device=x_p.device)) for one in (t, p))
    return (a_t / a_p).sqrt() * x_p + ((1 - a_t).sqrt() - (a_t * (1 - a_p) / a_p).sqrt()) * eps


@torch.no_grad()
def ddim_inversion(
    network: Network,
    z: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    renoise: ReNoise | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """The latents (B, 4, h, w) from which DDIM with `steps` steps comes back to z.

    Args:
        network: eps(x (N, 4, h, w), t (0-dimensional)); N is B, or 2 B where ReNoise looks at its target too.
        z: clean scaled latents.
        schedule: of the base.
        steps: of DDIM.
        renoise: None is DDIM inversion alone.
        noise: of the target of ReNoise, shaped like z; drawn if None.
        generator: of the noise and the shifts, on any device; None is a CPU generator with seed 0.
        on_step: told t and x_t after each step.
    """
    generator = generator or torch.Generator().manual_seed(0)
    if renoise is not None and noise is None:
        noise = torch.randn(z.shape, generator=generator, device=generator.device).to(z)
    x = z
    for t, p in reversed(schedule.ddim_timesteps(steps)):
        if renoise is None:
            x = step_up(schedule, x, network(x, torch.tensor(t, device=z.device)), t, p)
        else:
            target = schedule.add_noise(z, noise, torch.full((len(z),), t, device=z.device))  # type: ignore[arg-type]
            x = renoised_step(network, x, target, schedule, (t, p), renoise, generator)
        if on_step is not None:
            on_step(t, x)
    return x


@torch.no_grad()
def reconstruction_error(network: Network, x: Tensor, z: Tensor, schedule: NoiseSchedule, steps: int) -> float:
    """||z' - z|| / ||z||, mean over pictures, for the z' to which DDIM comes from the inverted latents x.

    Args:
        network: eps, as in `ddim_inversion`.
        x: (B, 4, h, w), what `ddim_inversion` made of z.
        z: (B, 4, h, w), clean scaled latents.
        schedule: of the base.
        steps: of DDIM.
    """
    for times in schedule.ddim_timesteps(steps):
        t, p = (torch.full((len(x),), time, device=x.device) for time in times)
        x = schedule.ddim_step(x, network(x, t[0]), t, p)
    return ((x - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)).mean().item()


@cache  # one message a setting, not one a picture
def _warn_of_loss(steps: int, renoise: bool) -> None:
    way = "more steps" if renoise else "more steps, or ReNoise"
    log.warning(
        "%d steps of inversion lose some of the picture: sampled back, its latents are off by more than %.0f %%, "
        "before any style. For results that keep more of it take %s.",
        steps, 100 * LOSSY, way,
    )  # fmt: skip


def renoised_step(
    network: Network,
    x_p: Tensor,
    target: Tensor,
    schedule: NoiseSchedule,
    times: tuple[int, int],
    settings: ReNoise,
    generator: torch.Generator,
) -> Tensor:
    """x_t for x_p: eps is evaluated again at the x_t it leads to, averaged and regularised (arXiv 2403.14602, alg. 1).

    Args:
        network: eps.
        x_p: (B, 4, h, w).
        target: the picture's latents noised to t, whose prediction shows what noise looks like here.
        schedule: of the base.
        times: t and p.
        settings: of ReNoise.
        generator: of the shifts.
    """
    t, p = times
    time = torch.tensor(t, device=x_p.device)
    first = t < settings.first_below
    evaluations = 1 + (min(settings.steps, settings.first_steps) if first else settings.steps)
    start, stop = settings.first_average if first else settings.average
    averaged = [i for i in range(evaluations) if start <= i < stop]
    like: Tensor | None = None
    x_t, total = x_p, torch.zeros_like(x_p)
    for i in range(evaluations):
        if i == 0 and averaged and settings.regularizations:
            like, eps = network(torch.cat([target, x_t]), time).chunk(2)
        else:
            eps = network(x_t, time)
        total = total + eps if i in averaged else total
        if i == evaluations - 1 and averaged:
            eps = total / len(averaged)  # what the last one alone would give is not used
        if i >= start and like is not None:
            eps = regularized(eps, like, settings, generator)
        x_t = step_up(schedule, x_p, eps, t, p)
    return x_t


def regularized(eps: Tensor, like: Tensor, settings: ReNoise, generator: torch.Generator) -> Tensor:
    """Gradient steps that make a prediction more like noise (arXiv 2403.14602, section 3.4; 2302.03027, eq. 5)."""
    for _ in range(settings.regularizations):
        if settings.kl:
            eps = eps - settings.kl * gradient(lambda e: patch_divergence(e, like), eps).clamp(-100, 100)
        for _ in range(settings.rolls if settings.correlation else 0):
            shifts = draw_shifts(eps.shape[-2], settings.shift, generator)
            eps = eps - settings.correlation / settings.rolls * gradient(lambda e: correlation(e, shifts), eps)  # noqa: B023 - called at once
    return eps


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """d loss(x) / d x."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(loss(x), x)[0]


def patch_divergence(eps: Tensor, like: Tensor, side: int = 4, tiny: float = 1e-6) -> Tensor:
    """Sum of twice the Gaussian Kullback-Leibler divergences between equal patches of two predictions (B, 4, h, w)."""
    (mean, var), (mean_like, var_like) = (patch_statistics(one, side) for one in (eps, like))
    terms = ((var_like + tiny) / (var + tiny)).log() + (var + (mean - mean_like) ** 2) / (var_like + tiny) - 1
    return terms.sum()


def patch_statistics(x: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Mean and variance (B, C, P) of the patches of side x side latents of each channel."""
    patches = F.unfold(x, side, stride=side).unflatten(1, (x.shape[1], side * side))
    return patches.mean(2), patches.var(2)


def draw_shifts(side: int, shift: int | None, generator: torch.Generator) -> list[int]:
    """Shifts for each level of `pyramid`, from 1 to half a side (a shift of 0 would fight the variance)."""
    levels = [side]
    while levels[-1] > 8:
        levels.append(levels[-1] // 2)
    if shift is not None:
        return [shift] * len(levels)
    return [
        int(torch.randint(1, max(level // 2, 2), (), generator=generator, device=generator.device)) for level in levels
    ]


def correlation(eps: Tensor, shifts: Sequence[int]) -> Tensor:
    """Sum over channels and 2 x 2 averages of (mean of eps * rolled eps)^2 for both directions, of eps (B, C, h, w)."""
    total = eps.new_zeros(())
    for level, shift in enumerate(shifts):
        if level:
            eps = F.avg_pool2d(eps, 2)
        for dim in (2, 3):
            total = total + (eps * eps.roll(shift, dim)).mean((2, 3)).square().sum()
    return total


def invert(
    pipeline: Any,
    images: Tensor,
    prompt: str | list[str],
    *,
    steps: int = 50,
    renoise: ReNoise | None = ReNoise(),  # noqa: B008 - it is frozen
    generator: torch.Generator | None = None,
    **micro: tuple[int, int] | None,
) -> Tensor:
    """Latents (B, 4, h, w), float32, from which a style guidance pipeline paints real pictures again.

    They are sampled back, with `steps` more evaluations, to warn where the pictures do not return.

    Args:
        pipeline: `StyleGuidancePipeline` or `StyleGuidanceXLPipeline`, with DDIM as its scheduler.
        images: (B, 3, H, W) in [-1, 1].
        prompt: what they show, one for all or one for each.
        steps: num_inference_steps of the pipeline's call.
        renoise: None is DDIM inversion alone.
        generator: see `ddim_inversion`.
        micro: original_size, target_size and crops_coords_top_left as in the pipeline's call.

    Raises:
        UserError: a scheduler other than DDIM with leading steps and without clipping, or an inversion that diverges.
    """
    at_least(1, steps=steps)
    config = pipeline.scheduler.config
    if type(pipeline.scheduler).__name__ != "DDIMScheduler" or config.clip_sample or config.thresholding:
        raise UserError("pictures are inverted for DDIM without clipping; give the pipeline such a scheduler.")
    if config.timestep_spacing != "leading":
        raise UserError(f"timestep_spacing is {config.timestep_spacing!r}; give the pipeline a DDIM with 'leading'.")
    prompts = [prompt] * len(images) if isinstance(prompt, str) else prompt
    z = to_latents(pipeline.vae, images)
    schedule = NoiseSchedule.from_config(config).to(z.device)
    eps = pipeline.denoiser(prompts, *images.shape[-2:], **micro)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return eps(x.to(pipeline.unet.dtype), t).float()

    x = ddim_inversion(network, z, schedule, steps, renoise, generator=generator)
    if not x.isfinite().all():
        raise UserError(
            f"the inversion diverged with {renoise or 'DDIM alone'}; lower kl and correlation, or leave it out."
        )
    if reconstruction_error(network, x, z, schedule, steps) > LOSSY:
        _warn_of_loss(steps, renoise is not None)
    return x
