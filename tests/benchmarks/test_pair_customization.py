"""PairCustomization: an iteration and a guided denoising step, beside a plain statement of the official code's work.

`pytest tests/benchmarks --benchmark-only` runs the embedded architecture, and on a CUDA device that of SDXL at 512 px
too; LIGHTNING_STYLES_LARGE=1 runs the latter on the CPU (minutes, 24 GB). Weights are random. The numbers that count
are in `extra_info`: times_faster and the peaks of memory (CUDA: allocated tensors; CPU: resident set, shared).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.diffusion.guidance_rows import Rows
from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.diffusion.style_guidance import style_guidance
from lightning_styles.methods.lora_method import ATTENTION, STYLE
from lightning_styles.methods.pair_customization import CONTENT, PairCustomization
from lightning_styles.models.adapters import add_lora
from lightning_styles.pretrained.stable_diffusion import Text
from lightning_styles.pretraining.latent_diffusion import SCHEDULER
from lightning_styles.pretraining.latent_diffusion_xl import TIME_WIDTH
from tests.benchmarks.timing import CUDA, DEVICE, LARGE, ROOT, compare


@dataclass(frozen=True)
class Size:
    """An architecture: UNet and VAE, side of pictures in px, length of the text, width of its pooled vector, rounds."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    side: int
    length: int
    pooled: int
    rank: int
    rounds: int

    def make_unet(self) -> Any:
        from diffusers import UNet2DConditionModel

        shared = {"addition_embed_type": "text_time", "use_linear_projection": True}
        return UNet2DConditionModel(**shared, **self.unet).eval().requires_grad_(False)

    def make_vae(self) -> Any:
        from diffusers import AutoencoderKL

        levels = len(self.vae["block_out_channels"])
        blocks = {
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
        }
        return AutoencoderKL(**blocks, **self.vae).eval().requires_grad_(False).to(DEVICE)

    def text(self) -> Text:
        states = torch.randn(1, self.length, self.unet["cross_attention_dim"], device=DEVICE)
        return Text(states, torch.randn(1, self.pooled, device=DEVICE))


def embedded() -> Size:
    """The size of the embedded SDXL, as its recipe says."""
    recipe = yaml.safe_load((ROOT / "configs/pretrain/stable_diffusion_xl.yaml").read_text(encoding="utf-8"))
    own = recipe["model"]["init_args"]
    levels = len(own["depths"])
    unet = {
        "down_block_types": ("DownBlock2D", *["CrossAttnDownBlock2D"] * levels),
        "up_block_types": (*["CrossAttnUpBlock2D"] * levels, "UpBlock2D"),
        "block_out_channels": tuple(own["widths"]), "layers_per_block": 1, "norm_num_groups": 16,
        "transformer_layers_per_block": (1, *own["depths"]), "attention_head_dim": own["heads"],
        "cross_attention_dim": own["text_width"] + own["second_text_width"], "addition_time_embed_dim": TIME_WIDTH,
        "projection_class_embeddings_input_dim": 6 * TIME_WIDTH + own["second_text_width"],
    }  # fmt: skip
    vae = {"block_out_channels": (32, 64, 64), "norm_num_groups": 8, "layers_per_block": 1}
    return Size(unet, vae, 64, own["prompt_length"], own["second_text_width"], rank=16, rounds=20)


def sdxl() -> Size:
    """512 x 512 px."""
    unet = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }  # fmt: skip
    vae = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    return Size(unet, vae, 512, 77, 1280, rank=64, rounds=20 if CUDA else 1)


class Bare(PairCustomization):
    """The method after its first iterations, on random networks, one pair and random prompts."""

    def __init__(self, size: Size) -> None:
        ranks = {"content_rank": size.rank, "style_rank": size.rank}
        super().__init__(base="random", style_phrase="style", iterations=750, style_from=0, **ranks)
        self.unet = size.make_unet().to(DEVICE, torch.bfloat16 if CUDA else torch.float32)
        self.schedule = NoiseSchedule.from_config(SCHEDULER).to(DEVICE)
        self.add_adapters()
        self.given, side = size.text(), size.side // (2 ** (len(size.vae["block_out_channels"]) - 1))
        self.posteriors["pair"] = tuple(torch.rand(4, 4, side, side, device=DEVICE).unbind())
        square = torch.tensor([[size.side, size.side]])
        self.batch = {
            "content": torch.zeros(1, 3, size.side, size.side, device=DEVICE), "row": ["pair"], "prompt": ["a photo"],
            "content_size": square, "style_size": square, "crop": torch.zeros_like(square),
        }  # fmt: skip
        self.batch["style"] = self.batch["content"]
        self.to(DEVICE)

    def embed(self, prompt: str) -> Text:
        return self.given

    def iterate(self) -> None:
        self.iteration += 1
        self.training_step(self.batch, 0)


