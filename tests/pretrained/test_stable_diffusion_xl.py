"""SDXL from its folder and from a single file: parts, conditions, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch

from lightning_styles.errors import UserError
from lightning_styles.pretrained.stable_diffusion import Text, embed_prompts, load_stable_diffusion
from tests.micro import Micro

pytest_plugins = ["tests.micro"]
PROMPTS = ["a photo of a woman", "", "cartoon style, turn into a drawing"]


def test_both_text_encoders_are_loaded_frozen(micro: Micro) -> None:
    base = load_stable_diffusion(micro.base_xl)
    assert base.is_xl
    assert not load_stable_diffusion(micro.base).is_xl
    parts = (base.unet, base.vae, base.text_encoder, base.text_encoder_2)
    assert not any(p.requires_grad for part in parts for p in part.parameters())
    assert not any(module.training for part in parts for module in part.modules())


def test_the_text_is_that_of_the_library(micro: Micro) -> None:
    base = load_stable_diffusion(micro.base_xl)
    with torch.no_grad():
        text = embed_prompts(base, PROMPTS)
        states, _, pooled, _ = base.pipeline().encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(text.states, states, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(text.pooled, pooled, rtol=1e-5, atol=1e-6)
    again = Text.cat([embed_prompts(base, [prompt]) for prompt in PROMPTS])
    assert torch.equal(again.states, text.states)
    assert torch.equal(again.pooled, text.pooled)  # type: ignore[arg-type]
    assert text.states.shape[-1] == base.unet.config.cross_attention_dim
    assert (text.pooled[0] - text.pooled[2]).abs().max() > 1e-3  # type: ignore[index]


def test_stable_diffusion_1_has_no_pooled_text(micro: Micro) -> None:
    text = embed_prompts(load_stable_diffusion(micro.base), PROMPTS)
    assert text.pooled is None


def test_another_autoencoder_takes_the_place_of_the_own(micro: Micro) -> None:
    own, other = load_stable_diffusion(micro.base_xl), load_stable_diffusion(micro.other_xl)
    mixed = load_stable_diffusion(micro.base_xl, vae=f"{micro.other_xl}/vae")
    key = "encoder.conv_in.weight"
    assert torch.equal(mixed.vae.state_dict()[key], other.vae.state_dict()[key])
    assert not torch.equal(mixed.vae.state_dict()[key], own.vae.state_dict()[key])
    assert mixed.sha256 == own.sha256


def test_another_autoencoder_is_named_when_it_is_none(micro: Micro) -> None:
    with pytest.raises(UserError, match="base/unet is not an autoencoder in diffusers layout that can be used"):
        load_stable_diffusion(micro.base, vae=f"{micro.base}/unet")


def test_a_base_without_its_second_half_is_refused(micro: Micro, tmp_path: Path) -> None:
    for part in ("text_encoder_2", "tokenizer_2"):
        copy = Path(shutil.copytree(micro.base_xl, tmp_path / part))
        shutil.rmtree(copy / part)
        with pytest.raises(UserError, match="is not a Stable Diffusion base in diffusers layout"):
            load_stable_diffusion(str(copy))


def test_a_base_with_a_foreign_text_encoder_is_refused(micro: Micro, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(micro.base_xl, tmp_path / "base"))
    shutil.rmtree(copy / "text_encoder")
    shutil.copytree(Path(micro.base_xl) / "text_encoder_2", copy / "text_encoder")
    with pytest.raises(UserError, match="mixes two models"):
        load_stable_diffusion(str(copy))


@pytest.mark.parametrize("method", ["sms.SMS", "sdedit.SDEdit"])
def test_methods_of_stable_diffusion_1_say_so_before_they_load(
    micro: Micro, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    from lightning_styles.pretrained import stable_diffusion
    from lightning_styles.required_files import import_class

    monkeypatch.setattr(stable_diffusion, "_from_folder", None)  # not called
    weights = {"weights": {"style": 1.0, "identity": 0.0}} if method == "sms.SMS" else {}
    model = import_class(f"lightning_styles.methods.{method}")(base=micro.base_xl, style="cartoon", **weights)
    load = getattr(model, "_load_networks", model.configure_model)
    with pytest.raises(UserError, match="base_xl is SDXL, which this method does not take yet; choose"):
        load()
