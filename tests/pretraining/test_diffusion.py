"""Pretraining of the pixel diffusion models: bounds, weights, and files that their loaders read."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from datamodules.scene_pool import ScenePool
from lightning_styles.diffusion.respacing import Respaced, linear_betas
from lightning_styles.models.diffusion_blocks import GroupNorm
from lightning_styles.pretrained.diffae import load_diffae, load_guided_unet
from lightning_styles.pretraining.diffusion_autoencoder import DiffAEPretraining, LatentPriorPretraining, snr_weight
from lightning_styles.pretraining.guided_diffusion import GuidedDiffusionPretraining, p2_weight, variance_bound

SMALL = {"channels": 32, "multipliers": [1, 1], "res_blocks": 1, "attention_levels": [1]}


def fit(method: Any, data: ScenePool) -> Any:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    L.Trainer(max_steps=2, accelerator="cpu", enable_model_summary=False, **silent).fit(method, datamodule=data)
    return method


@pytest.fixture
def photos(tmp_path: Path) -> ScenePool:
    return ScenePool(kinds={"portrait": 4}, styles={"photo": 1.0}, size=32, batch_size=2, cache=str(tmp_path))


def test_p2_weighs_clean_pictures_less() -> None:
    assert p2_weight(torch.tensor([0.5])).item() == pytest.approx(1 / 2)
    weights = p2_weight(Respaced.of(linear_betas(), range(1000)).alpha_bar)
    assert (weights.diff() > 0).all()
    assert weights[-1].item() == pytest.approx(1, abs=1e-4)


def test_errors_count_in_x_0_where_noise_prevails() -> None:
    alpha_bar = torch.tensor([0.9, 0.5, 0.1, 1e-6])
    assert snr_weight(alpha_bar).tolist() == pytest.approx([1, 1, 9, 1000])


@pytest.mark.parametrize("stride", [1, 20])
def test_the_bound_is_zero_for_the_true_posterior_and_grows_either_way(stride: int) -> None:
    alpha_bar, t = Respaced.of(linear_betas(), range(1000)).alpha_bar.float(), torch.tensor([0, stride, 400, 999])
    x, lowest = torch.rand(4, 3, 2, 2) * 2 - 1, -torch.ones(4, 3, 2, 2)
    bound = partial(variance_bound, alpha_bar, t, x, stride=stride)
    assert bound(x, lowest).item() == pytest.approx(0, abs=1e-6)
    assert bound(x, -lowest).item() > 1e-3 * stride
    assert bound(x + 0.1, lowest).item() > 1e-3 * stride
    # The gradient that the variance gets draws it up where the mean is wrong; the last step draws nothing.
    v = lowest.clone().requires_grad_(True)
    bound(x + 0.5, v).backward()
    assert v.grad is not None
    assert (v.grad[1:3] < 0).all()
    assert v.grad[0].abs().max() == 0


def test_the_autoencoder_and_its_prior_end_in_one_file(tmp_path: Path, photos: ScenePool) -> None:
    shape = SMALL | {"encoder_multipliers": [1, 2], "encoder_res_blocks": 1, "encoder_attention_levels": [1]}
    shape |= {"embedding": 16}
    fit(DiffAEPretraining(iterations=2, architecture=shape), photos).export(tmp_path / "first.safetensors", "")
    again = DiffAEPretraining(
        iterations=2, architecture=shape | {"groups": 4}, start=str(tmp_path / "first.safetensors"), weighting="snr"
    )
    method = fit(again, photos)
    file = tmp_path / "diffae.safetensors"
    method.export(file, "safetensors")
    assert load_diffae(file).statistics is None
    prior = fit(LatentPriorPretraining(iterations=2, autoencoder=str(file), hidden=24, layers=3), photos)
    whole_file = tmp_path / "whole.safetensors"
    prior.export(whole_file, "safetensors")

    whole, x = load_diffae(whole_file), photos.pool["image"].float() / 127.5 - 1
    groups = {module.num_groups for module in whole.model.modules() if isinstance(module, GroupNorm)}
    assert groups == {4}, "the file says how many"
    assert whole.statistics is not None
    z = method.network.encoder(x)
    torch.testing.assert_close(whole.model.encoder(x), z, rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(whole.statistics.mean, z.mean(0, keepdim=True), rtol=1e-2, atol=5e-3)
    torch.testing.assert_close(whole.statistics.std, z.std(0, keepdim=True), rtol=2e-2, atol=5e-3)
    t = torch.tensor([5, 900, 3, 70])
    torch.testing.assert_close(whole.model(x, t, z), method.network(x, t, z), rtol=1e-2, atol=1e-2)
    assert whole.model.latent_net is not None
    torch.testing.assert_close(whole.model.latent_net(z, t), prior.prior(z, t), rtol=1e-2, atol=1e-2)


def test_the_guided_network_is_read_back(tmp_path: Path, photos: ScenePool) -> None:
    weights = {"noise": 1.0, "variance": 0.001}
    shape = SMALL | {"head_channels": 16}
    method = fit(GuidedDiffusionPretraining(iterations=2, architecture=shape, weights=weights, stride=20), photos)
    method.export(tmp_path / "p2.safetensors", "safetensors")
    loaded = load_guided_unet(tmp_path / "p2.safetensors")
    assert loaded.config.head_channels == 16
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 800])
    torch.testing.assert_close(loaded(x, t), method.network(x, t), rtol=1e-2, atol=1e-2)