class Plain:
    """What the official code does: both pictures through the VAE, adapters switched by PEFT, gradients for A too."""

    def __init__(self, size: Size) -> None:
        from diffusers import DDPMScheduler

        self.vae, self.unet = size.make_vae(), size.make_unet().to(DEVICE, torch.float16 if CUDA else torch.float32)
        for name in (CONTENT, STYLE):
            add_lora(self.unet, name, size.rank, size.rank, ATTENTION)
        named = list(self.unet.named_parameters())
        ups = [p for key, p in named if ".lora_B." in key]
        self.content_ups = [p for key, p in named if ".lora_B.content." in key]
        self.optimizer = torch.optim.AdamW(ups, lr=1e-5, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(DEVICE.type, enabled=CUDA)
        self.scheduler = DDPMScheduler(**{k: v for k, v in SCHEDULER.items() if k.startswith(("num", "beta"))})
        self.text, self.told = size.text(), torch.full((1, 6), float(size.side), device=DEVICE)
        self.pictures = torch.rand(2, 3, size.side, size.side, device=DEVICE)

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        rows, dtype = len(x), self.unet.conv_in.weight.dtype
        text = self.text.to(dtype=dtype)
        told = {"text_embeds": text.pooled.expand(rows, -1), "time_ids": self.told.expand(rows, -1)}  # type: ignore[union-attr]
        with torch.autocast(DEVICE.type, torch.float16, enabled=CUDA):
            return self.unet(x.to(dtype), t, text.states.expand(rows, -1, -1), added_cond_kwargs=told).sample.float()

    def iterate(self) -> None:
        z = [self.vae.encode(x[None]).latent_dist.sample() * 0.13025 for x in self.pictures]
        eps, t = torch.randn_like(z[0]), torch.randint(1000, (1,), device=DEVICE)
        for latents, names in zip(z, ([CONTENT], [CONTENT, STYLE]), strict=True):
            self.unet.set_adapter(names)
            for p in self.content_ups:
                p.requires_grad_(names == [CONTENT])
            loss = F.mse_loss(self.predict(self.scheduler.add_noise(latents, eps, t), t), eps)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()
        loss.item()


SIZES = [
    pytest.param(embedded, id="embedded"),
    pytest.param(
        sdxl,
        id="sdxl",
        marks=pytest.mark.skipif(not LARGE, reason="needs a CUDA device or LIGHTNING_STYLES_LARGE=1"),
    ),
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.benchmark
def test_one_iteration(benchmark: Any, size: Callable[[], Size]) -> None:
    made = size()

    def ours() -> Callable[[], None]:
        method = Bare(made)
        method._alone = method.named_optimizers()  # as in `optimizing_alone`, for as long as the timing takes
        return method.iterate

    compare(benchmark, made.rounds, ours, lambda: Plain(made).iterate)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.benchmark
def test_one_guided_step(benchmark: Any, size: Callable[[], Size]) -> None:
    """Empty prompt, prompt and style: one batch here, there a pass at LoRA scale 0 and one at scale 1."""
    made = size()
    side = made.side // (2 ** (len(made.vae["block_out_channels"]) - 1))
    x, t = torch.randn(1, 4, side, side, device=DEVICE), torch.tensor(500, device=DEVICE)

    def ours() -> Callable[[], Any]:
        method = Bare(made)
        groups = [(None, method.given), (None, method.given), (((STYLE, 1.0),), method.given)]
        rows = Rows(method.unet, groups, torch.full((1, 6), float(made.side), device=DEVICE))

        def step() -> Tensor:
            empty, prompt, *styled = rows.predict(x, t)
            return style_guidance(empty, prompt, styled, 5.0, [3.0])

        return step

    def official() -> Callable[[], Any]:
        plain = Plain(made)
        plain.unet.set_adapter([STYLE])

        @torch.no_grad()
        def step() -> Tensor:
            plain.unet.set_adapters([STYLE], [0.0])
            empty, prompt = plain.predict(x.expand(2, -1, -1, -1), t).chunk(2)
            plain.unet.set_adapters([STYLE], [1.0])
            return style_guidance(empty, prompt, [plain.predict(x, t)], 5.0, [3.0])

        return step

    compare(benchmark, made.rounds, ours, official)
