"""The LoRA methods learn what they are for, in one short run on the embedded models."""

from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import Pairs, StyleImages
from lightning_styles.methods.concept_slider import ConceptSlider
from lightning_styles.methods.lora_method import STYLE, LoRAMethod
from lightning_styles.methods.pair_customization import PairCustomization
from lightning_styles.methods.style_lora import StyleLoRA
from lightning_styles.models.adapters import routed
from tests.micro import quiet_trainer

PAIR: dict[str, Any] = {"style_from": 20, "content_rank": 16, "style_rank": 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method_class", "own"), [(PairCustomization, PAIR), (ConceptSlider, {"rank": 16, "alpha": 16.0})]
)
def test_pictures_of_new_captions_come_nearer_to_their_twins(
    tmp_path: Path, method_class: type[LoRAMethod], own: dict[str, Any]
) -> None:
    """By 29 to 38 % (PairCustomization, seeds 0 to 2) and 36 to 42 % (sliders) in 60 iterations on one pair."""
    method = method_class(
        base="tiny/stable-diffusion-xl", iterations=60, lr=2e-3, style_phrase="in sketch style", size=64, steps=10,
        scheduler="ddim", guidance=2.0, strength=2.0, style_start=None, metrics={"perceptual": "tiny/perceptual"},
        **own,
    )  # fmt: skip
    data = Pairs(
        content="scene:portrait/3", filter="sketch", prompt="a photo of {caption}", resolution=64,
        prompts=["scene:portrait/0-7?seed=1"], eval_batch_size=8,
    )  # fmt: skip
    run = quiet_trainer(tmp_path, 60)
    (before,) = run.test(method, datamodule=data, verbose=False)
    run.fit(method, datamodule=data)
    (after,) = run.test(method, datamodule=data, verbose=False)
    assert after["test/twin_rel"] < 0.85 * before["test/twin_rel"]


def style_images(images: str, batch_size: int, trainer: Any) -> StyleImages:
    """Sketches whose captions say nothing of that."""
    data = StyleImages(
        images=images, style="sketch", prompt="a photo of {caption}", resolution=64, batch_size=batch_size
    )
    data.trainer = trainer
    data.setup("fit")
    return data


@pytest.mark.slow
def test_style_lora_predicts_the_noise_of_held_out_pictures_better(tmp_path: Path) -> None:
    """The error of the same noise at the same timesteps falls by 23 % (seeds 0 to 2) in 30 iterations."""
    method = StyleLoRA(base="tiny/stable-diffusion", rank=8, alpha=8.0, lr=2e-3, iterations=30)
    run = quiet_trainer(tmp_path, 30)
    batch = next(iter(style_images("scene:portrait/100-115?seed=1", 16, run).train_dataloader()))
    run.fit(method, datamodule=style_images("scene:portrait/0-31", 8, run))
    generator = torch.Generator().manual_seed(1)
    z, t = method.posterior(batch["image"])[0], torch.randint(1000, (16,), generator=generator)
    eps, time_ids = torch.randn(z.shape, generator=generator), method.time_ids(batch["image"])
    error = {}
    for adapter in (None, STYLE):
        with torch.no_grad(), routed(method.unet, adapter):
            eps_hat = method.denoise(method.schedule.add_noise(z, eps, t), t, batch["caption"], time_ids)
        error[adapter] = (eps_hat - eps).square().mean()
    assert error[STYLE] < 0.88 * error[None]
