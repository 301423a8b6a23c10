"""Files of diffusion autoencoders and P2 networks: official layouts, own ones, and all that must be refused."""

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.models.diffae import DiffAE, DiffAEConfig, LatentConfig
from lightning_styles.models.guided_unet import GuidedConfig, GuidedUNet
from lightning_styles.pretrained.architecture import diffae_config, from_json, guided_config, to_json
from lightning_styles.pretrained.diffae import (
    CodeStatistics,
    load_diffae,
    load_guided_unet,
    load_statistics,
    save_diffae,
    save_guided_unet,
)
from tests.golden.fill import FOLDER

TINY = DiffAEConfig(
    channels=8,
    multipliers=(1, 2, 2),
    res_blocks=1,
    attention_levels=(1, 2),
    encoder_multipliers=(1, 2, 2, 4),
    encoder_res_blocks=1,
    encoder_attention_levels=(2,),
    embedding=16,
    latent=LatentConfig(24, 4, (1, 3), 8),
)
TINY_P2 = GuidedConfig(channels=64, multipliers=(1, 2), res_blocks=1, attention_levels=(1,))


@pytest.fixture
def autoencoder() -> DiffAE:
    return DiffAE(TINY).eval()


def checkpoint(model: DiffAE, **buffers: Tensor) -> dict[str, Any]:
    """What the official training writes: other weights under `model` than under `ema_model`, and buffers."""
    state = {f"model.{k}": v + 1 for k, v in model.state_dict().items()}
    state |= {f"ema_model.{k}": v for k, v in model.state_dict().items()}
    return {"epoch": 3, "global_step": 7, "state_dict": state | {"x_T": torch.zeros(2, 3, 8, 8)} | buffers}


