"""Distances of sets."""

from pathlib import Path

import pytest
import torch

from lightning_styles.errors import UserError
from lightning_styles.metrics.fid import (
    FrechetDistance,
    InceptionFeatures,
    KernelDistance,
    PooledFeatures,
    art_fid,
)
from lightning_styles.models.perceptual import PerceptualNet


def gaussian(n: int, mean: list[float], deviation: list[float]) -> torch.Tensor:
    """Features whose sample mean and covariance are exactly `mean` and diag(deviation^2)."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T
    return x * torch.tensor(deviation) + torch.tensor(mean)


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    metric = FrechetDistance(x.shape[1])
    metric.update(x, real=True)
    metric.update(y[:7], real=False)
    metric.update(y[7:], real=False)
    return metric.compute().item()


def test_fid_of_two_gaussians() -> None:
    x, y = gaussian(40, [0, 0], [1, 2]), gaussian(30, [3, 4], [2, 5])
    # |mean difference|^2 + sum of squared differences of the deviations = 25 + 1 + 9
    assert distance(x, y) == pytest.approx(35, abs=1e-5)


def test_fid_of_a_set_with_itself() -> None:
    x = torch.randn(24, 48)  # fewer pictures than features
    assert distance(x, x) == pytest.approx(0, abs=1e-4)
    assert distance(x, x) >= 0


def test_fid_of_few_pictures_is_refused() -> None:
    with pytest.raises(UserError, match="FID of 15 results against 40 style images says nothing"):
        distance(torch.randn(40, 2), torch.randn(15, 2))


def test_kid_is_the_unbiased_estimate_over_the_whole_sets() -> None:
    x, y = torch.randn(6, 4), torch.randn(6, 4) + 1
    metric = KernelDistance(4)
    metric.update(x, real=True)
    metric.update(y, real=False)

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 4 + 1) ** 3

    def off_diagonal_mean(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    expected = off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-4)


def test_kid_of_unequal_sets_repeats_and_leaves_the_random_state_alone() -> None:
    values = []
    for seed in (1, 2):
        torch.manual_seed(0)
        metric = KernelDistance(4)
        metric.update(torch.randn(9, 4), real=True)
        metric.update(torch.randn(5, 4), real=False)
        torch.manual_seed(seed)
        before = torch.random.get_rng_state()
        values.append(metric.compute().item())
        assert torch.equal(torch.random.get_rng_state(), before)
    assert values[0] == values[1]


def test_art_fid_of_the_papers_table() -> None:
    assert art_fid(0.326, 13.089) == pytest.approx(1.326 * 14.089)
    assert round(art_fid(0.326, 13.089), 2) == 18.68


def test_pooled_features_are_channel_means_of_all_levels() -> None:
    network, x = PerceptualNet((4, 8)).eval(), torch.rand(2, 3, 16, 16)
    pooled = PooledFeatures(network)
    assert pooled.num_features == 12
    first, second = network.features(x)
    assert torch.allclose(pooled(x)[:, :4], first.mean((2, 3)))
    assert torch.allclose(pooled(x)[:, 4:], second.mean((2, 3)))


def test_inception_needs_its_package_and_its_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="inception 'nowhere.pth' is neither a file or folder nor a known name"):
        InceptionFeatures("nowhere.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(UserError, match=r"cannot be read as weights; expected the weights of FID's Inception"):
        InceptionFeatures(str(tmp_path / "empty.pth"))
    torch.save({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"needs torch-fidelity|does not hold the weights"):
        InceptionFeatures(str(tmp_path / "other.pth"))
