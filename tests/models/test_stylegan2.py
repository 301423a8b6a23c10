"""StyleGAN2's networks against the official ones, and what they are under an autocast and at full size."""

import pytest
import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.models.stylegan2 import Discriminator, Generator, layers
from lightning_styles.models.stylegan2.discriminator import ResBlock, minibatch_stddev
from lightning_styles.models.stylegan2.layers import ConvLayer, EqualConv2d, EqualLinear, ModulatedConv2d
from lightning_styles.models.stylegan2.ops import fused_leaky_relu, make_kernel, upfirdn2d
from tests.golden.fill import values
from tests.golden.stylegan_world import (
    case_of,
    discriminator,
    excess,
    filled,
    generator,
    manifest,
    shapes_of,
)

SMALL = {4: 16, 8: 16, 16: 16, 32: 8, 64: 8}


def test_filters_and_their_gradients() -> None:
    case, inputs, expected = case_of("upfirdn2d")
    for name, v in case["variants"].items():
        up, down = (tuple(v[k]) if isinstance(v[k], list) else v[k] for k in ("up", "down"))
        kernel = make_kernel(tuple(map(float, case["taps"][v["taps"]])), v["gain"])
        x = inputs["x"].clone().requires_grad_()
        y = upfirdn2d(x, kernel, up, down, tuple(v["pad"]))
        assert excess(y, expected[name], case) < 1, name
        (gradient,) = torch.autograd.grad((y * values(f"upfirdn.probe.{name}", y.shape, 101)).sum(), x)
        assert excess(gradient, expected[f"{name}.grad_x"], case) < 1, name


def test_the_activation() -> None:
    case, x, expected = case_of("fused_leaky_relu")
    assert excess(fused_leaky_relu(x["x4"], x["bias"]), expected["x4_bias"], case) < 1
    assert excess(fused_leaky_relu(x["x2"], x["bias"]), expected["x2_bias"], case) < 1
    assert excess(fused_leaky_relu(x["x4"]), expected["x4_nobias"], case) < 1


def test_equalised_layers() -> None:
    case, inputs, expected = case_of("equalized_layers")
    made: dict[str, nn.Module] = {
        "linear": EqualLinear(12, 7),
        "linear_lrmul_act": EqualLinear(12, 9, lr_mul=0.01, activate=True),
        "conv3": EqualConv2d(4, 6, 3),
        "convlayer_down": ConvLayer(4, 6, 3, down=True),
        "convlayer_skip": ConvLayer(4, 6, 1, down=True, activate=False),
        "resblock": ResBlock(4, 6),
    }
    assert set(made) == set(case["variants"])
    for name, module in made.items():
        assert shapes_of(module) == case["variants"][name]
        assert excess(filled(module, case["fill"][name])(inputs[name]), expected[name], case) < 1, name


@pytest.mark.parametrize("one_step", [False, True])
def test_modulated_convolutions_with_first_and_second_gradients(
    one_step: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "ONE_STEP", 0 if one_step else 10**6)
    case, inputs, expected = case_of("modulated_conv")
    for name, v in case["variants"].items():
        resample = "up" if v.get("upsample") else "down" if v.get("downsample") else None
        conv = ModulatedConv2d(v["in"], v["out"], v["k"], v["style_dim"], v.get("demodulate", True), resample)
        filled(conv, case["fill"]).requires_grad_()
        x, style = (inputs[f"{name}.{part}"].clone().requires_grad_() for part in ("x", "style"))
        y = conv(x, style)
        loss = (y * values(f"mod.probe.{name}", y.shape, 101)).sum()
        first = torch.autograd.grad(loss, [x, style, conv.weight], create_graph=True)
        (second,) = torch.autograd.grad(first[1].square().sum(), conv.weight)
        found = {"": y} | dict(zip((".grad_x", ".grad_style", ".grad_weight"), first, strict=True))
        for part, tensor in (found | {".gradgrad_weight": second}).items():
            assert excess(tensor, expected[name + part], case) < 1, name + part


@pytest.mark.parametrize("name", ["generator_g32", "generator_g64"])
def test_generator(name: str) -> None:
    case, x, expected = case_of(name)
    g = generator(case)
    given = [x[f"noise_{k}"] for k in range(g.n_latent - 1)]
    w1, w2, mean = g.mapping(x["z1"]), g.mapping(x["z2"]), g.mapping(x["z_mean"]).mean(0, keepdim=True)

    def rows(first: Tensor, second: Tensor, index: int) -> Tensor:
        return torch.cat([first[:, None].expand(-1, index, -1), second[:, None].expand(-1, g.n_latent - index, -1)], 1)

    def truncated(w: Tensor, psi: float) -> Tensor:
        return mean + psi * (w - mean)

    latents = {
        "truncated_0.6.latent": truncated(w1, 0.6)[:, None].expand(-1, g.n_latent, -1),
        "mix_inject3.latent": rows(w1, w2, 3),
        "z_plus_to_w_plus": g.mapping(x["z_plus"]),
    }
    last = g.n_latent - 2
    pictures = {
        "from_z": g(w1),
        "from_w": g(x["w"]),
        "from_w_plus": g(x["w_plus"]),
        "truncated_0.6": g(truncated(w1, 0.6)),
        "mix_inject3": g(latents["mix_inject3.latent"]),
        "mix_inject_last_truncated_0.7": g(rows(truncated(w1, 0.7), truncated(w2, 0.7), last)),
        "given_noise": g(w1, given),
        "from_z_plus": g(latents["z_plus_to_w_plus"]),
        "from_z_plus_truncated_0.5": g(truncated(latents["z_plus_to_w_plus"], 0.5)),
    }
    found = {"mapping_w": w1, "mean_latent": mean} | latents | pictures
    assert set(found) == set(expected)
    for key, tensor in found.items():
        assert excess(tensor, expected[key], case) < 1, key


