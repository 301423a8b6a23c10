"""A Stable Diffusion of 220 thousand random weights in the layout of diffusers, and a style LoRA for it.

Test modules that use the fixtures say `pytest_plugins = ["tests.micro"]`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning as L
import pytest
import torch

from lightning_styles.methods.lora_method import STYLE
from lightning_styles.models.adapters import adapter_parameters, add_lora
from lightning_styles.pretrained.lora_export import save_lora
from lightning_styles.pretraining.latent_diffusion import SCHEDULER
from lightning_styles.pretraining.tokenizer import train_clip_tokenizer

WIDTH = 16  # of the text embedding
CAPTIONS = ["a photo of a woman with long red hair", "cartoon style, turn into a drawing"]
TEXT = {"lora_te": WIDTH}  # what kohya calls a text encoder, and its width
TEXT_XL = {"lora_te1": 16, "lora_te2": 8}
TEXT_LAYER = "text_model_encoder_layers_0_self_attn_q_proj"


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
    def base_xl(self) -> str:
        """A base model in the layout of SDXL."""
        return self._once("base_xl", write_base_xl, seed=0)

    @cached_property
    def other_xl(self) -> str:
        """An SDXL with the same shapes and other weights."""
        return self._once("other_xl", write_base_xl, seed=1)

    @cached_property
    def lora_xl(self) -> str:
        """A style LoRA for the UNet of `base_xl`, kohya layout, rank 4, alpha 2."""
        return self._once("lora_xl.safetensors", write_lora, unet=make_unet_xl)

    @cached_property
    def lora_xl_with_text(self) -> str:
        """The same with one layer of each of the two text encoders."""
        return self._once("lora_xl_with_text.safetensors", write_lora, text=TEXT_XL, unet=make_unet_xl)

    @cached_property
    def lora(self) -> str:
        """A style LoRA for the UNet, kohya layout, rank 4, alpha 2."""
        return self._once("lora.safetensors", write_lora)

    @cached_property
    def lora_with_text(self) -> str:
        """The same with one layer of the text encoder."""
        return self._once("lora_with_text.safetensors", write_lora, text=TEXT)

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


def make_unet_xl(widths: Sequence[int] = (16, 32), heads: int = 2, text_width: int = 24, pooled: int = 8) -> Any:
    """A UNet in the architecture of SDXL: no attention at first, one block more at each of the other resolutions."""
    from diffusers import UNet2DConditionModel

    levels = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels + ("UpBlock2D",),
        block_out_channels=tuple(widths),
        layers_per_block=1,
        transformer_layers_per_block=tuple(range(1, levels + 2)),
        cross_attention_dim=text_width,
        attention_head_dim=heads,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + pooled,
    )


def write_base(folder: Path, seed: int) -> str:
    """Write a base model with random weights of `seed`."""
    from diffusers import DDIMScheduler
    from transformers import CLIPTextModel

    config = write_tokenizer(folder / "tokenizer", WIDTH)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        make_unet().save_pretrained(folder / "unet")
        make_vae().save_pretrained(folder / "vae")
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")
    return str(folder)


def write_base_xl(folder: Path, seed: int) -> str:
    """Write an SDXL with random weights of `seed`; text of width 16 + 8."""
    from diffusers import EulerDiscreteScheduler
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    config, second = write_tokenizer(folder / "tokenizer", 16, 2), write_tokenizer(folder / "tokenizer_2", 8, 2)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        make_unet_xl().save_pretrained(folder / "unet")
        make_vae().save_pretrained(folder / "vae")
        CLIPTextModel(config).save_pretrained(folder / "text_encoder")
        CLIPTextModelWithProjection(second).save_pretrained(folder / "text_encoder_2")
    EulerDiscreteScheduler(**{k: v for k, v in SCHEDULER.items() if k in XL_KEYS}).save_pretrained(folder / "scheduler")
    return str(folder)


XL_KEYS = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end", "steps_offset")


def write_tokenizer(folder: Path, width: int, layers: int = 1) -> Any:
    """Write a tokenizer and return the architecture of a text encoder for it."""
    from transformers import CLIPTextConfig, CLIPTokenizer

    train_clip_tokenizer(CAPTIONS, folder, vocabulary=40, length=12)
    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def write_lora(
    file: Path,
    rank: int = 4,
    alpha: float = 2.0,
    text: Mapping[str, int] = MappingProxyType({}),
    unet: Callable[[], Any] = make_unet,
) -> str:
    """Write a LoRA with random weights on the attention of a UNet and on one layer of every encoder of `text`."""
    from safetensors.torch import load_file, save_file

    network = unet()
    add_lora(network, STYLE, rank, alpha, ["to_q", "to_k", "to_v", "to_out.0"])
    generator = torch.Generator().manual_seed(2)
    for parameter in adapter_parameters(network, STYLE).values():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    save_lora(network, file, "kohya")
    for name, width in text.items():
        down, up = torch.randn(rank, width, generator=generator), torch.randn(width, rank, generator=generator)
        layer = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
        save_file(load_file(file) | {f"{name}_{TEXT_LAYER}.{key}": value for key, value in layer.items()}, file)
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
