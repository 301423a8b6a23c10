"""StyleGuidance: what becomes of LoRA files, the parts for text encoders included."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_styles.methods.style_guidance import StyleGuidance
from lightning_styles.pretrained.stable_diffusion import StableDiffusion, load_stable_diffusion
from tests.micro import TEXT, TEXT_LAYER, TEXT_XL, Micro

pytest_plugins = ["tests.micro"]
WORDS = ["a photo of a woman", "a drawing of hair"]


def told(base: StableDiffusion, words: list[str]) -> list[torch.Tensor]:
    """What diffusers' own pipeline tells the UNet: states, and the pooled ones of SDXL."""
    if base.is_xl:
        states, _, pooled, _ = base.pipeline().encode_prompt(words, do_classifier_free_guidance=False)
        return [states, pooled]
    return [base.pipeline().encode_prompt(words, "cpu", 1, False)[0]]


@torch.no_grad()
def merge(base: StableDiffusion, file: str, layers: dict[str, str]) -> None:
    """Write alpha / rank up down of a kohya file into the query layers of text encoders."""
    state = load_file(file)
    for part, layer in layers.items():
        up, down, alpha = (state[f"{layer}_{TEXT_LAYER}.{x}"] for x in ("lora_up.weight", "lora_down.weight", "alpha"))
        (weight,) = (
            module.weight
            for name, module in getattr(base, part).named_modules()
            if name.endswith("layers.0.self_attn.q_proj")
        )
        weight += alpha / len(down) * up @ down


@pytest.mark.parametrize("left_out", [None, *TEXT, *TEXT_XL])
def test_every_text_encoder_takes_its_part_of_a_lora(micro: Micro, tmp_path: Path, left_out: str | None) -> None:
    """The styled prompt goes through W + alpha / rank B A in each, the prompt itself through W."""
    xl = left_out not in TEXT
    path, whole = (micro.base_xl, micro.lora_xl_with_text) if xl else (micro.base, micro.lora_with_text)
    file = str(tmp_path / "style.safetensors")
    save_file({k: v for k, v in load_file(whole).items() if not k.startswith(left_out or "-")}, file)
    method = StyleGuidance(base=path, styles=[{"lora": file, "phrase": "in cartoon style", "share": 1.0}])
    method.configure_model()
    with method.pipeline("ddim") as pipeline, torch.no_grad():
        before, after = pipeline._groups(WORDS, None, method.styled(2.0), "guidance", 1.0, 1)
    (_, plain), (_, styled) = after

    untouched, merged = load_stable_diffusion(path), load_stable_diffusion(path)
    parts = dict(zip(("text_encoder", "text_encoder_2"), TEXT_XL if xl else TEXT, strict=False))
    merge(merged, file, {part: layer for part, layer in parts.items() if layer != left_out})
    with torch.no_grad():
        expected = told(untouched, WORDS), told(merged, [f"{word} in cartoon style" for word in WORDS])
        bare = told(untouched, [f"{word} in cartoon style" for word in WORDS])
    for found, wanted in zip((plain, styled), expected, strict=True):
        for one, other in zip((found.states, found.pooled), wanted, strict=False):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert torch.equal(before[0][1].states, plain.states)
    halves: list[Any] = [expected[1][0].split([16, 8] if xl else [16], -1), bare[0].split([16, 8] if xl else [16], -1)]
    moved = [(one - other).abs().max() > 1e-2 for one, other in zip(*halves, strict=True)]
    assert moved == [layer != left_out for layer in parts.values()]
