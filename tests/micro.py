"""A Stable Diffusion of 220 thousand random weights in the layout of diffusers, and a style LoRA for it.

Test modules that use the fixtures say `pytest_plugins = ["tests.micro"]`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_styles.methods.style_lora import NAME, save_lora
from lightning_styles.models.adapters import adapter_parameters, add_lora
from lightning_styles.pretraining.latent_diffusion import SCHEDULER
from lightning_styles.pretraining.tokenizer import train_clip_tokenizer

WIDTH = 16  # of the text embedding
CAPTIONS = ["a photo of a woman with long red hair", "cartoon style, turn into a drawing"]
TEXT_LAYER = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"


@dataclass(frozen=True)
class Micro:
    """Paths of the base models and LoRAs in `folder`; each is written when first asked for, by whichever process.

    Files that are there stay: a LoRA written again has another fingerprint, since its metadata come in any order.
    """

    folder: Path

    @cached_property
    def base(self) -> str:
        """A base model."""
        return self._once("base", write_base, seed=0)

    @cached_property
    def other(self) -> str:
        """A base model with the same shapes and other weights."""
        return self._once("other", write_base, seed=1)

    @cached_property
    def lora(self) -> str:
        """A style LoRA for the UNet, kohya layout, rank 4, alpha 2."""
        return self._once("lora.safetensors", write_lora)

    @cached_property
    def lora_with_text(self) -> str:
        """The same with one layer of the text encoder."""
        return self._once("lora_with_text.safetensors", write_lora, text=True)

    def _once(self, name: str, write: Callable[..., str], **settings: Any) -> str:
        path = self.folder / name
        return str(path) if path.exists() else write(path, **settings)


@pytest.fixture(scope="session")
def micro(tmp_path_factory: pytest.TempPathFactory) -> Micro:
    """Random base models and LoRAs, written once a session."""
    return Micro(tmp_path_factory.mktemp("micro"))


def make_unet(widths: Sequence[int] = (16, 32), heads: int = 2, text_width: int = WIDTH, groups: int = 8) -> Any:
    """A UNet in the architecture of the embedded one: all resolutions but the last have cross attention."""
    from diffusers import UNet2DConditionModel

    cross = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("CrossAttnDownBlock2D",) * cross + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * cross,
        block_out_channels=tuple(widths),
        layers_per_block=1,
        cross_attention_dim=text_width,
        attention_head_dim=heads,
        norm_num_groups=groups,
    )


def make_vae() -> Any:
    """An autoencoder of factor 4."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
    )


def write_base(folder: Path, seed: int) -> str:
    """Write a base model with random weights of `seed`."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    train_clip_tokenizer(CAPTIONS, folder / "tokenizer", vocabulary=40, length=12)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        make_unet().save_pretrained(folder / "unet")
        make_vae().save_pretrained(folder / "vae")
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    return str(folder)


def write_lora(file: Path, rank: int = 4, alpha: float = 2.0, text: bool = False) -> str:
    """Write a LoRA with random weights on the UNet's attention, with `text` on the text encoder too."""
    from safetensors.torch import load_file, save_file

    unet = make_unet()
    add_lora(unet, NAME, rank, alpha, ["to_q", "to_k", "to_v", "to_out.0"])
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter_parameters(unet, NAME).values():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    save_lora(unet, file, "kohya")
    if text:
        down, up = torch.randn(rank, WIDTH, generator=generator), torch.randn(WIDTH, rank, generator=generator)
        layer = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
        save_file(load_file(file) | {f"{TEXT_LAYER}.{key}": value for key, value in layer.items()}, file)
    return str(file)


def write_picture(file: Path, height: int, width: int, seed: int = 0) -> str:
    """Write a PNG of smooth random colours."""
    from torch.nn import functional as F

    from lightning_styles.imaging import save_png

    coarse = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    file.parent.mkdir(parents=True, exist_ok=True)
    save_png(file, F.interpolate(coarse, (height, width), mode="bilinear")[0])
    return str(file)


def quiet_trainer(folder: Path, iterations: int, **changes: Any) -> L.Trainer:
    """A trainer on the CPU that prints and writes nothing by itself."""
    arguments: dict[str, Any] = {
        "max_steps": iterations, "max_epochs": -1, "accelerator": "cpu", "devices": 1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": str(folder), "num_sanity_val_steps": 0,
    }  # fmt: skip
    return L.Trainer(**(arguments | changes))
