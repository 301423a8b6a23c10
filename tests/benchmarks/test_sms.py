"""One iteration of SMS, timed beside a plain statement of what the official code computes in one.

`pytest tests/benchmarks --benchmark-only` runs the embedded architecture, and on a CUDA device that of Stable
Diffusion 1.5 too; LIGHTNING_STYLES_LARGE=1 runs the latter on the CPU (minutes). Weights are random. The numbers that
count are in `extra_info`: times_faster and the peaks of memory (CUDA: allocated tensors; CPU: resident set, shared).
"""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.diffusion.scores import STYLE, Scores
from lightning_styles.losses import spectrum
from lightning_styles.methods.sms import SMS
from lightning_styles.models.adapters import add_lora
from lightning_styles.pretraining.latent_diffusion import SCHEDULER
from tests.benchmarks.timing import CUDA, DEVICE, LARGE, ROOT, finished, peak_mb, reset_peak
from tests.micro import make_unet


@dataclass(frozen=True)
class Size:
    """An architecture: its UNet, side of the latents, length and width of the text, timed iterations."""

    unet: Callable[[], Any]
    side: int
    length: int
    width: int
    rounds: int


def embedded() -> Size:
    """The size of the embedded base, as its recipe says."""
    recipe = yaml.safe_load((ROOT / "configs/pretrain/stable_diffusion.yaml").read_text(encoding="utf-8"))
    own = recipe["model"]["init_args"]
    unet = lambda: make_unet(own["widths"], own["heads"], own["text_width"], groups=16)  # noqa: E731
    return Size(unet, 16, own["prompt_length"], own["text_width"], rounds=20)


def stable_diffusion_15() -> Size:
    """512 x 512 px."""
    from diffusers import UNet2DConditionModel

    unet = lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # noqa: E731
    return Size(unet, 64, 77, 768, rounds=20 if CUDA else 2)


def style_lora(unet: nn.Module) -> None:
    """Add a random, frozen style LoRA of rank 16 to the attention layers."""
    for parameter in add_lora(unet, STYLE, 16, 16.0, ["to_q", "to_k", "to_v", "to_out.0"]).values():
        parameter.requires_grad_(False).normal_(std=0.01)
        parameter.data = parameter.data.to(next(unet.parameters()).dtype)


class Bare(SMS):
    """SMS at its defaults on one random UNet, one picture and random prompts."""

    def __init__(self, size: Size) -> None:
        super().__init__(base="random", style="random", weights={"style": 1.0, "identity": 5e-4})
        unet = size.unet().eval().requires_grad_(False).to(DEVICE, torch.float16 if CUDA else torch.float32)
        style_lora(unet)
        self.scores = Scores(unet, unet, has_lora=True)
        self.scores.add_fakes(1, self.hparams.rank, self.hparams.alpha)
        self.schedule = NoiseSchedule.from_config(SCHEDULER).to(DEVICE)
        self.grid, self.names = self.schedule.grid(500), ["picture"]
        text = torch.randn(1, 2, size.length, size.width, device=DEVICE)
        self.text = dict.fromkeys(("tgt_style", "tgt", "src", "edit"), text)
        self.z_tgt = nn.Parameter(torch.randn(1, 4, size.side, size.side))
        self.register_buffer("z_src", self.z_tgt.data.clone())
        self.to(DEVICE)


