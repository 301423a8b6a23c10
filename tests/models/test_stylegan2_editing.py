"""V space, mixing and swapping, and the projector's parts against their references."""

import pytest
import torch

from lightning_styles.models.stylegan2.factorization import VSpace, factorize, modulation_weights
from lightning_styles.models.stylegan2.mixing import (
    blend,
    interpolate,
    mix,
    resolution_of,
    swap_at,
    swap_features,
    truncate,
)
from lightning_styles.models.stylegan2.projection import code_noise, noise_regularizer, normalize_noise, ramp
from tests.golden.fill import values
from tests.golden.stylegan_world import case_of, excess, generator, manifest


def test_v_space() -> None:
    case, x, expected = case_of("factorization")
    weights = modulation_weights(generator(case))
    assert len(weights) == sum(case["rows"].values())
    space = factorize(weights)
    found = {"singular_values": space.singular_values, "eigvec": space.directions}
    dim = case["config"]["style_dim"]
    q = torch.linalg.qr(values("fac.Q", (dim, dim), case["spread"]["seed"]).double()).Q.float()
    spread = factorize((weights * torch.linspace(2, 0.5, dim)) @ q.T)
    found |= {"Q": q, "spread_singular_values": spread.singular_values, "spread_eigvec": spread.directions}
    for name, ui2i in (("paper", False), ("ui2i", True)):
        space = VSpace(space.singular_values, space.directions, ui2i)
        found |= {f"w_from_v_{name}": space.to_w(x["v"]), f"v_from_w_{name}": space.to_v(x["w"])}
        torch.testing.assert_close(space.to_v(space.to_w(x["v"])), x["v"], rtol=1e-4, atol=1e-5)
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert excess(tensor, expected[name], case, name) < 1, name


def test_mixing_and_swapping() -> None:
    case, x, expected = case_of("mixing_and_swapping")
    source, target = (generator(case, fill=f"fill_{which}") for which in ("source", "target"))
    mean = target.mapping(x["z_mean"]).mean(0, keepdim=True)
    style = truncate(target.mapping(x["z_plus_style"]), mean, 0.7)
    content = x["w_plus_content"]
    found = {"mean_latent_target": mean}
    for i in (3, 6, 9):
        found[f"multimodal_i{i}_psi0.7"] = target(mix(content, style, i))
        found[f"reference_i{i}"] = target(mix(content, x["w_reference"], i))
    ours, theirs, mixed = source.state_dict(), target.state_dict(), generator(case, fill="fill_source")
    states = {"lerp_0.4": interpolate(ours, theirs, 0.4)}
    for px in (8, 32):
        states[f"toonify_low_target_high_source_res{px}"] = blend(theirs, ours, swap_at(px), ours)
        states[f"toonify_low_source_high_target_res{px}"] = blend(ours, theirs, swap_at(px), ours)
    for name, state in states.items():
        mixed.load_state_dict(state)
        found[name] = mixed(content)
    found["swap_style_w"] = style[:, 0]
    for i in (1, 3, 5):
        flat = x["w_content_flat"]
        found[f"ui2i_swap{i}"] = swap_features(source, target, flat, found["swap_style_w"], i, None)
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert excess(tensor, expected[name], case) < 1, name


def test_every_key_has_a_resolution() -> None:
    shapes = manifest("stylegan2_ffhq_1024_generator")["state_dict"]
    assert {resolution_of(key) for key in shapes} == {None, *(2**k for k in range(2, 11))}
    assert all(resolution_of(key) == shape[-1] for key, shape in shapes.items() if key.startswith("noises."))
    assert all((resolution_of(key) is None) == key.startswith("style.") for key in shapes)


def test_a_ramp_of_shares() -> None:
    assert [swap_at(16)(px) for px in (4, 8, 16, 64)] == [0, 0, 1, 1]
    assert [swap_at(16, ramp=3)(px) for px in (8, 16, 32, 64, 128)] == [0, 0.25, 0.5, 0.75, 1]


def test_styles_that_are_not_rows_yet_are_mixed() -> None:
    a, b = torch.randn(2, 3, 5)
    mixed = mix(a, b, 2, layers=4)
    assert torch.equal(mixed[:, 1], a)
    assert torch.equal(mixed[:, 2], b)
    assert torch.equal(truncate(a, b[:1], 1.0), b[:1] + (a - b[:1]))


def test_projector() -> None:
    case, x, expected = case_of("projector")
    maps, steps = list(x.values()), case["steps"]
    found = {"noise_regularize": noise_regularizer(maps, together=True)}
    lr = [case["lr"] * ramp(step / steps) for step in range(0, steps, 10)]
    strength = [code_noise(step / steps) for step in range(0, steps, 10)]
    found |= {"lr_schedule": torch.tensor(lr), "noise_strength": torch.tensor(strength)}
    normalize_noise(maps, together=True)
    found |= {f"noise_normalized_{i}": maps[i] for i in (0, 1)}
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert excess(tensor, expected[name], case) < 1, name


def test_pictures_of_a_batch_are_projected_on_their_own() -> None:
    maps = [torch.randn(3, 1, s, s) * 3 + 1 for s in (4, 16, 32)]
    alone = [noise_regularizer([m[i : i + 1] for m in maps]) for i in range(3)]
    torch.testing.assert_close(noise_regularizer(maps), torch.cat(alone))
    assert alone[0].item() == pytest.approx(noise_regularizer([m[:1] for m in maps], together=True).item())
    normalize_noise(maps)
    for x in maps:
        torch.testing.assert_close(x.mean((1, 2, 3)), torch.zeros(3), rtol=0, atol=1e-6)
        torch.testing.assert_close(x.std((1, 2, 3)), torch.ones(3))