def test_discriminator_and_its_groups() -> None:
    case, x, expected = case_of("discriminator")
    d = discriminator(case)
    for n in (1, 3, 4, 8):
        assert excess(d(x[f"x{n}"]), expected[f"logits_b{n}"], case) < 1, n
        if f"stddev_channel_b{n}" in expected:
            spread = minibatch_stddev(d.features(x[f"x{n}"])[-1])[:, 0, 0, 0]
            assert excess(spread, expected[f"stddev_channel_b{n}"], case) < 1, n
    assert excess(d.features(x["x4"])[-1], expected["features_b4"], case) < 1
    with pytest.raises(UserError, match="6 is no multiple of 4"):
        d(torch.zeros(6, 3, 32, 32))


def test_full_size_has_the_official_keys_in_their_order() -> None:
    with torch.device("meta"):
        networks = {"generator": Generator(1024), "discriminator": Discriminator(1024)}
    for name, network in networks.items():
        expected = manifest(f"stylegan2_ffhq_1024_{name}")
        assert list(shapes_of(network).items()) == list(expected["state_dict"].items())
        assert sum(p.numel() for p in network.parameters()) == expected["parameters"]


def test_widths_of_ones_own_and_fresh_noise() -> None:
    g, d = Generator(64, 24, 2, channels=SMALL), Discriminator(64, channels=SMALL)
    noise = g.draw_noise(3, torch.Generator().manual_seed(1))
    assert [tuple(n.shape) for n in noise] == [(3, 1, s, s) for s in (4, 8, 8, 16, 16, 32, 32, 64, 64)]
    assert all(torch.equal(a, b) for a, b in zip(noise, g.draw_noise(3, torch.Generator().manual_seed(1)), strict=True))
    picture = g(g.mapping(torch.randn(3, 24)), noise)
    assert picture.shape == (3, 3, 64, 64)
    assert d(picture).shape == (3, 1)
    assert [tuple(m.shape[1:]) for m in d.features(picture)] == [
        (8, 64, 64), (8, 32, 32), (16, 16, 16), (16, 8, 8), (16, 4, 4),
    ]  # fmt: skip


def test_the_layers_that_freezing_counts() -> None:
    d = Discriminator(32, channels=SMALL)
    names = {module: name for name, module in d.named_modules()}
    assert [names[layer] for layer in d.layers()] == [
        "convs.0",
        *(f"convs.{j}.{part}" for j in (1, 2, 3) for part in ("conv1", "conv2", "skip")),
        "final_conv", "final_linear.0", "final_linear.1",
    ]  # fmt: skip
    assert {p for layer in d.layers() for p in layer.parameters()} == set(d.parameters())


def test_features_can_be_replaced() -> None:
    g = Generator(32, 24, 2, channels=SMALL)
    a, b = torch.randn(2, 2, 24)
    assert torch.equal(g(a, replace={8: g.features(a, 8)}), g(a))
    both = g(b, replace={32: g.features(a, 32)})  # only the colours of the layers below are left of b
    assert not torch.allclose(both, g(a))
    assert not torch.allclose(both, g(b))


def test_an_autocast_reaches_the_highest_resolutions_and_no_sums() -> None:
    g, d = Generator(128, 24, 2, channels=SMALL | {128: 8}), Discriminator(128, channels=SMALL | {128: 8})
    dtypes: dict[str, torch.dtype] = {}

    def note(name: str) -> object:
        return lambda module, args, out: dtypes.__setitem__(name, out.dtype)

    for prefix, network in (("g", g), ("d", d)):
        for name, module in network.named_modules():
            if isinstance(module, (layers.StyledConv, layers.ToRGB, EqualLinear, ConvLayer)):
                module.register_forward_hook(note(f"{prefix}.{name}"))
    w = g.mapping(torch.randn(4, 24))
    exact = d(g(w))
    with torch.autocast("cpu", torch.bfloat16):
        close = d(g(w))
    assert close.dtype == torch.float32
    assert (close - exact).abs().max() < 0.05 * exact.abs().max().clamp_min(1)
    half = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    convs = {f"g.convs.{k}" for k in range(2, 10)}  # 16 to 128 px
    assert {name for name in half if name.startswith("g.")} == convs
    assert {name.split(".")[2] for name in half if name.startswith("d.")} == {"0", "1", "2", "3", "4"}  # 128 to 16 px
