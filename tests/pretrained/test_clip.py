"""CLIP from folders and files: the architecture and the activation are those that a config beside the weights says."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_styles.errors import UserError
from lightning_styles.pretrained import TINY
from lightning_styles.pretrained.clip import CONFIG, WEIGHTS, load_clip
from lightning_styles.pretrained.headers import check_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CLIP that a test may change."""
    return Path(shutil.copytree(TINY / "clip", tmp_path / "clip"))


def seen(name: Path) -> torch.Tensor:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return load_clip(str(name)).image(images)


def test_a_file_is_read_by_the_config_beside_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = seen(TINY / "clip")
    state = load_file(folder / WEIGHTS)
    assert torch.equal(seen(folder / WEIGHTS), expected)
    (folder / WEIGHTS).unlink()
    for name, content in (("a.pt", {"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}),
                          ("b.bin", {f"_orig_mod.{k}": v for k, v in state.items()})):  # fmt: skip
        torch.save(content, folder / name)
        assert torch.equal(seen(folder / name), expected)
    assert torch.equal(seen(folder), expected)  # b.bin
    assert caplog.records == []
    assert logging.getLogger().isEnabledFor(logging.WARNING)


def test_the_activation_is_that_of_the_config(folder: Path) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / CONFIG).write_text(json.dumps(config))
    assert (seen(folder / WEIGHTS) - seen(TINY / "clip")).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["ViT-B-32.safetensors", "ViT-B-32.pt", "laion.bin"])
def test_weights_alone_are_refused(folder: Path, name: str) -> None:
    (folder / WEIGHTS).rename(folder.parent / name)
    message = rf"{name} does not say which .*activation .quick_gelu.* expected the {CONFIG} of this model beside it"
    for refused in (load_clip, lambda path: check_header(Path(path), "clip")):
        with pytest.raises(UserError, match=message):
            refused(str(folder.parent / name))


def test_incomplete_and_foreign_folders_are_refused(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    key = "visual.conv1.weight"
    save_file(state | {key: state[key][..., :4].contiguous()}, folder / WEIGHTS)
    with pytest.raises(UserError, match=rf"{WEIGHTS} does not fit CLIP: 1 shaped .* \(128, 3, 8, 4\) instead of"):
        load_clip(str(folder))
    save_file(state | {key: state[key] * torch.nan}, folder / WEIGHTS)
    with pytest.raises(UserError, match=f"{WEIGHTS} is damaged: {key} holds NaN"):
        load_clip(str(folder))
    save_file({name: value for name, value in state.items() if name != key}, folder / WEIGHTS)
    with pytest.raises(UserError, match=f"1 keys missing .first {key}"):
        load_clip(str(folder))
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(UserError, match=f"{WEIGHTS} is truncated or no safetensors file"):
        load_clip(str(folder))
    (folder / CONFIG).write_text("{")
    with pytest.raises(UserError, match=f"{CONFIG} describes no CLIP that open_clip can build"):
        load_clip(str(folder))
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=f"has no weights; expected {WEIGHTS}"):
        load_clip(str(folder))
    (folder / CONFIG).unlink()
    with pytest.raises(UserError, match=f"expected the {CONFIG} of this model in it"):
        load_clip(str(folder))
