"""Style LoRA files of every format become the same adapter; others are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.models.adapters import adapter_parameters, add_lora, lora_layers, routed
from lightning_styles.pretrained.style_lora import load_style_lora, merged_delta
from tests.golden.fill import FOLDER, load_case, rounding_of, values
from tests.golden.sms_world import make_unet

CASE, EXPECTED = load_case("sms/c_kohya")
FILE = FOLDER / "sms" / CASE["input_file"]
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.0.resnets.0.conv1"
EMBEDDING = "time_embedding.linear_1"


@pytest.fixture
def unet() -> nn.Module:
    return make_unet(CASE["config"], CASE["config"]["seed"] + 1)


def kohya(name: str) -> str:
    return f"lora_unet_{name.replace('.', '_')}"


def deltas(unet: nn.Module, name: str = "style") -> dict[str, Tensor]:
    """What an adapter adds to the weight of each module."""
    return {path: layer.get_delta_weight(name) for path, layer in lora_layers(unet) if name in layer.lora_A}


def factors(
    unet: nn.Module, names: tuple[str, ...] = (Q, OUT, CONV), rank: int = 3
) -> dict[str, tuple[Tensor, Tensor]]:
    """Down and up factors for modules of a UNet."""
    found = {}
    for name in names:
        out, *rest = unet.get_submodule(name).weight.shape
        found[name] = (
            values(f"{name}.down", (rank, *rest)),
            values(f"{name}.up", (out, rank, *[1] * (len(rest) - 1))),
        )
    return found


def write(path: Path, layers: dict[str, tuple[Tensor, Tensor]], form: str, alpha: float | None = None) -> Path:
    """A LoRA file in the given format."""
    state, metadata = {}, {}
    for name, (down, up) in layers.items():
        if form == "kohya":
            keys = f"{kohya(name)}.lora_down.weight", f"{kohya(name)}.lora_up.weight"
            if alpha is not None:
                state[f"{kohya(name)}.alpha"] = torch.tensor(alpha)
        elif form == "diffusers, old" and "attn" in name:
            attention, _, projection = name.removesuffix(".0").rpartition(".")
            keys = tuple(f"unet.{attention}.processor.{projection}_lora.{x}.weight" for x in ("down", "up"))
        elif form == "diffusers, old":
            keys = f"unet.{name}.lora.down.weight", f"unet.{name}.lora.up.weight"
        else:
            prefix = {"diffusers": "unet.", "peft": "base_model.model.", "bare": ""}[form]
            keys = f"{prefix}{name}.lora_A.weight", f"{prefix}{name}.lora_B.weight"
        state |= dict(zip(keys, (down, up), strict=True))
    if form == "diffusers" and alpha is not None:
        metadata = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": alpha, "unet.r": 3})}
    if form == "peft" and alpha is not None:
        path = path.with_name("adapter_model.safetensors")
        path.with_name("adapter_config.json").write_text(json.dumps({"lora_alpha": alpha, "r": 3}))
    save_file({key: value.contiguous() for key, value in state.items()}, path, metadata)
    return path


def test_a_kohya_file_agrees_with_the_reference(unet: nn.Module) -> None:
    before = {key: p.clone() for key, p in unet.named_parameters()}
    report = load_style_lora(unet, FILE)
    assert sorted(report.used) == sorted(CASE["touched_modules"])
    assert (report.unused, report.ranks, report.alphas) == ((), (4, 6), (1.0, 4.0, 8.0))
    assert report.skipped == (
        "text_model.encoder.layers.0.mlp.fc1",
        "text_model.encoder.layers.0.self_attn.q_proj",
    )
    assert "48 layers used, 0 unused, 2 of text encoders skipped" in str(report)
    for path, delta in deltas(unet).items():
        base = unet.get_submodule(path).get_base_layer().weight
        assert torch.equal(base, before[f"{path}.weight"])
        torch.testing.assert_close(base + delta, EXPECTED[f"merged32.{path}.weight"], rtol=1e-5, atol=1e-5)


def test_the_reference_merge_agrees_with_the_reference(unet: nn.Module) -> None:
    before = {key: p.clone() for key, p in unet.state_dict().items()}
    report = load_style_lora(unet, FILE, merge="reference")
    after = unet.state_dict()
    assert after.keys() == before.keys()
    for key in (key for key in EXPECTED if key.startswith("merged.")):
        name = key.removeprefix("merged.")
        tolerance = rounding_of(torch.float16, EXPECTED[key] - before[name])
        torch.testing.assert_close(after[name], EXPECTED[key], **tolerance)
    assert {key.removesuffix(".weight") for key in after if not torch.equal(after[key], before[key])} == set(
        report.used
    )
    assert len(report.skipped) == 2


def test_the_reference_product_is_rounded_to_half_precision() -> None:
    up, down = values("up", (6, 4), 1), values("down", (4, 5), 2)
    exact, found = merged_delta(up, down, 2.0, 0.8), merged_delta(up, down, 2.0, 0.8, torch.float16)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), exact, **rounding_of(torch.float16, exact))


def test_merged_delta_in_float32_agrees_with_the_reference(unet: nn.Module) -> None:
    state = load_file(FILE)
    for name in CASE["touched_modules"]:
        up, down, alpha = (state[f"{kohya(name)}.{x}"] for x in ("lora_up.weight", "lora_down.weight", "alpha"))
        found = unet.get_submodule(name).weight + merged_delta(up, down, float(alpha), 0.8)
        torch.testing.assert_close(found, EXPECTED[f"merged32.{name}.weight"], rtol=1e-5, atol=1e-5)


def test_the_adapter_is_frozen_routed_and_leaves_others_alone(unet: nn.Module) -> None:
    fake = add_lora(unet, "fake", rank=2, alpha=2)
    z, t, text = torch.ones(1, 4, 16, 16), torch.tensor([300]), torch.ones(1, 7, 32)
    state = torch.get_rng_state()
    load_style_lora(unet, FILE)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad for p in fake.values())
    assert not any(p.requires_grad for p in adapter_parameters(unet, "style").values())
    merged = make_unet(CASE["config"], CASE["config"]["seed"] + 1)
    base = merged(z, t, text).sample
    load_style_lora(merged, FILE, merge="reference")
    with torch.no_grad(), routed(unet, ["style", None]):
        found = unet(torch.cat([z, z]), torch.cat([t, t]), torch.cat([text, text])).sample
    torch.testing.assert_close(found[:1], merged(z, t, text).sample, rtol=0.01, atol=2e-3)
    torch.testing.assert_close(found[1:], base, rtol=1e-4, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.05


@pytest.mark.parametrize("alpha", [None, 0.0, 1.5])
@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_every_format_gives_the_same_adapter(unet: nn.Module, tmp_path: Path, form: str, alpha: float | None) -> None:
    layers = factors(unet)
    report = load_style_lora(unet, write(tmp_path / "x.safetensors", layers, form, alpha), strength=0.5)
    assert set(report.used) == set(layers)
    assert (report.ranks, report.alphas) == ((3,), (alpha or 3.0,))
    for name, delta in deltas(unet).items():
        down, up = layers[name]
        expected = 0.5 * (alpha or 3.0) / 3 * torch.einsum("or,r...->o...", up.flatten(1), down)
        torch.testing.assert_close(delta, expected)


@pytest.mark.parametrize("form", ["diffusers, old", "bare"])
def test_older_names_are_understood(unet: nn.Module, tmp_path: Path, form: str) -> None:
    layers = factors(unet)
    report = load_style_lora(unet, write(tmp_path / "x.safetensors", layers, form), strength=1.0)
    assert set(report.used) == set(layers)
    for name, delta in deltas(unet).items():
        down, up = layers[name]
        torch.testing.assert_close(delta, torch.einsum("or,r...->o...", up.flatten(1), down))


def test_a_folder_and_a_half_precision_unet(unet: nn.Module, tmp_path: Path) -> None:
    write(tmp_path / "pytorch_lora_weights.safetensors", factors(unet, (Q, EMBEDDING)), "diffusers")
    report = load_style_lora(unet.to(torch.bfloat16), tmp_path)
    assert set(report.used) == {Q, EMBEDDING}
    assert {p.dtype for p in adapter_parameters(unet, "style").values()} == {torch.bfloat16}


def test_layers_without_a_place_are_reported(unet: nn.Module, tmp_path: Path) -> None:
    layers = factors(unet, (Q,)) | {"down_blocks.7.attentions.0.proj_in": (torch.ones(2, 32), torch.ones(32, 2))}
    report = load_style_lora(unet, write(tmp_path / "x.safetensors", layers, "diffusers"))
    assert report.used == (Q,)
    assert report.unused == ("down_blocks.7.attentions.0.proj_in",)


def test_the_text_encoder_part_is_loaded_on_demand(unet: nn.Module) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    encoder = CLIPTextModel(config).requires_grad_(False)
    report = load_style_lora(unet, FILE, text_encoder=encoder, strength=0.5)
    assert report.skipped == ()
    state = load_file(FILE)
    found = deltas(encoder)
    assert len(found) == 2
    for path, delta in found.items():
        layer = f"lora_te_text_model_{path.removeprefix('text_model.').replace('.', '_')}"
        up, down, alpha = (state[f"{layer}.{x}"] for x in ("lora_up.weight", "lora_down.weight", "alpha"))
        torch.testing.assert_close(delta, merged_delta(up, down, float(alpha), 0.5))


def sdxl(path: Path) -> None:
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{name}.lora_down.weight": torch.ones(2, 2048), f"{name}.lora_up.weight": torch.ones(640, 2)}, path)


def flux(path: Path) -> None:
    name = "transformer.single_transformer_blocks.0.attn.to_q"
    save_file({f"{name}.lora_A.weight": torch.ones(2, 8), f"{name}.lora_B.weight": torch.ones(8, 2)}, path)


def foreign(word: str) -> Callable[[Path], None]:
    return lambda path: save_file({f"{kohya(Q)}.{word}": torch.ones(2, 2)}, path)


def truncated(path: Path) -> None:
    path.write_bytes(FILE.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (sdxl, "is a LoRA for SDXL.*for a text embedding of width 32"),
        (flux, "is a LoRA for a transformer.*none of its 1 layers"),
        (foreign("hada_w1_a"), "is a LoHa file"),
        (foreign("lokr_w1"), "is a LoKr file"),
        (foreign("dora_scale"), "is a DoRA file"),
        (foreign("weight"), "holds no LoRA layers"),
        (truncated, "truncated"),
    ],
    ids=["SDXL", "Flux", "LoHa", "LoKr", "DoRA", "no LoRA", "truncated"],
)
def test_unfit_files_are_refused_and_leave_the_unet_alone(
    unet: nn.Module, tmp_path: Path, make: Callable[[Path], None], message: str
) -> None:
    make(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message):
        load_style_lora(unet, tmp_path / "x.safetensors")
    assert not lora_layers(unet)


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".bin"])
def test_pickles_are_refused_unread(unet: nn.Module, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"")
    with pytest.raises(UserError, match="pickle"):
        load_style_lora(unet, path)


def test_missing_files_are_named(unet: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no LoRA file at"):
        load_style_lora(unet, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="no LoRA in the folder"):
        load_style_lora(unet, tmp_path)
