"""The twin's candidates and ancestral sampling with learned variances, against the official sampler."""

import math
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from lightning_styles.diffusion.ancestral import ancestral_step, posterior, variance_range
from lightning_styles.diffusion.respacing import Respaced, linear_betas, sectioned_timesteps
from lightning_styles.diffusion.twin import twin_candidates
from lightning_styles.losses.osasis import twin_scores
from tests.golden.fill import load_case
from tests.golden.osasis_world import excess, guided_unet, inputs


def test_the_twins_candidates_agree_with_the_reference() -> None:
    case, expected = load_case("osasis/c_p2_domA")
    given, network, c = inputs(case), guided_unet(case), case["config"]
    steps = int(c["timestep_respacing"])
    process = Respaced.of(linear_betas(), sectioned_timesteps(steps))
    assert list(process.timesteps) == case["expected"]["timestep_map"]
    seen: list[tuple[int, Tensor, Tensor]] = []  # timestep, x and output of each call

    def listening(x: Tensor, t: Tensor) -> Tensor:
        seen.append((int(t[0]), x, network(x, t)))
        return seen[-1][2]

    draws = [row for name in ("q_noise", "p_noise_4", "p_noise_3", "p_noise_2", "p_noise_1") for row in given[name]]
    with patch("torch.randn", side_effect=draws):
        style = given["img_style_B"]
        (candidates,) = twin_candidates(listening, style, c["n"], steps=steps, t0=c["t_start_ratio"])
    assert [t for t, _, _ in seen] == case["expected"]["visited_original"]
    found = {"x_t0": seen[0][1], "x_after_4": seen[1][1], "x_after_0": candidates}
    for i, (_, x, output) in zip((4, 0), (seen[0], seen[-1]), strict=True):
        mean, log_variance, x_0 = posterior(process, i, x, output)
        found |= {f"mean_{i}": mean, f"log_variance_{i}": log_variance, f"pred_xstart_{i}": x_0}
    scores = twin_scores(candidates, style, lambda pictures: torch.zeros(len(pictures)), l1=1.0)
    found["l1_per_candidate"] = scores
    assert scores.argmin().item() == case["expected"]["best_by_l1"]
    for name, tensor in expected.items():
        assert excess(found[name], tensor, case["tolerance"]) < 1, name


def test_every_candidate_has_noise_of_its_own_whatever_goes_with_it() -> None:
    style = torch.zeros(1, 3, 4, 4)
    together, apart = (
        torch.cat(list(twin_candidates(lambda x, t: torch.cat([x, x], 1), style, 3, steps=10, batch=batch)))
        for batch in (3, 2)
    )
    torch.testing.assert_close(together, apart)
    assert len(together.flatten(1).unique(dim=0)) == 3


def test_variances_of_the_training_process() -> None:
    process = Respaced.of(linear_betas(), range(1000))
    betas = linear_betas()
    a = torch.cumprod(1 - betas, 0)
    low, high = variance_range(process, 500)
    assert high == pytest.approx(math.log(betas[500]))
    assert low == pytest.approx(math.log(betas[500] * (1 - a[499]) / (1 - a[500])))
    assert variance_range(process, 0)[0] == variance_range(process, 1)[0]


def test_v_chooses_between_the_variances_and_the_mean_is_exact_for_the_true_noise() -> None:
    process = Respaced.of(linear_betas(), sectioned_timesteps(50))
    x_0, eps = torch.rand(1, 3, 4, 4) - 0.5, torch.randn(1, 3, 4, 4)
    x = process.add_noise(x_0, eps, 20)
    low, high = variance_range(process, 20)
    for v, expected in ((-1.0, low), (1.0, high)):
        found = posterior(process, 20, x, torch.cat([eps, torch.full_like(eps, v)], 1))
        torch.testing.assert_close(found.log_variance, torch.full_like(eps, expected))
        torch.testing.assert_close(found.x_0, x_0)
    # E[x_19 | x_20, x_0] has the signal of step 19 and, of this noise, what step 19 shares with it.
    a, a_prev, beta = (float(table[20]) for table in (process.alpha_bar, process.alpha_bar_prev, process.betas))
    shared = (1 - a_prev) * (1 - beta) ** 0.5 / (1 - a) ** 0.5
    torch.testing.assert_close(found.mean, a_prev**0.5 * x_0 + shared * eps)


def test_the_last_step_has_no_noise() -> None:
    process = Respaced.of(linear_betas(), sectioned_timesteps(10))
    x, output = torch.randn(1, 3, 4, 4), torch.randn(1, 6, 4, 4)
    found = ancestral_step(process, 0, x, output, torch.randn(1, 3, 4, 4))
    assert torch.equal(found, posterior(process, 0, x, output).mean)
    torch.testing.assert_close(found, posterior(process, 0, x, output).x_0)
