"""DDIM up and down against the official samplers."""

import pytest
import torch

from lightning_styles.diffusion.ddim import sample_codes, step_down, step_up
from lightning_styles.diffusion.respacing import Respaced, constant_betas, even_timesteps, linear_betas
from lightning_styles.models.spn import MappingNetTime
from tests.golden.fill import load_case
from tests.golden.osasis_world import diffae, excess, filled, inputs


def test_codes_of_the_prior_agree_with_the_reference() -> None:
    case, expected = load_case("osasis/b_latent")
    full, _ = load_case("osasis/a_diffae_forward")
    given, network = inputs(case), diffae(full).latent_net
    process = Respaced.of(constant_betas(), even_timesteps(case["config"]["latent_T"]))
    normalised = sample_codes(network, given["latent_noise"], process, torch.tensor(0.0), torch.tensor(1.0))
    z = sample_codes(network, given["latent_noise"], process, given["conds_mean"], given["conds_std"])
    rule = case["tolerance"] | case["tolerance"]["sampled"]
    assert excess(normalised, expected["sampled"], rule) < 1
    assert excess(z, expected["sampled_denorm"], rule) < 1


@torch.no_grad()
def test_the_first_step_up_and_down_agrees_with_the_reference() -> None:
    """Whole encodings and results are in tests/methods/test_osasis_parity.py."""
    case, expected = load_case("osasis/e_samplers")
    given, rule = inputs(case), case["tolerance"] | case["tolerance"]["first_steps"]
    A, B = (diffae(case, f"diffae_{name}") for name in "AB")
    spn, photo = filled(MappingNetTime(), case["weights"]["spn"]["seed"]), given["img_cont_A"]
    up, down = (
        Respaced.of(linear_betas(), even_timesteps(case["config"][f"T_infer_{way}"])) for way in ("for", "back")
    )
    z, z_style = A.encoder(photo), A.encoder(given["img_style_B"])
    x, x_0 = step_up(up, 0, photo, A(photo, torch.tensor([0]), z))
    found = {"encode_first_x": x, "encode_first_pred_xstart": x_0}
    x = expected["x_t0"] + 0.1 * spn(photo, torch.tensor([4]))
    x, x_0 = step_down(down, 4, x, B(x, torch.tensor([400]), z, z_style, [0, 1]))
    found |= {"decode_first_x": x, "decode_first_pred_xstart": x_0}
    for name, tensor in found.items():
        assert excess(tensor, expected[name], rule) < 1, name


@pytest.fixture
def process() -> Respaced:
    return Respaced.of(linear_betas(), even_timesteps(20))


def test_steps_up_and_down_undo_each_other_for_one_eps(process: Respaced) -> None:
    x_0, eps = torch.rand(2, 3, 4, 4) - 0.5, torch.randn(2, 3, 4, 4)
    x = process.add_noise(x_0, eps, 7)
    up, seen = step_up(process, 7, x, eps)
    torch.testing.assert_close(seen, x_0)
    torch.testing.assert_close(up, process.add_noise(x_0, eps, 8))
    torch.testing.assert_close(step_down(process, 8, up, eps)[0], x, rtol=1e-4, atol=1e-5)


def test_the_last_step_down_is_the_prediction(process: Respaced) -> None:
    x, x_0 = step_down(process, 0, torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4))
    torch.testing.assert_close(x, x_0)
    assert x.abs().max() <= 1


def test_clamped_predictions_have_no_gradient(process: Respaced) -> None:
    eps = torch.tensor([0.0, 5.0], requires_grad=True)
    _, x_0 = step_down(process, 10, torch.tensor([0.1, 0.1]), eps)
    x_0.sum().backward()
    assert eps.grad is not None
    assert eps.grad[0] != 0
    assert eps.grad[1] == 0


def test_full_encoding_ends_in_the_derived_noise(process: Respaced) -> None:
    x, eps = torch.zeros(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    last = len(process) - 1
    torch.testing.assert_close(
        step_up(process, last, process.add_noise(x, eps, last), eps)[0], eps, rtol=1e-4, atol=1e-4
    )
