"""Distances of sets."""

import pytest
import torch

from lightning_styles.errors import UserError
from lightning_styles.metrics.fid import (
    FeatureSets,
    art_fid,
    frechet_at_infinity,
    frechet_distance,
    kernel_distance,
)
from tests.golden.fid_world import case_of, excess


def gaussian(n: int, mean: list[float], deviation: list[float]) -> torch.Tensor:
    """Features whose sample mean and covariance are exactly `mean` and diag(deviation^2)."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T
    return x * torch.tensor(deviation) + torch.tensor(mean)


def test_fid_of_two_gaussians() -> None:
    x, y = gaussian(40, [0, 0], [1, 2]), gaussian(30, [3, 4], [2, 5])
    # |mean difference|^2 + sum of squared differences of the deviations = 25 + 1 + 9
    assert frechet_distance(x, y) == pytest.approx(35, abs=1e-5)


def test_fid_of_a_set_with_itself() -> None:
    x = torch.randn(24, 48)  # fewer pictures than features
    assert 0 <= frechet_distance(x, x) < 1e-8


def test_fid_is_the_official_one() -> None:
    case, x, expected = case_of("fid/frechet")
    assert excess(torch.tensor(frechet_distance(x["a"], x["b"])), expected["full"], case) < 1
    assert frechet_distance(x["a"][:5], x["b"][:6]) == pytest.approx(expected["singular"].item(), rel=0.01)


def test_artfid_and_fid_at_infinity_are_the_official_ones() -> None:
    case, x, expected = case_of("artfid/fid_infinity")
    found = {"fid": frechet_distance(x["style"], x["stylized"])}
    found["artfid"] = art_fid(0.4372, found["fid"])
    for points in (8, 15):
        found[f"fid_inf_{points}"] = frechet_at_infinity(x["style"], x["stylized"], points, case["config"]["seed"])
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert excess(torch.tensor(value), expected[name], case) < 1, name
    for sets in ((x["style"][:5000], x["stylized"][:5000]), (x["style"], x["stylized"][1:])):
        with pytest.raises(UserError, match="equally many style pictures and results, more than 5000"):
            frechet_at_infinity(*sets)


def test_kid_is_the_unbiased_estimate_over_the_whole_sets() -> None:
    x, y = torch.randn(6, 4), torch.randn(6, 4) + 1

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a @ b.T / 4 + 1) ** 3

    def off_diagonal_mean(k: torch.Tensor) -> torch.Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    expected = off_diagonal_mean(kernel(x, x)) + off_diagonal_mean(kernel(y, y)) - 2 * kernel(x, y).mean()
    assert kernel_distance(x, y) == pytest.approx(expected.item(), rel=1e-4)


def test_kid_of_unequal_sets_repeats_and_leaves_the_random_state_alone() -> None:
    style, results = torch.randn(9, 4), torch.randn(8, 4) + 1
    style[-1] += 3  # which all subsets but one have
    before = torch.random.get_rng_state()
    value = kernel_distance(style, results)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert value == kernel_distance(style, results)
    subsets = [torch.cat([style[:i], style[i + 1 :]]) for i in range(9)]  # which are drawn about as often as each other
    every = [kernel_distance(subset, results) for subset in subsets]
    assert value == pytest.approx(sum(every) / 9, abs=0.15 * (max(every) - min(every)))
    with pytest.raises(UserError, match="at least 2 results and 2 style pictures, found 1 and 9"):
        kernel_distance(style, results[:1])


def test_sets_know_which_is_the_style() -> None:
    sets = FeatureSets(4)
    assert [x.shape for x in sets.compute()] == [(0, 4), (0, 4)]
    style, results = torch.randn(3, 4), torch.randn(5, 4)
    sets.update(style, style=True)
    sets.update(results[:2], style=False)
    sets.update(results[2:], style=False)
    assert all(torch.equal(found, given) for found, given in zip(sets.compute(), (style, results), strict=True))


def test_art_fid_of_the_papers_table() -> None:
    assert art_fid(0.326, 13.089) == pytest.approx(1.326 * 14.089)
    assert round(art_fid(0.326, 13.089), 2) == 18.68
