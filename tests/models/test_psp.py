"""The pSp encoder against the official one, its grouped heads, and the spaces of its codes."""

import pytest
import torch
from torch import Tensor

from lightning_styles.losses.codes import kl_divergence, moment_penalty, row_spread, w_norm
from lightning_styles.models.psp import GradualStyleEncoder, sample_codes, to_w_plus
from lightning_styles.models.stylegan2 import Generator
from tests.golden.stylegan_world import case_of, excess, filled, manifest, shapes_of

SMALL = {"style_dim": 24, "size": 64, "widths": (16, 16, 32, 32), "blocks": (1, 1, 2, 1)}


def test_keys_and_shapes_are_those_of_the_official_file() -> None:
    expected = manifest("psp_ffhq_encoder")
    with torch.device("meta"):
        plain, variational = GradualStyleEncoder(), GradualStyleEncoder(variational=True)
    assert list(shapes_of(plain).items()) == list(expected["state_dict"].items())
    assert sum(p.numel() for p in plain.parameters()) == expected["parameters"]
    added = {f"{layer}.{part}" for layer in ("fc_mu", "fc_var") for part in ("weight", "bias")}
    assert set(shapes_of(variational)) - set(shapes_of(plain)) == added


@pytest.mark.slow
def test_codes_of_the_reference() -> None:
    case, x, expected = case_of("psp_encoder")
    with torch.device("meta"):
        encoder = GradualStyleEncoder(case["config"]["n_styles"])
    for tensor in encoder.to_empty(device="cpu").state_dict().values():
        tensor.zero_()  # the recipe leaves the biases of `linear` as they are at first
    encoder = filled(encoder, case["fill"])
    codes, maps = encoder(x["x"]), encoder.maps(x["x"])
    found = {"codes": codes, "w_norm": w_norm(codes + x["latent_avg"], x["latent_avg"])}
    for name, tensor in zip(("body6", "body20", "body23"), maps, strict=True):
        assert list(tensor.shape) == case[f"{name}_shape"]
        found |= {f"{name}.channel_mean": tensor.mean((2, 3)), f"{name}.corner": tensor[:, :8, :3, :3]}
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert excess(tensor, expected[name], case) < 1, name


def test_heads_together_are_each_of_them_alone() -> None:
    encoder = GradualStyleEncoder(10, **SMALL).eval()
    image = torch.randn(2, 3, 64, 64)
    maps: list[Tensor] = []
    for head in encoder.styles:
        head.linear.register_forward_hook(lambda module, args, out: maps.append(args[0]))
    codes = encoder(image)
    assert codes.shape == (2, 10, 24)
    fine, middle, coarse = encoder.maps(image)
    assert [m.shape[-1] for m in (fine, middle, coarse)] == [16, 8, 4]
    for i in range(3):  # the coarsest level has no sum of others to redo here
        alone = encoder.styles[i].convs(coarse).flatten(1)
        torch.testing.assert_close(maps[i], alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(codes[:, i], encoder.styles[i].linear(alone), rtol=1e-4, atol=1e-5)
    assert [len(head.convs) // 2 for head in encoder.styles] == [2] * 3 + [3] * 4 + [4] * 3


def test_a_fresh_variational_head_says_nothing_and_learns() -> None:
    encoder = GradualStyleEncoder(10, **SMALL, variational=True).eval()
    image = torch.randn(2, 3, 64, 64)
    mean, log_variance = encoder.posterior(image)
    assert mean.abs().max() == log_variance.abs().max() == 0 == encoder(image).abs().max()
    assert kl_divergence(mean, log_variance) == 0
    noise = torch.randn_like(mean)
    assert torch.equal(sample_codes(mean, log_variance, noise), noise)
    (sample_codes(mean, log_variance, noise) - 1).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in (encoder.fc_mu.weight, encoder.fc_var.weight))


def test_codes_become_w_plus() -> None:
    g = Generator(32, 24, 2, channels=dict.fromkeys((4, 8, 16, 32), 8))
    codes, average = torch.randn(2, 8, 24), torch.randn(24)
    torch.testing.assert_close(to_w_plus(codes, "z_plus", g)[1, 5], g.mapping(codes[1, 5]))
    assert torch.equal(to_w_plus(codes, "w_plus", g, average), codes + average)
    assert torch.equal(to_w_plus(codes, "w_plus", g, average.expand(8, -1)), codes + average)
    assert torch.equal(to_w_plus(codes, "w_plus", g), codes)


def test_terms_on_codes_have_known_values() -> None:
    one, zero = torch.ones(3, 4, 5), torch.zeros(3, 4, 5)
    assert kl_divergence(one, zero) == pytest.approx(0.5 * 5)
    assert kl_divergence(zero, one) == pytest.approx(0.5 * 5 * (2.718281828 - 2), rel=1e-5)
    assert moment_penalty(torch.tensor([[[2.0, 4.0]]])) == pytest.approx(9 + (2**0.5 - 1) ** 2)
    assert w_norm(one, torch.zeros(5)) == pytest.approx(20**0.5)
    rows = torch.tensor([[[0.0, 0.0], [2.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]]])
    torch.testing.assert_close(row_spread(rows), torch.tensor([2**0.5 / 2, 0.0]))
