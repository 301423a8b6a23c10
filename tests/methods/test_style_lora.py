"""StyleLoRA: only the LoRA learns, and its files do elsewhere what they do here."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from callbacks import Previews
from datamodules import StyleImages
from lightning_styles.methods.lora_method import STYLE
from lightning_styles.methods.style_lora import StyleLoRA
from lightning_styles.models.adapters import adapter_state, routed
from lightning_styles.pretrained.stable_diffusion import load_stable_diffusion
from lightning_styles.pretrained.style_lora import load_style_lora
from tests.micro import WIDTH, Micro, quiet_trainer

pytest_plugins = ["tests.micro"]


def fit(micro: Micro, folder: Path, steps: int = 3, ckpt_path: Path | None = None, **changes: Any) -> Any:
    """A trained method and its trainer."""
    settings: dict[str, Any] = {
        "base": micro.base, "iterations": 4, "rank": 4, "alpha": 2.0, "lr": 0.05,
        "preview_prompts": ["a photo of a woman"], "size": 32,
    }  # fmt: skip
    method = StyleLoRA(**(settings | changes))
    data = StyleImages(
        images="scene:portrait/0-3", style="cartoon", prompt="cartoon style, {caption}", resolution=32, batch_size=2
    )
    run = quiet_trainer(folder, steps, callbacks=[Previews(2, animation="none")])
    run.fit(method, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return method, run


@pytest.fixture(scope="module")
def trained(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> tuple[StyleLoRA, L.Trainer]:
    """The method after three iterations, alpha half of the rank."""
    return fit(micro, tmp_path_factory.mktemp("style_lora"))


def question() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timesteps and text to compare UNets on."""
    generator = torch.Generator().manual_seed(3)
    z, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 12, WIDTH, generator=generator)
    return z, torch.tensor([101, 701]), text


def test_only_the_lora_learns(micro: Micro, trained: tuple[StyleLoRA, L.Trainer]) -> None:
    method, run = trained
    untouched = load_stable_diffusion(micro.base)
    weights = {key.replace(".base_layer", ""): p for key, p in method.unet.named_parameters() if ".lora_" not in key}
    assert all(torch.equal(weights[key], p) for key, p in untouched.unet.named_parameters())
    for part in ("vae", "text_encoder"):
        frozen = dict(getattr(method.base, part).named_parameters())
        assert all(torch.equal(frozen[key], p) for key, p in getattr(untouched, part).named_parameters())
    held = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for key, p in method.named_parameters() if ".lora_" in key}
    ups = {key: value for key, value in adapter_state(method.unet, STYLE).items() if "lora_B" in key}
    assert len(ups) == 4 * 2 * 4  # projections, attentions of a block, blocks (one down, one middle, two up)
    assert all(value.abs().max() > 1e-3 for value in ups.values())
    assert all(".lora_" in key for key in method.state_dict())
    assert 0.5 < run.callback_metrics["train/noise"] < 2


@pytest.mark.parametrize("layout", ["kohya", "diffusers"])
def test_an_exported_file_does_in_a_fresh_pipeline_what_it_does_here(
    micro: Micro, trained: tuple[StyleLoRA, L.Trainer], tmp_path: Path, layout: str
) -> None:
    method, _ = trained
    file = tmp_path / method.formats[layout]
    method.export(file, layout)
    z, t, text = question()
    with torch.no_grad():
        with routed(method.unet, STYLE):
            ours = method.unet(z, t, text).sample
        with routed(method.unet, None):
            base = method.unet(z, t, text).sample
        pipeline: Any = load_stable_diffusion(micro.base).pipeline()
        assert isinstance(pipeline, StableDiffusionPipeline)
        torch.testing.assert_close(pipeline.unet(z, t, text).sample, base, rtol=0, atol=1e-6)
        pipeline.load_lora_weights(str(tmp_path), weight_name=file.name)
        theirs = pipeline.unet(z, t, text).sample
    effect = (ours - base).abs().max()
    assert effect > 0.02
    assert (theirs - ours).abs().max() < 2e-3 * effect, "files hold half precision"


def test_an_exported_file_is_a_style_lora_for_the_other_methods(
    micro: Micro, trained: tuple[StyleLoRA, L.Trainer], tmp_path: Path
) -> None:
    method, _ = trained
    method.export(tmp_path / "lora.safetensors", "kohya")
    unet = load_stable_diffusion(micro.base).unet
    report = load_style_lora(unet, tmp_path / "lora.safetensors", strength=1.0)
    assert (len(report.used), report.unused, report.ranks, report.alphas) == (32, (), (4,), (2.0,))
    z, t, text = question()
    with torch.no_grad(), routed(unet, STYLE), routed(method.unet, STYLE):
        torch.testing.assert_close(unet(z, t, text).sample, method.unet(z, t, text).sample, rtol=0, atol=2e-4)


def test_previews_show_each_prompt(trained: tuple[StyleLoRA, L.Trainer]) -> None:
    method, _ = trained
    with torch.no_grad():
        result = method.preview()["result"]
        again = method.preview()["result"]
    assert tuple(result.shape) == (1, 3, 32, 32)
    assert result.abs().max() <= 1
    assert torch.equal(result, again)
