"""A StyleGAN2 of 32 px and encoders for it, of random weights, in real files."""

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from datamodules import StyleImages
from lightning_styles.methods.pseudo_paired_stylegan import PseudoPairedStyleGAN
from lightning_styles.models.psp import GradualStyleEncoder, Space
from lightning_styles.models.stylegan2 import Discriminator, Generator
from lightning_styles.pretrained.psp import PSP, save_psp
from lightning_styles.pretrained.stylegan2 import StyleGAN2, save_stylegan2

SIZE, STYLE, LAYERS = 32, 16, 8
WIDTHS = {4: 16, 8: 16, 16: 8, 32: 8}


def make_stylegan(seed: int = 0) -> StyleGAN2:
    """Generator and discriminator whose pictures keep to about [-1, 1]."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        generator = Generator(SIZE, STYLE, 2, channels=WIDTHS)
        for name, parameter in generator.named_parameters():
            if name.startswith("to_rgb") and name.endswith("conv.weight"):
                parameter.data *= 0.3
            elif name.endswith("noise.weight"):
                parameter.data.fill_(0.05)
        average = generator.mean_latent(1000)[0]
        return StyleGAN2(generator, average, Discriminator(SIZE, channels=WIDTHS))


def make_psp(space: Space, seed: int = 1) -> PSP:
    """An encoder; that into W+ starts from the mean of w."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        encoder = GradualStyleEncoder(LAYERS, STYLE, SIZE, widths=(16, 16, 16), blocks=(1, 1, 1))
        average = make_stylegan().latent_avg.expand(LAYERS, -1).clone() if space == "w_plus" else None
    return PSP(encoder.eval(), space, average)


def write_stylegan(folder: Path, seed: int = 0) -> str:
    """Write `stylegan2_<seed>.safetensors` with a discriminator, unless it is there."""
    return _once(folder / f"stylegan2_{seed}.safetensors", lambda path: save_stylegan2(path, make_stylegan(seed)))


def write_psp(folder: Path, space: Space) -> str:
    """Write `psp_<space>.safetensors`, unless it is there."""
    return _once(folder / f"psp_{space}.safetensors", lambda path: save_psp(path, make_psp(space), torch.float32))


def shaken(network: nn.Module, by: float = 0.3, seed: int = 2) -> nn.Module:
    """`network` with noise on every weight, in place."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data += by * torch.randn(parameter.shape, generator=generator)
    return network


def style_images(**changes: Any) -> StyleImages:
    """Pictures of a cartoon; keywords override the settings."""
    settings: dict[str, Any] = {
        "images": "scene:portrait/0-5", "style": "cartoon", "prompt": "cartoon", "resolution": SIZE, "batch_size": 4,
    }  # fmt: skip
    return StyleImages(**(settings | changes))


def make_method(folder: Path, **changes: Any) -> PseudoPairedStyleGAN:
    """The method on the networks in `folder`; keywords override its settings."""
    settings: dict[str, Any] = {
        "source": write_stylegan(folder), "encoder": write_psp(folder, "z_plus"),
        "refiner": write_psp(folder, "w_plus"), "perceptual": "tiny/perceptual", "identity": "tiny/identity",
        "iterations": 2, "finetune_iterations": 1, "pair_batch": 2, "pairs": {"steps": 3, "batch_size": 2},
        "cache": str(folder / "pairs"),
    }  # fmt: skip
    return PseudoPairedStyleGAN(**(settings | changes))


@pytest.fixture(scope="session")
def micro_stylegan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the generators 0 and 1 and both encoders."""
    folder = tmp_path_factory.mktemp("stylegan")
    for seed in (0, 1):
        write_stylegan(folder, seed)
    for space in ("z_plus", "w_plus"):
        write_psp(folder, space)
    return folder


def _once(path: Path, write: Any) -> str:
    if not path.exists():  # several processes may try
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_name(f"{uuid.uuid4().hex}{path.suffix}")
        write(written)
        with suppress(OSError):
            os.replace(written, path)
    return str(path)
