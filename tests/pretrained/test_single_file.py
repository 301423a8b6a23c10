"""A base model from one file: the same as its folder, or refused in one sentence."""

import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.pretrained.stable_diffusion import check_base, load_stable_diffusion
from lightning_styles.pretraining.latent_diffusion import SCHEDULER
from tests.ldm_layout import write_single_file
from tests.micro import Micro

pytest_plugins = ["tests.micro"]

UNET, VAE = "model.diffusion_model.", "first_stage_model."
TEXT, TEXT_2 = "cond_stage_model.transformer.text_model.", "conditioner.embedders.1.model."
FIRST, KEYS = f"{UNET}input_blocks.0.0.weight", f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
EMPTY = torch.zeros(0)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def folder(micro: Micro, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the registered bases lie, and sd.safetensors and xl.safetensors of the same architectures."""
    folder = tmp_path_factory.mktemp("models")
    for name, base, other in (("sd", micro.base, micro.other), ("xl", micro.base_xl, micro.other_xl)):
        shutil.copytree(base, folder / {"sd": "stable-diffusion-v1-5", "xl": "stable-diffusion-xl"}[name])
        write_single_file(Path(other), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def _registered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIGHTNING_STYLES_MODELS", str(folder))


def changed(folder: Path, path: Path, change: State, lacks: str = "", name: str = "sd", **metadata: str) -> str:
    """A copy of a single file with some tensors changed, and without those whose names begin with `lacks`."""
    state = load_file(folder / f"{name}.safetensors")
    kept = {key: value for key, value in state.items() if not lacks or not key.startswith(lacks)}
    assert not lacks or len(kept) < len(state)
    save_file(kept | change, path / "changed.safetensors", metadata=metadata or None)
    return str(path / "changed.safetensors")


@pytest.mark.parametrize("name", ["sd", "xl"])
@pytest.mark.parametrize("form", ["plain", "compiled", "half", "8 bits"])
def test_a_single_file_is_the_same_base(micro: Micro, folder: Path, tmp_path: Path, name: str, form: str) -> None:
    state = load_file(folder / f"{name}.safetensors")
    dtype = {"half": torch.float16, "8 bits": torch.float8_e4m3fn}.get(form, torch.float32)
    state = {key: value.to(dtype) for key, value in state.items()}
    if form == "compiled":
        state = {key.replace(".", "._orig_mod.", 2): value for key, value in state.items()}
    more = {"model_ema.decay": torch.ones(()), "cond_stage_model.logit_scale": torch.ones(())}
    save_file(state | more, tmp_path / "dreamy.safetensors")
    other = {"sd": micro.other, "xl": micro.other_xl}[name]
    single, expected = load_stable_diffusion(str(tmp_path / "dreamy.safetensors")), load_stable_diffusion(other)
    for part in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if name == "xl" else [])):
        own, theirs = getattr(single, part).state_dict(), getattr(expected, part).state_dict()
        assert own.keys() == theirs.keys()
        assert [key for key in own if not torch.equal(own[key], theirs[key].to(dtype).float())] == []
        assert not any(module.training for module in getattr(single, part).modules())
        assert not any(p.requires_grad or p.dtype != torch.float32 for p in getattr(single, part).parameters())
    assert single.is_xl == expected.is_xl
    shared = [key for key in SCHEDULER if key in expected.scheduler]
    assert {key: single.scheduler[key] for key in shared} == {key: SCHEDULER[key] for key in shared}
    assert single.sha256 != expected.sha256


V = "expected a model that predicts epsilon"
HEADERS: list[tuple[State, str, dict[str, str], str]] = [
    ({"v_pred": EMPTY}, "", {}, f"it says v_pred, .*{V}"),
    ({"v_pred": EMPTY, "ztsnr": EMPTY}, "", {}, V),
    ({"ztsnr": EMPTY}, "", {}, f"it says ztsnr, .*{V}"),
    ({"edm_mean": EMPTY, "edm_std": EMPTY}, "", {}, f"it says edm_mean, .*{V}"),
    ({"edm_vpred.sigma_max": torch.tensor(120.0)}, "", {}, f"it says edm_vpred.sigma_max, .*{V}"),
    ({}, "", {"modelspec.prediction_type": "v"}, f"it says modelspec.prediction_type v, .*{V}"),
    ({}, "", {"modelspec.predict_key": "v"}, f"it says modelspec.predict_key v, .*{V}"),
    ({}, "", {"modelspec.prediction_key": "V_Prediction"}, V),
    ({}, "", {"ss_v_parameterization": "True"}, V),
    ({}, "", {"ss_zero_terminal_snr": "True"}, V),
    ({}, "", {"modelspec.architecture": "stable-diffusion-xl-v1-edm"}, V),
    ({}, UNET, {}, "it has no tensors of a UNet"),
    ({}, VAE, {}, "it has no autoencoder"),
    ({}, TEXT, {}, "it has no text encoder"),
    ({FIRST: torch.zeros(16, 9, 3, 3)}, "", {}, "its UNet is for inpainting: it takes 9 channels, expected 4"),
    ({FIRST: torch.zeros(16, 8, 3, 3)}, "", {}, "its UNet is for InstructPix2Pix: it takes 8 channels"),
    ({FIRST: torch.zeros(16)}, "", {}, "its UNet is for another use: it takes 0 channels"),
    ({KEYS: torch.zeros(16, 1024)}, "", {}, "it is Stable Diffusion 2.x, expected"),
    ({KEYS: torch.zeros(16, 1280)}, "", {}, "it is the refiner of SDXL, expected"),
    ({f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": EMPTY}, "", {}, "it is a transformer such as Flux"),
    ({f"{UNET}double_blocks.0.img_attn.qkv.weight": EMPTY}, "", {}, "it is a transformer such as Flux"),
    (
        {f"{UNET}input_blocks.0.0.scale_weight": torch.ones(())},
        "",
        {},
        "its weights are packed .*scale_weight of F32.; give it in half",
    ),
    ({"scaled_fp8": EMPTY}, "", {}, "its weights are packed"),
]


@pytest.mark.parametrize(("change", "lacks", "metadata", "message"), HEADERS)
def test_a_header_that_shows_another_model_is_refused_before_its_tensors_are_read(
    folder: Path, tmp_path: Path, change: State, lacks: str, metadata: dict[str, str], message: str
) -> None:
    path = changed(folder, tmp_path, change, lacks, **metadata)
    with pytest.raises(UserError, match=f"changed.safetensors is not a Stable Diffusion base that can .*{message}"):
        check_base(Path(path))


@pytest.mark.parametrize(
    "metadata",
    [{"modelspec.prediction_type": "epsilon", "modelspec.architecture": "stable-diffusion-v1"},
     {"ss_v_parameterization": "False", "ss_zero_terminal_snr": "None"}],
)  # fmt: skip
def test_a_header_that_says_epsilon_is_taken(folder: Path, tmp_path: Path, metadata: dict[str, str]) -> None:
    assert check_base(Path(changed(folder, tmp_path, {}, **metadata))) == folder / "stable-diffusion-v1-5"


@pytest.mark.parametrize("lacks", [TEXT_2, "conditioner.embedders.0.", VAE])
def test_sdxl_needs_all_its_parts(folder: Path, tmp_path: Path, lacks: str) -> None:
    with pytest.raises(UserError, match="it has no (text encoder|autoencoder)"):
        check_base(Path(changed(folder, tmp_path, {}, lacks, name="xl")))


@pytest.mark.parametrize(
    ("name", "lacks", "message"),
    [
        ("sd", f"{UNET}output_blocks.1.0.in_layers.2.bias", r"its unet .* 1 keys missing .first up_blocks.0.resnets.1"),
        ("sd", f"{UNET}time_embed.0.weight", "its unet .* 1 keys missing .first time_embedding.linear_1.weight"),
        ("sd", f"{UNET}input_blocks.2.0.op.bias", "its unet .* 1 keys missing .first down_blocks.0.downsamplers"),
        (
            "sd",
            f"{VAE}decoder.mid.attn_1.q.bias",
            "its vae .* 1 keys missing .first decoder.mid_block.attentions.0",
        ),
        ("sd", f"{VAE}post_quant_conv", "its vae .* 2 keys missing .first post_quant_conv"),
        ("sd", f"{TEXT}encoder.layers.0.mlp.fc1.bias", "its text_encoder lacks 1 tensors, the first is .*fc1.bias"),
        ("sd", f"{TEXT}embeddings.token_embedding", "its text_encoder lacks 1 tensors"),
        ("xl", f"{UNET}label_emb.0.2.bias", "is missing|1 keys missing .first add_embedding"),
        ("xl", f"{TEXT_2}text_projection", "its text_encoder_2 lacks 1 tensors, the first is text_projection.weight"),
        ("xl", f"{TEXT_2}transformer.resblocks.1.attn.in_proj_bias", "its text_encoder_2 lacks 3 tensors"),
        ("xl", "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "its text_encoder lacks 1"),
    ],
)
def test_a_missing_tensor_is_named(folder: Path, tmp_path: Path, name: str, lacks: str, message: str) -> None:
    with pytest.raises(UserError, match=f"changed.safetensors is not a Stable Diffusion base .*{message}"):
        load_stable_diffusion(changed(folder, tmp_path, {}, lacks, name=name))


@pytest.mark.parametrize("key", [f"{UNET}out.2.bias", f"{VAE}encoder.conv_in.bias", f"{TEXT}final_layer_norm.bias"])
@pytest.mark.parametrize("damage", ["NaN", "infinity", "another shape", "packed"])
def test_a_damaged_tensor_is_refused(folder: Path, tmp_path: Path, key: str, damage: str) -> None:
    good = load_file(folder / "sd.safetensors")[key]
    bad = {"NaN": good * torch.nan, "infinity": good / 0 + torch.inf, "another shape": torch.zeros(len(good) + 1),
           "packed": torch.zeros(good.shape, dtype=torch.int8)}[damage]  # fmt: skip
    with pytest.raises(UserError, match=r"changed\.safetensors"):
        load_stable_diffusion(changed(folder, tmp_path, {key: bad}))


def test_a_missing_configuration_is_named_before_the_file_is_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIGHTNING_STYLES_MODELS", str(tmp_path))
    with pytest.raises(UserError, match="'stable-diffusion-v1-5' is not on this machine"):
        check_base(folder / "sd.safetensors")


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".bin"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, suffix: str) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return exec, (f"open({str(tmp_path / 'opened')!r}, 'w').close()",)

    file = tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="a pickle may run code and is not opened"):
        load_stable_diffusion(str(file))
    assert not (tmp_path / "opened").exists()
