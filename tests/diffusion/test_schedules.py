"""Noise schedules and DDIM steps."""

import pytest
import torch
from diffusers import DDIMScheduler

from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.errors import UserError
from tests.golden.fill import load_case
from tests.golden.sms_world import SCHEDULER

_, EXPECTED = load_case("sms/b_timesteps")


def test_grid_and_weights_agree_with_the_reference() -> None:
    schedule = NoiseSchedule.from_config(SCHEDULER)
    grid = schedule.grid(500)
    assert torch.equal(grid, EXPECTED["grid"])
    torch.testing.assert_close(schedule.posterior_variance(grid[1:], grid[:-1]), EXPECTED["w_t"], rtol=1e-5, atol=0)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear"])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
def test_noise_and_ddim_steps_equal_diffusers(beta_schedule: str, set_alpha_to_one: bool) -> None:
    config = SCHEDULER | {"beta_schedule": beta_schedule, "set_alpha_to_one": set_alpha_to_one}
    ours = NoiseSchedule.from_config(config)
    theirs = DDIMScheduler(**config, clip_sample=False)
    theirs.set_timesteps(7)
    draw = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 3, 4, 5, 6, generator=draw)
    t = torch.tensor([0, 499, 999])
    torch.testing.assert_close(ours.add_noise(z, eps, t), theirs.add_noise(z, eps, t))
    pairs = ours.ddim_timesteps(7)
    assert [t for t, _ in pairs] == theirs.timesteps.tolist()
    assert pairs[-1][1] < 0
    for t, t_prev in pairs:
        expected = theirs.step(eps, t, z, eta=0.0).prev_sample
        torch.testing.assert_close(ours.ddim_step(z, eps, torch.tensor([t] * 3), torch.tensor([t_prev] * 3)), expected)


def test_ddim_step_inverts_the_forward_process() -> None:
    schedule = NoiseSchedule.from_config(SCHEDULER)
    draw = torch.Generator().manual_seed(0)
    z, eps = torch.randn(2, 2, 4, 5, 6, generator=draw)
    t, t_prev = torch.tensor([801, 301]), torch.tensor([401, 1])
    found = schedule.ddim_step(schedule.add_noise(z, eps, t), eps, t, t_prev)
    torch.testing.assert_close(found, schedule.add_noise(z, eps, t_prev), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "word"),
    [({"beta_schedule": "squaredcos_cap_v2"}, "squaredcos"), ({"prediction_type": "v"}, "'v'")],
)
def test_other_schedules_are_refused(change: dict, word: str) -> None:
    with pytest.raises(UserError, match=word):
        NoiseSchedule.from_config(SCHEDULER | change)
