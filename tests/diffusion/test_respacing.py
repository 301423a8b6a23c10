"""Respaced processes and the arithmetic of t0, against the official code."""

import pytest
import torch

from lightning_styles.diffusion.respacing import (
    Respaced,
    aligned_decode_indices,
    constant_betas,
    decode_indices,
    encode_indices,
    even_timesteps,
    linear_betas,
    sectioned_timesteps,
)
from lightning_styles.errors import UserError
from tests.golden.fill import load_case

CASE, EXPECTED = load_case("osasis/e_schedules")
LISTS = CASE["expected"]


def even(N: int) -> Respaced:
    return Respaced.of(linear_betas(), even_timesteps(N))


@pytest.mark.parametrize("name", [name for name in LISTS if name.startswith(("ddim", "latent_ddim"))])
def test_even_timesteps_agree_with_the_reference(name: str) -> None:
    assert even_timesteps(int(name.split("ddim")[1])) == LISTS[name]


@pytest.mark.parametrize("name", [name for name in LISTS if name.startswith("ancestral")])
def test_sectioned_timesteps_agree_with_the_reference(name: str) -> None:
    counts = [int(part) for part in name.removeprefix("ancestral_").split(",")]
    assert sectioned_timesteps(counts) == LISTS[name]
    if len(counts) == 1:
        assert sectioned_timesteps(counts[0]) == LISTS[name]


@pytest.mark.parametrize("key", sorted(EXPECTED))
def test_tables_agree_with_the_reference(key: str) -> None:
    kind, N, table = key.split("_", 2)
    betas = linear_betas() if kind == "linear" else constant_betas()
    process = Respaced.of(betas, even_timesteps(int(N)))
    found = getattr(process, table.replace("alphas_cumprod", "alpha_bar"))
    rule = CASE["tolerance"]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, EXPECTED[key], rtol=rule["rtol"], atol=rule["atol"])


@pytest.mark.parametrize("key", sorted(LISTS["t0_indices"]))
def test_indices_of_t0_agree_with_the_reference(key: str) -> None:
    T_for, T_back, r = key.split("_")
    found = {"forward": encode_indices(int(T_for), float(r)), "backward": decode_indices(int(T_back), float(r))}
    assert found == LISTS["t0_indices"][key]


def test_steps_that_do_not_divide_are_refused_with_their_neighbours() -> None:
    with pytest.raises(UserError, match="250 and 334"):
        even_timesteps(300)
    for N in (0, 1001):
        with pytest.raises(UserError, match="1 to 1000"):
            even_timesteps(N)
        with pytest.raises(UserError, match="1 to 1000"):
            sectioned_timesteps(N)
    assert even_timesteps(1000) == sectioned_timesteps(1000) == list(range(1000))
    assert even_timesteps(1) == sectioned_timesteps(1) == [0]


def test_betas_rebuild_alpha_bar() -> None:
    process = Respaced.of(linear_betas(), sectioned_timesteps(50))
    torch.testing.assert_close(torch.cumprod(1 - process.betas, 0), process.alpha_bar, rtol=1e-12, atol=0)
    torch.testing.assert_close(Respaced.of(linear_betas(), range(1000)).betas, linear_betas(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("T_for", "T_back", "r"), [(50, 20, 0.5), (100, 50, 0.5), (20, 10, 0.5), (100, 50, 0.9)])
def test_the_official_decoder_starts_below_the_level_and_the_aligned_one_at_it(
    T_for: int, T_back: int, r: float
) -> None:
    encoder, decoder = even(T_for), even(T_back)
    level = encoder.timesteps[encode_indices(T_for, r)[-1] + 1]
    assert level == round(1000 * r)
    official, aligned = decode_indices(T_back, r), aligned_decode_indices(decoder, encoder, r)
    assert decoder.timesteps[aligned[0]] == level
    assert aligned[-1] == official[-1] == 0
    # 50 (1 - 0.9) is 4.999... in floats, so that here the official code keeps one more step.
    assert aligned[0] - official[0] == (0 if r == 0.9 else 1)


def test_the_ends_of_t0() -> None:
    encoder, decoder = even(50), even(20)
    assert aligned_decode_indices(decoder, encoder, 0.0) == decode_indices(20, 0.0) == []
    assert aligned_decode_indices(decoder, encoder, 1.0) == decode_indices(20, 1.0) == list(reversed(range(20)))


def test_noise_has_the_level_of_its_step() -> None:
    process = even(10)
    x = process.add_noise(torch.ones(1), torch.zeros(1), 5)
    assert x.item() ** 2 == pytest.approx(float(torch.cumprod(1 - linear_betas(), 0)[500]))
    assert process.t(5, torch.zeros(3, 4)).tolist() == [500, 500, 500]
