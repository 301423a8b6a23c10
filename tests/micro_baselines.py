"""The baselines on the micro StyleGAN2; keywords override their settings."""

from pathlib import Path
from typing import Any

import torch

from lightning_styles.imaging import save_png
from lightning_styles.methods.jojogan import JoJoGAN
from lightning_styles.methods.layer_swap import LayerSwap
from lightning_styles.methods.mind_the_gap import MindTheGap
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.pretrained.stylegan2 import load_stylegan2
from tests.micro_osasis import MicroOSASIS
from tests.micro_stylegan import STYLE, write_psp, write_stylegan


def networks(folder: Path) -> tuple[Generator, Generator]:
    """The generators 0 and 1."""
    source, target = (load_stylegan2(Path(write_stylegan(folder, seed))).generator for seed in (0, 1))
    return source, target


def make_swap(folder: Path, **changes: Any) -> LayerSwap:
    files = {"source": write_stylegan(folder), "target": write_stylegan(folder, 1)}
    return LayerSwap(**(files | {"encoder": write_psp(folder, "w_plus"), "resolution": 16} | changes))


def make_jojo(folder: Path, **changes: Any) -> JoJoGAN:
    """JoJoGAN on one drawn portrait."""
    if not (folder / "style.png").exists():
        save_png(folder / "style.png", networks(folder)[1](torch.ones(1, STYLE))[0])
    settings: dict[str, Any] = {
        "source": write_stylegan(folder), "encoder": write_psp(folder, "w_plus"), "iterations": 4,
        "style_images": str(folder / "style.png"), "lr": 1e-2,
    }  # fmt: skip
    return JoJoGAN(**(settings | changes))


def make_gap(folder: Path, clip: MicroOSASIS, **changes: Any) -> MindTheGap:
    make_jojo(folder)
    settings: dict[str, Any] = {
        "source": write_stylegan(folder), "encoder": write_psp(folder, "w_plus"), "iterations": 3, "clip": clip.clip,
        "style_image": str(folder / "style.png"), "perceptual": "tiny/perceptual", "inversion_steps": 5,
        "inversion_lr": 0.1, "batch_size": 2,
    }  # fmt: skip
    return MindTheGap(**(settings | changes))
