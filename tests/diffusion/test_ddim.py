"""DDIM up and down against the official samplers."""

from functools import partial

import pytest
import torch
from torch import Tensor

from lightning_styles.diffusion.ddim import decode, encode, sample_codes, step_down, step_up
from lightning_styles.diffusion.respacing import (
    Respaced,
    constant_betas,
    decode_indices,
    encode_indices,
    even_timesteps,
    linear_betas,
)
from lightning_styles.models.diffae import style_levels
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


class Samplers:
    """The parity case of the samplers: networks, pictures, processes, and what the networks were told."""

    def __init__(self) -> None:
        self.case, self.expected = load_case("osasis/e_samplers")
        self.config, given = self.case["config"], inputs(self.case)
        self.A, self.B = (diffae(self.case, f"diffae_{name}") for name in "AB")
        self.spn = filled(MappingNetTime(), self.case["weights"]["spn"]["seed"])
        self.photo = given["img_cont_A"]
        self.up, self.down = (
            Respaced.of(linear_betas(), even_timesteps(self.config[f"T_infer_{way}"])) for way in ("for", "back")
        )
        with torch.no_grad():
            self.z, self.z_style = self.A.encoder(self.photo), self.A.encoder(given["img_style_B"])
        self.told: list[int] = []

    def listening(self, network: torch.nn.Module, **codes: object) -> partial:
        def run(x: Tensor, t: Tensor) -> Tensor:
            self.told.append(int(t[0]))
            return network(x, t, self.z, **codes)

        return partial(run)

    def encoded(self) -> Tensor:
        indices = encode_indices(len(self.up), self.config["t0_ratio"])
        return encode(self.listening(self.A), self.photo, self.up, indices)

    def offset(self, j: int) -> Tensor:
        return self.config["lambda_map"] * self.spn(self.photo, torch.full((len(self.photo),), j))

    def decoded(self, x: Tensor, network: torch.nn.Module, spn: bool = True, **codes: object) -> Tensor:
        indices = decode_indices(len(self.down), self.config["t0_ratio"])
        return decode(self.listening(network, **codes), x, self.down, indices, self.offset if spn else None)

    def check(self, name: str, found: Tensor, rule: str | None = None) -> None:
        tolerance = self.case["tolerance"]
        assert excess(found, self.expected[name], tolerance | tolerance.get(rule, {})) < 1, name


def test_encoding_decoding_and_stylisation_agree_with_the_reference() -> None:
    world = Samplers()
    with torch.no_grad():
        x, x_0 = step_up(world.up, 0, world.photo, world.A(world.photo, world.up.t(0, world.photo), world.z))
    world.check("encode_first_x", x, "first_steps")
    world.check("encode_first_pred_xstart", x_0, "first_steps")
    x_t0 = world.encoded()
    world.check("x_t0", x_t0)
    assert world.told == world.case["expected"]["t_seen_by_unet_encode"]
    world.told.clear()
    world.check("recon_A_no_spn", world.decoded(x_t0, world.A, spn=False))
    assert world.told == world.case["expected"]["t_seen_by_unet_decode"]
    world.check("decode_no_mix", world.decoded(x_t0, world.B))
    levels = world.config["ref_cond_scale"]
    world.check("stylized", world.decoded(x_t0, world.B, z_style=world.z_style, style_levels=levels))
    all_levels = style_levels(4, 32, world.B.levels)
    official = world.decoded(x_t0, world.B, z_style=world.z_style, style_levels=all_levels)
    world.check("tester_scales_0123", official / 2 + 0.5)


def test_the_first_decoding_step_agrees_with_the_reference() -> None:
    world = Samplers()
    j = decode_indices(len(world.down), world.config["t0_ratio"])[0]
    with torch.no_grad():
        x = world.expected["x_t0"] + world.offset(j)
        eps = world.B(x, world.down.t(j, x), world.z, world.z_style, world.config["ref_cond_scale"])
    x, x_0 = step_down(world.down, j, x, eps)
    world.check("decode_first_x", x, "first_steps")
    world.check("decode_first_pred_xstart", x_0, "first_steps")


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
