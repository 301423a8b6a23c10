"""Ranges of timesteps and the generator's learning rate."""

import pytest
import torch

from lightning_styles.diffusion.timesteps import draw, generator_lr_factor, index_range
from tests.golden.fill import load_case

CASE, EXPECTED = load_case("sms/b_timesteps")


@pytest.mark.parametrize("N", [4, 7, 100, 500, 1000])
def test_narrowing_agrees_with_the_reference(N: int) -> None:
    found = torch.tensor([index_range("narrowing", i, N) for i in range(N)])
    assert torch.equal(found, EXPECTED[f"sms.N{N}.bounds"])


def test_other_ranges_agree_with_the_reference() -> None:
    assert list(index_range("uniform")) == CASE["default_bounds_after_first_sms_call"]
    assert list(index_range("full")) == CASE["default_bounds_before_first_sms_call"] == CASE["vsd_bounds"]


def test_strategies_share_their_ends() -> None:
    N = 500
    assert {index_range("uniform", i, N) for i in range(N)} == {(10, 250)}
    for i in range(N):
        lo, hi = index_range("linear", i, N)
        assert (hi - lo, hi) == (1, index_range("narrowing", i, N)[1])
    assert index_range("full", L=20, t_min=0) == (1, 19)  # index 0 has no predecessor


@pytest.mark.parametrize("N", [4, 200, 500])
def test_learning_rate_agrees_with_the_reference(N: int) -> None:
    found = torch.tensor([generator_lr_factor(i, N) for i in range(N)], dtype=torch.float64)
    torch.testing.assert_close(found, EXPECTED[f"lr_factor.N{N}"], rtol=1e-12, atol=1e-12)


def test_draws_fill_the_range_and_repeat() -> None:
    idx = draw((10, 14), 1000, torch.Generator().manual_seed(3))
    assert set(idx.tolist()) == {10, 11, 12, 13}
    assert torch.equal(idx, draw((10, 14), 1000, torch.Generator().manual_seed(3)))