def saved(path: Path, contents: Any) -> Path:
    torch.save(contents, path)
    return path


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def meta_state(*manifests: str) -> dict[str, Tensor]:
    shapes: dict[str, list[int]] = {}
    for name in manifests:
        shapes |= json.loads((FOLDER / f"osasis/manifest_{name}.json").read_text())["keys"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def test_the_architecture_of_the_official_files_is_read_off_their_shapes() -> None:
    autoencoder, prior = "diffae_ffhq256_autoenc", "diffae_ffhq256_autoenc_latent"
    assert diffae_config(meta_state(autoencoder, prior)) == DiffAEConfig()
    assert diffae_config(meta_state(autoencoder)) == DiffAEConfig(latent=None)
    assert guided_config(meta_state("p2_ffhq")) == GuidedConfig()


def test_the_architecture_of_small_networks_too() -> None:
    with torch.device("meta"):
        assert diffae_config(DiffAE(TINY).state_dict()) == TINY
        assert guided_config(GuidedUNet(TINY_P2).state_dict()) == TINY_P2
    assert from_json(DiffAEConfig, to_json(TINY)) == TINY
    assert from_json(GuidedConfig, to_json(TINY_P2)) == TINY_P2


def test_the_checkpoint_with_a_prior(tmp_path: Path, autoencoder: DiffAE) -> None:
    mean, std = torch.randn(1, 16), torch.rand(1, 16)
    path = saved(tmp_path / "last.ckpt", checkpoint(autoencoder, conds_mean=mean, conds_std=std))
    found = load_diffae(path)
    assert found.model.config == TINY
    assert same(found.model, autoencoder)
    assert found.statistics is not None
    assert torch.equal(found.statistics.mean, mean)
    assert torch.equal(found.statistics.std, std)
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    layer = found.model.latent_net.layers[0]
    assert layer.cond_layers[1].weight is layer.linear_emb.weight


def test_the_checkpoint_without_a_prior_and_the_statistics_beside_it(tmp_path: Path) -> None:
    model = DiffAE(replace(TINY, latent=None))
    path = saved(tmp_path / "last.ckpt", checkpoint(model))
    found = load_diffae(path)
    assert found.model.latent_net is None
    assert found.statistics is None
    assert same(found.model, model)
    codes = torch.randn(10, 16)
    contents = {"conds": codes, "conds_mean": codes.mean(0), "conds_std": codes.std(0)}
    latents = saved(tmp_path / "latent.pkl", contents)
    statistics = load_diffae(path).statistics
    assert statistics is not None
    torch.testing.assert_close(statistics.mean, codes.mean(0, keepdim=True))
    assert statistics.std.shape == (1, 16)
    with pytest.raises(UserError, match="32 values expected"):
        load_statistics(latents, 32)
    with pytest.raises(UserError, match="conds_mean"):
        load_statistics(saved(tmp_path / "other.pkl", {"conds": codes}), 16)


def test_own_files_are_half_as_large_and_keep_the_architecture(tmp_path: Path) -> None:
    config = replace(TINY, heads=2, dropout=0.0, encoder_res_blocks=2)  # nothing that shapes tell
    model = DiffAE(config)
    save_diffae(tmp_path / "a.safetensors", model, CodeStatistics(torch.zeros(16), torch.ones(16)))
    found = load_diffae(tmp_path / "a.safetensors")
    assert found.model.config == config
    assert same(found.model, model.half().float())
    assert found.statistics is not None
    assert found.statistics.std.tolist() == [[1.0] * 16]
    small = GuidedUNet(GuidedConfig(channels=8, multipliers=(1, 2), attention_levels=(), head_channels=8))
    save_guided_unet(tmp_path / "p2.safetensors", small, torch.float32)
    loaded = load_guided_unet(tmp_path / "p2.safetensors")
    assert loaded.config == small.config
    assert same(loaded, small)


def test_the_p2_file(tmp_path: Path) -> None:
    model = GuidedUNet(TINY_P2)
    assert same(load_guided_unet(saved(tmp_path / "ffhq_p2.pt", model.state_dict())), model)
    torch.save(model.state_dict(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(load_guided_unet(tmp_path / "old.pt"), model)


def test_keys_that_differ_are_named(tmp_path: Path, autoencoder: DiffAE) -> None:
    contents = checkpoint(autoencoder)
    state = contents["state_dict"]
    for part in ("model", "ema_model"):
        del state[f"{part}.out.2.bias"]
        state[f"{part}.out.7.bias"] = torch.zeros(3)
        state[f"{part}.encoder.out.0.weight"] = torch.zeros(5)
    with pytest.raises(UserError) as error:
        load_diffae(saved(tmp_path / "last.ckpt", contents))
    for part in ("1 keys missing (first out.2.bias)", "left over (first out.7.bias)", "encoder.out.0.weight: (5,)"):
        assert part in str(error.value)


def test_another_network_is_refused_with_its_first_key(tmp_path: Path, autoencoder: DiffAE) -> None:
    p2 = saved(tmp_path / "p2.pt", GuidedUNet(TINY_P2).state_dict())
    with pytest.raises(UserError, match="no state_dict"):
        load_diffae(p2)
    with pytest.raises(UserError, match=r"last\.ckpt holds epoch \(int\), expected tensors by name"):
        load_guided_unet(saved(tmp_path / "last.ckpt", checkpoint(autoencoder)))
    with pytest.raises(UserError, match=r"first time_embed\.time_embed\.0\.weight"):
        load_diffae(saved(tmp_path / "vae.ckpt", {"state_dict": {"ema_model.conv.weight": torch.zeros(3)}}))


def test_what_belongs_to_no_network_is_refused(tmp_path: Path, autoencoder: DiffAE) -> None:
    extra = checkpoint(autoencoder, ema_decay=torch.zeros(1))
    with pytest.raises(UserError, match="first ema_decay"):
        load_diffae(saved(tmp_path / "extra.ckpt", extra))
    lacking = checkpoint(autoencoder)
    del lacking["state_dict"]["model.out.2.bias"]
    with pytest.raises(UserError, match=r"first out\.2\.bias"):
        load_diffae(saved(tmp_path / "lacking.ckpt", lacking))
    untied = checkpoint(autoencoder)
    untied["state_dict"]["ema_model.latent_net.layers.1.cond_layers.1.bias"] = torch.ones(24)
    with pytest.raises(UserError, match="one layer"):
        load_diffae(saved(tmp_path / "untied.ckpt", untied))


def test_objects_of_the_training_beside_the_tensors_are_skipped_and_never_run(
    tmp_path: Path, autoencoder: DiffAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback = type("ModelCheckpoint", (), {"__module__": module.__name__})
    vars(module)["ModelCheckpoint"] = callback
    contents = checkpoint(autoencoder) | {"callbacks": {callback: {"dirpath": Path("/x"), "instance": callback()}}}
    with monkeypatch.context() as installed:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
            installed.setitem(sys.modules, name, module)
        path = saved(tmp_path / "last.ckpt", contents)
    assert same(load_diffae(path).model, autoencoder)


class Malicious:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("should_not_exist", "w"))


def test_files_that_run_code_are_refused_unread(
    tmp_path: Path, autoencoder: DiffAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved(tmp_path / "last.ckpt", checkpoint(autoencoder) | {"callbacks": Malicious()})
    with pytest.raises(UserError, match="could run code"):
        load_diffae(path)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(UserError, match="no PyTorch checkpoint"):
        load_statistics(tmp_path / "plain.pkl", 16)
    assert not (tmp_path / "should_not_exist").exists()


def test_damaged_and_missing_files(tmp_path: Path, autoencoder: DiffAE) -> None:
    path = saved(tmp_path / "last.ckpt", checkpoint(autoencoder))
    whole = path.read_bytes()
    for size in (0, 100, len(whole) // 2, len(whole) - 50):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="truncated or no"):
            load_diffae(path)
    save_diffae(tmp_path / "a.safetensors", autoencoder)
    own = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(own[: len(own) // 2])
    with pytest.raises(UserError, match="truncated or no"):
        load_diffae(tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="No file at"):
        load_guided_unet(tmp_path / "nowhere.pt")
