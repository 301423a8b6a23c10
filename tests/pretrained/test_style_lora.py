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
from lightning_styles.pretrained.lora_export import save_lora
from lightning_styles.pretrained.lora_files import read_lora
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


def layers_of(unet: nn.Module, here: int, elsewhere: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Layers of which the UNet has `here` and lacks `elsewhere`."""
    names = [name for name, module in unet.named_modules() if name.endswith(("to_q", "to_v"))][:here]
    foreign = {f"down_blocks.7.{i}.to_q": (torch.ones(2, 32), torch.ones(32, 2)) for i in range(elsewhere)}
    return factors(unet, tuple(names)) | foreign


@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft"])
def test_a_lora_that_fits_in_part_needs_permission(unet: nn.Module, tmp_path: Path, form: str) -> None:
    path = write(tmp_path / "x.safetensors", layers_of(unet, 8, 1), form)
    with pytest.raises(UserError, match=r"8 of its 9 layers exist here, the first other is .*, or set lora_partial"):
        load_style_lora(unet, path)
    assert not lora_layers(unet)
    report = load_style_lora(unet, path, partial=True)
    assert (len(report.used), len(report.unused)) == (8, 1)


def test_a_lora_with_few_layers_elsewhere_is_taken(unet: nn.Module, tmp_path: Path) -> None:
    report = load_style_lora(unet, write(tmp_path / "x.safetensors", layers_of(unet, 9, 1), "diffusers"))
    assert report.unused == ("down_blocks.7.0.to_q",)


def test_text_layers_do_not_count_as_lacking(unet: nn.Module, tmp_path: Path) -> None:
    state = load_file(write(tmp_path / "x.safetensors", factors(unet, (Q,)), "kohya"))
    text = {key.replace(kohya(Q), f"lora_te_text_model_{i}"): value for i in range(9) for key, value in state.items()}
    save_file({key: value.clone() for key, value in (state | text).items()}, tmp_path / "y.safetensors")
    report = load_style_lora(unet, tmp_path / "y.safetensors", merge="reference")
    assert (len(report.used), len(report.unused), len(report.skipped)) == (1, 0, 9)
    save_file({key: value.clone() for key, value in text.items()}, tmp_path / "z.safetensors")
    with pytest.raises(UserError, match="it has no layers for it"):
        load_style_lora(unet, tmp_path / "z.safetensors", merge="reference")


@pytest.mark.parametrize("wrapper", ["_orig_mod.", "module.", "_fsdp_wrapped_module._orig_mod."])
@pytest.mark.parametrize("form", ["kohya", "diffusers", "peft", "bare"])
def test_names_of_compiled_and_wrapped_models_are_understood(tmp_path: Path, form: str, wrapper: str) -> None:
    path = write(tmp_path / "x.safetensors", {Q: (torch.ones(3, 32), torch.ones(32, 3))}, form)
    state, expected = load_file(path), read_lora(path).state
    inside = {"kohya": "lora_unet_", "diffusers": "unet.", "peft": "base_model.model.", "bare": ""}[form]
    mark = wrapper.replace(".", "_") if form == "kohya" else wrapper
    names = [{key: wrapper + key for key in state}]
    names += [] if wrapper == "module." else [{key: key.replace(inside, inside + mark, 1) for key in state}]
    for new in names:
        save_file({new[key]: value for key, value in state.items()}, path)
        assert read_lora(path).state.keys() == expected.keys()


def test_names_with_and_without_a_wrapper_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", {Q: (torch.ones(3, 32), torch.ones(32, 3))}, "bare")
    state = load_file(path)
    save_file(state | {f"_orig_mod.{key}": value.clone() for key, value in state.items()}, path)
    with pytest.raises(UserError, match=r"x.safetensors holds .* twice, with and without a wrapper such as _orig_mod"):
        read_lora(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
def test_low_precision_is_read_as_what_it_stands_for(unet: nn.Module, tmp_path: Path, dtype: torch.dtype) -> None:
    layers = {name: (down.to(dtype), up.to(dtype)) for name, (down, up) in factors(unet).items()}
    load_style_lora(unet, write(tmp_path / "x.safetensors", layers, "diffusers"), strength=1.0)
    for name, delta in deltas(unet).items():
        down, up = (x.float() for x in layers[name])
        torch.testing.assert_close(delta, torch.einsum("or,r...->o...", up.flatten(1), down))


UP, DOWN, ALPHA = (f"lora_unet_{Q.replace('.', '_')}.{x}" for x in ("lora_up.weight", "lora_down.weight", "alpha"))
LARGE, LIST = torch.tensor(1e30), torch.tensor([4.0, 8.0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({ALPHA: LIST}, r"alpha of .*to_q is \[4.0, 8.0\], expected a number up to 3000"),
        ({ALPHA: torch.tensor(float("nan"))}, "alpha of .* is nan, expected a number"),
        ({ALPHA: torch.tensor(float("inf"))}, "alpha of .* is inf, expected a number"),
        ({ALPHA: LARGE}, "alpha of .* is 1.0000000150474662e.30, expected a number up to 3000"),
        ({ALPHA: torch.zeros(0)}, r"alpha of .* is \[\], expected a number"),
        ({UP: torch.zeros(32, 0), DOWN: torch.zeros(0, 32)}, r"damaged: .* is \(0, 32\), no matrix"),
        ({UP: torch.zeros(32)}, r"damaged: .* is \(32,\), no matrix"),
        ({UP: torch.full((32, 3), 1e30)}, "damaged: .* no matrix of finite numbers"),
        ({UP: torch.full((32, 3), torch.nan).to(torch.float8_e5m2)}, "damaged: .* no matrix of finite numbers"),
        ({UP: torch.zeros(32, 3, dtype=torch.int8)}, "packed: .* is int8; choose a LoRA in floating point"),
        ({UP.replace("weight", "bias"): torch.zeros(32)}, "is a LoRA with biases file"),
        ({UP.replace("lora_up.weight", "scale_weight"): LARGE}, "is a LoRA of scaled 8-bit numbers file"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_damaged_layer_is_refused_in_one_sentence(tmp_path: Path, changes: dict[str, Tensor], message: str) -> None:
    state = {DOWN: torch.ones(3, 32), UP: torch.ones(32, 3), ALPHA: torch.tensor(2.0)}
    save_file(state | changes, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=f"x.safetensors.*{message}"):
        read_lora(tmp_path / "x.safetensors")


HANGS = "(.*.*.*.*.*.*.*.*)*x"


@pytest.mark.parametrize("beside", [True, False], ids=["beside the file", "in its header"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": "16"}, "lora_alpha is '16', expected a number up to"),
        ({"lora_alpha": [16]}, r"lora_alpha is \[16\], expected a number"),
        ({"lora_alpha": {}}, "lora_alpha is {}, expected a number"),
        ({"lora_alpha": True}, "lora_alpha is True, expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan, expected a number"),
        ({"lora_alpha": 10**400}, "lora_alpha is 1000.*, expected a number"),
        ({"lora_alpha": 8, "use_rslora": "yes"}, "use_rslora is 'yes', expected true or false"),
        ({"lora_alpha": 8, "alpha_pattern": [1]}, "alpha_pattern is a list, expected alphas by name"),
        ({"lora_alpha": 8, "alpha_pattern": {HANGS: 1}}, "alpha_pattern has .*, expected names of layers"),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q(": 1}}, "alpha_pattern has 'to_q.', expected names of layers"),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": None}}, "lora_alpha is None, expected a number"),
        ({"lora_alpha": 8, "alpha_pattern": {"to_q": float("-inf")}}, "lora_alpha is -inf, expected a number"),
        ([8], "the configuration of .* is a list, expected settings such as lora_alpha"),
        ("[" * 100_000, "the configuration of .* is no JSON that can be read .*recursion"),
        ("[]" + " " * 1_000_001, "the configuration of .*it has 1000003 characters, expected at most 1000000"),
        ("{", "the configuration of .* is no JSON that can be read"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_an_odd_configuration_is_refused_in_one_sentence(
    tmp_path: Path, config: object, message: str, beside: bool
) -> None:
    path = write(tmp_path / "adapter_model.safetensors", {Q: (torch.ones(3, 32), torch.ones(32, 3))}, "peft")
    text = config if isinstance(config, str) else json.dumps(config)
    if beside:
        path.with_name("adapter_config.json").write_text(text)
    else:
        save_file(load_file(path), path, metadata={"lora_adapter_metadata": text})
    with pytest.raises(UserError, match=message):
        read_lora(path)


def drawn(unet: nn.Module, name: str, **settings: object) -> dict[str, Tensor]:
    """Add an adapter of PEFT with random factors; what it adds to each weight."""
    from peft import LoraConfig

    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["to_q", "to_v", "conv1"]} | settings
    unet.add_adapter(LoraConfig(**settings), adapter_name=name)  # type: ignore[operator]
    for key, p in adapter_parameters(unet, name).items():
        p.data = values(key, tuple(p.shape))
    return {path: delta.detach() for path, delta in deltas(unet, name).items()}


VARIED = {"rank_pattern": {"to_q": 8, CONV: 2}, "alpha_pattern": {Q: 1.5, "to_v": 16, "to_q": 3}}


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, VARIED, VARIED | {"use_rslora": True}])
def test_what_peft_writes_has_the_strength_that_peft_gives_it(
    unet: nn.Module, tmp_path: Path, settings: dict[str, object]
) -> None:
    from peft.utils import get_peft_model_state_dict

    expected = drawn(unet, "theirs", **settings)
    state = get_peft_model_state_dict(unet, adapter_name="theirs")
    config = unet.peft_config["theirs"].to_dict()  # type: ignore[index,union-attr]
    kept = {key: config[key] for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")}
    save_file(
        {f"base_model.model.{k}": v.contiguous() for k, v in state.items()}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps(kept))
    load_style_lora(unet, tmp_path, strength=1.0)
    found = deltas(unet)
    assert found.keys() == expected.keys()
    for path, delta in found.items():
        torch.testing.assert_close(delta, expected[path], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", ["kohya", "diffusers", "official"])
@pytest.mark.parametrize("settings", [{"use_rslora": True}, VARIED])
def test_an_export_keeps_the_strength_of_every_layer(
    unet: nn.Module, tmp_path: Path, layout: str, settings: dict[str, object]
) -> None:
    expected = drawn(unet, "theirs", **settings)
    for step, name in enumerate(("theirs", "again")):  # of what was trained, and of what was read
        path = tmp_path / f"{step}.safetensors"
        save_lora(unet, path, layout, name, dtype=torch.float32)
        load_style_lora(unet, path, name=("again", "style")[step], strength=1.0)
    for name in ("again", "style"):
        found = deltas(unet, name)
        assert found.keys() == expected.keys()
        for layer, delta in found.items():
            torch.testing.assert_close(delta, expected[layer], rtol=1e-4, atol=1e-5)


def test_the_strength_of_an_imported_lora_goes_with_its_export(unet: nn.Module, tmp_path: Path) -> None:
    load_style_lora(unet, FILE, strength=0.5)
    save_lora(unet, tmp_path / "x.safetensors", "kohya", dtype=torch.float32)
    load_style_lora(unet, tmp_path / "x.safetensors", name="again", strength=1.0)
    again = deltas(unet, "again")
    for layer, delta in deltas(unet).items():
        torch.testing.assert_close(again[layer], delta, rtol=1e-4, atol=1e-5)


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