class Plain:
    """What the official code does in an iteration: float32, eager, a second UNet with the style LoRA merged in."""

    def __init__(self, size: Size) -> None:
        from diffusers import DDIMScheduler

        self.real = size.unet().eval().requires_grad_(False).to(DEVICE)
        self.style = deepcopy(self.real)  # the merged LoRA is in its weights and costs nothing more
        fake = add_lora(self.real, "fake", 8, 32.0, ["to_q", "to_v"])
        self.scheduler = DDIMScheduler(**SCHEDULER)
        self.text = torch.randn(2, size.length, size.width, device=DEVICE)
        self.z_src = torch.randn(1, 4, size.side, size.side, device=DEVICE)
        self.z_tgt = nn.Parameter(self.z_src.clone())
        self.trained = list(fake.values())
        self.optimizers = torch.optim.AdamW([self.z_tgt], lr=0.1), torch.optim.AdamW(self.real.parameters(), lr=1e-3)
        self.betas = NoiseSchedule.from_config(SCHEDULER).to(DEVICE)

    def pair(self, unet: Any, z_t: Tensor, t: Tensor) -> Tensor:
        """Predictions for prompt and empty prompt, (2, 4, h, w)."""
        return unet(torch.cat([z_t] * 2), torch.cat([t] * 2), self.text).sample

    def draw(self) -> tuple[Tensor, Tensor]:
        self.scheduler.set_timesteps(500)
        index = torch.randint(10, 250, (1,))
        return self.scheduler.timesteps.flip(0)[index].to(DEVICE), torch.randn_like(self.z_src)

    def iterate(self) -> None:
        t, eps = self.draw()
        z_t, z_t_src = (self.betas.add_noise(z, eps, t) for z in (self.z_tgt, self.z_src))
        self.real.enable_adapters()
        with torch.no_grad():
            scores = [self.pair(unet, z_t, t) for unet in (self.style, self.real)]
            style, fake = (uncond + 4.5 * (cond - uncond) for cond, uncond in (s.chunk(2) for s in scores))
        g = torch.nan_to_num(self.betas.posterior_variance(t, t - 2).reshape(-1, 1, 1, 1) * (style - fake)).detach()
        self.real.disable_adapters()
        cond, uncond = self.pair(self.real, z_t_src, t).detach().chunk(2)
        m = (cond - uncond).squeeze(0).mean(0).abs().cpu().numpy()
        R = torch.from_numpy((m - m.min()) / (m.max() - m.min())).to(DEVICE)
        loss = 0.5 * F.mse_loss(self.z_tgt, (self.z_tgt - R * g).detach())
        thr = spectrum.threshold(t, *self.z_tgt.shape[-2:])
        mask = spectrum.low_pass_mask(*self.z_tgt.shape[-2:], thr)
        loss = loss + 5e-4 * (mask * (spectrum.dct2(self.z_tgt) - spectrum.dct2(self.z_src))).abs().mean()
        self.step(0, loss)
        t, eps = self.draw()
        self.real.enable_adapters()
        for parameter in self.trained:
            parameter.requires_grad_(True)
        cond, _ = self.pair(self.real, self.betas.add_noise(self.z_tgt.detach(), eps, t), t).chunk(2)
        alpha_bar = self.betas.alpha_bar(t)
        self.step(1, F.mse_loss(alpha_bar * cond, alpha_bar * eps))

    def step(self, which: int, loss: Tensor) -> None:
        loss.backward()
        loss.item()
        self.optimizers[which].step()
        self.optimizers[which].zero_grad()


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(embedded, id="embedded"),
        pytest.param(
            stable_diffusion_15,
            id="stable-diffusion-1.5",
            marks=pytest.mark.skipif(not LARGE, reason="needs a CUDA device or LIGHTNING_STYLES_LARGE=1"),
        ),
    ],
)
@pytest.mark.benchmark
def test_one_iteration(benchmark: Any, size: Callable[[], Size]) -> None:
    made = size()
    reset_peak()
    method = Bare(made)
    with method.optimizing_alone():
        benchmark.pedantic(finished, (method.iterate,), rounds=made.rounds, warmup_rounds=2)
    assert torch.isfinite(method.z_tgt).all()
    benchmark.extra_info["peak_mb"] = peak_mb()
    del method
    reset_peak()
    plain, seconds = Plain(made), []
    for _ in range(made.rounds + 2):
        start = time.perf_counter()
        finished(plain.iterate)
        seconds.append(time.perf_counter() - start)
    benchmark.extra_info["plain_s"] = median(seconds[2:])
    benchmark.extra_info["plain_peak_mb"] = peak_mb()
    benchmark.extra_info["times_faster"] = round(median(seconds[2:]) / benchmark.stats.stats.median, 2)
    print(benchmark.extra_info)
