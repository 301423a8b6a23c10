"""A base model from its folder: what is loaded, frozen and refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.pretrained import fingerprint
from lightning_styles.pretrained.stable_diffusion import check_base, encode_prompts, load_stable_diffusion
from lightning_styles.pretraining.latent_diffusion import SCHEDULER
from tests.micro import WIDTH, Micro

pytest_plugins = ["tests.micro"]


@pytest.fixture
def copy(micro: Micro, tmp_path: Path) -> Path:
    """A base folder that a test may break."""
    return Path(shutil.copytree(micro.base, tmp_path / "base"))


def test_a_folder_gives_its_parts_frozen(micro: Micro) -> None:
    base = load_stable_diffusion(micro.base)
    for part in ("unet", "vae"):
        own = getattr(base, part).state_dict()
        saved = load_file(Path(micro.base) / part / "diffusion_pytorch_model.safetensors")
        assert own.keys() == saved.keys()
        assert all(torch.equal(own[key], saved[key]) for key in saved)
    for part in (base.unet, base.vae, base.text_encoder):
        assert not any(module.training for module in part.modules())
        assert not any(p.requires_grad or p.dtype != torch.float32 for p in part.parameters())
    assert {key: base.scheduler[key] for key in SCHEDULER} == SCHEDULER
    assert base.sha256 == fingerprint(Path(micro.base))


def test_a_text_encoder_of_older_transformers_is_read_whole(micro: Micro, copy: Path) -> None:
    file = copy / "text_encoder" / "model.safetensors"  # the names in Stable Diffusion 1.5
    state = {f"text_model.{key.removeprefix('text_model.')}": value for key, value in load_file(file).items()}
    state["text_model.embeddings.position_ids"] = torch.arange(12)[None]
    save_file(state, file, metadata={"format": "pt"})
    own, expected = (load_stable_diffusion(str(path)).text_encoder.state_dict() for path in (copy, micro.base))
    assert own.keys() == expected.keys()
    assert [key for key in own if not torch.equal(own[key], expected[key])] == []


def test_sides_are_multiples_of_the_vaes_factor_times_the_unets(micro: Micro) -> None:
    assert load_stable_diffusion(micro.base).multiple == 4 * 2


def test_half_precision_files_are_loaded_in_full_precision(copy: Path) -> None:
    for file in copy.rglob("*.safetensors"):
        save_file({key: value.half() for key, value in load_file(file).items()}, file, metadata={"format": "pt"})
    base = load_stable_diffusion(str(copy))
    dtypes = {p.dtype for part in (base.unet, base.vae, base.text_encoder) for p in part.parameters()}
    assert dtypes == {torch.float32}


def test_prompts_are_padded_and_cut_to_the_tokenizers_length(micro: Micro) -> None:
    base = load_stable_diffusion(micro.base)
    prompts = ["", "a photo", "a photo of a woman " * 9, "a photo of a woman " * 20]
    with torch.no_grad():
        text = encode_prompts(base.text_encoder, base.tokenizer, prompts)
        single = encode_prompts(base.text_encoder, base.tokenizer, ["a photo"])
    assert tuple(text.shape) == (4, 12, WIDTH)
    torch.testing.assert_close(text[1:2], single, rtol=0, atol=1e-5)
    torch.testing.assert_close(text[2], text[3], rtol=0, atol=1e-5)
    assert (text[0] - text[1]).abs().max() > 1e-2


def test_a_pipeline_over_the_parts_draws_a_picture(micro: Micro) -> None:
    base = load_stable_diffusion(micro.base)
    pipeline = base.pipeline()
    assert pipeline.unet is base.unet
    generator = torch.Generator().manual_seed(0)
    options = {"num_inference_steps": 2, "height": 32, "width": 48, "output_type": "pt", "generator": generator}
    assert tuple(pipeline("a photo", **options).images.shape) == (1, 3, 32, 48)


@pytest.mark.parametrize(
    "broken",
    [
        "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "scheduler/scheduler_config.json",
    ],
)  # fmt: skip
def test_a_folder_without_a_file_is_refused_by_name(copy: Path, broken: str) -> None:
    (copy / broken).unlink()
    with pytest.raises(UserError, match="base is not a Stable Diffusion base in diffusers layout"):
        load_stable_diffusion(str(copy))


@pytest.mark.parametrize(
    "broken", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors", "unet/config.json"]
)
def test_a_damaged_file_is_refused(copy: Path, broken: str) -> None:
    content = (copy / broken).read_bytes()
    (copy / broken).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="base is not a Stable Diffusion base"):
        load_stable_diffusion(str(copy))


def test_a_folder_without_a_tokenizer_is_refused(copy: Path) -> None:
    shutil.rmtree(copy / "tokenizer")
    with pytest.raises(UserError, match="it has no tokenizer/vocab.json"):
        load_stable_diffusion(str(copy))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_names_of_a_compiled_network_are_understood(micro: Micro, copy: Path, part: str) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    state = {f"_orig_mod.{key}": value for key, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    own, expected = (getattr(load_stable_diffusion(str(p)), part).state_dict() for p in (copy, micro.base))
    assert own.keys() == expected.keys()
    assert [key for key in own if not torch.equal(own[key], expected[key])] == []


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value * torch.nan, r"base: its \w+ is damaged: .* holds NaN or infinity"),
        (lambda value: value[..., None].repeat_interleave(2, -1), "base is not a Stable Diffusion base"),
        (lambda value: value.to(torch.int8), "base is not .* its weights are packed .* of I8.; give it in half"),
    ],
    ids=["NaN", "another shape", "packed"],
)
def test_a_damaged_tensor_is_refused(copy: Path, part: str, change: Callable[[Tensor], Tensor], message: str) -> None:
    (file,) = (copy / part).glob("*.safetensors")
    state = load_file(file)
    key = max(state)
    save_file(state | {key: change(state[key])}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=message):
        load_stable_diffusion(str(copy))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction_type": "v_prediction"}, "its scheduler says prediction_type='v_prediction', expected .* epsilon"),
        ({"prediction_type": "sample"}, "prediction_type='sample'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
    ],
)
def test_a_model_that_predicts_something_else_is_refused(copy: Path, change: dict[str, object], message: str) -> None:
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=message):
        check_base(copy)
    with pytest.raises(UserError, match=message):
        load_stable_diffusion(str(copy))
