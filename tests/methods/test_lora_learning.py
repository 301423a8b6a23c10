"""LoRA methods learn what they are for: pictures of new captions come nearer to their exact twins."""

from pathlib import Path
from typing import Any

import pytest

from datamodules import Pairs
from lightning_styles.methods.concept_slider import ConceptSlider
from lightning_styles.methods.lora_method import LoRAMethod
from lightning_styles.methods.pair_customization import PairCustomization
from lightning_styles.methods.style_lora import StyleLoRA
from tests.micro import quiet_trainer

ITERATIONS = 40
SETTINGS: dict[str, Any] = {
    "base": "tiny/stable-diffusion-xl", "style_phrase": "in sketch style", "iterations": ITERATIONS, "lr": 2e-3,
    "size": 64, "steps": 10, "scheduler": "ddim", "guidance": 2.0, "style_start": None,
    "metrics": {"perceptual": "tiny/perceptual"},
}  # fmt: skip
PAIR: dict[str, Any] = {"style_from": 13, "content_rank": 16, "style_rank": 16, "strength": 2.0}
LORA: dict[str, Any] = {"rank": 16, "alpha": 16.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method_class", "own"),
    [
        (PairCustomization, PAIR),
        (ConceptSlider, LORA | {"strength": 2.0}),
        (StyleLoRA, LORA | {"mode": "scale", "strength": 1.0}),
    ],
)
def test_new_pictures_come_nearer_to_their_twins(
    tmp_path: Path, method_class: type[LoRAMethod], own: dict[str, Any]
) -> None:
    """In units of the distance between the base's picture and its twin."""
    data = Pairs(
        content="scene:portrait/3", filter="sketch", prompt="a photo of {caption}", resolution=64,
        prompts=["scene:portrait/0-3?seed=1"], eval_batch_size=4,
    )  # fmt: skip
    method, run = method_class(**(SETTINGS | own)), quiet_trainer(tmp_path, ITERATIONS)
    (before,) = run.test(method, datamodule=data, verbose=False)
    run.fit(method, datamodule=data)
    (after,) = run.test(method, datamodule=data, verbose=False)
    assert after["test/twin_rel"] < 0.75 * before["test/twin_rel"]
