"""The diffusion autoencoder against the official one, and its conditioning by resolution."""

import json

import pytest
import torch

from lightning_styles.models.diffae import DiffAE, DiffAEConfig, DiffAEUNet, LatentConfig, style_levels
from lightning_styles.models.diffusion_blocks import gradient_checkpointing, timestep_embedding
from tests.golden.fill import FOLDER, load_case
from tests.golden.osasis_world import T_RAW, diffae, excess, inputs

TINY = DiffAEConfig(
    channels=8,
    multipliers=(1, 2),
    res_blocks=1,
    attention_levels=(1,),
    encoder_multipliers=(1, 2),
    encoder_res_blocks=1,
    encoder_attention_levels=(1,),
    heads=2,
    embedding=16,
    dropout=0.5,
    latent=LatentConfig(32, 3, (1, 2), 8),
)


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """No layer at zero, so that every part of a network matters."""
    draw = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=draw) / max(1, p[0].numel()) ** 0.5 + (p.ndim == 1)
    return network


def test_prediction_and_codes_agree_with_the_reference() -> None:
    case, expected = load_case("osasis/a_diffae_forward")
    given, network = inputs(case), diffae(case)
    with torch.no_grad():
        assert excess(network(given["x"], T_RAW, given["cond"]), expected["pred"], case["tolerance"]) < 1
    case, expected = load_case("osasis/a_diffae_encode")
    with torch.no_grad():
        z = diffae(case).encoder(inputs(case)["img"])
    assert excess(z, expected["z_sem"], case["tolerance"]) < 1


def test_single_blocks_agree_with_the_reference() -> None:
    case, expected = load_case("osasis/a_diffae_blocks")
    given, network = inputs(case), diffae(case)
    h, temb, z = given["h0"], given["time_emb"], given["cond"]
    with torch.no_grad():
        found = {
            "input_blocks.1": network.input_blocks[1](h, temb, z),
            "input_blocks.3": network.input_blocks[3](h, temb, z),
            "time_embed": network.time_embed(timestep_embedding(T_RAW, network.config.channels)),
            "encoder.input_blocks.1": network.encoder.input_blocks[1](h),
        }
    for name, tensor in found.items():
        assert excess(tensor, expected[name], case["tolerance"]) < 1, name


@pytest.mark.parametrize(("levels", "name"), [((0, 1), "0_1"), ((0,), "0"), ((), "none")])
def test_mixed_conditioning_agrees_with_the_reference(levels: tuple[int, ...], name: str) -> None:
    case, expected = load_case("osasis/a_diffae_mix")
    given, network = inputs(case), diffae(case)
    with torch.no_grad():
        found = network(given["x"], T_RAW, given["cond_input"], given["cond_ref"], levels)
    assert excess(found, expected[f"pred_ref_{name}"], case["tolerance"]) < 1


def test_latent_prior_agrees_with_the_reference() -> None:
    case, expected = load_case("osasis/b_latent")
    full, _ = load_case("osasis/a_diffae_forward")
    with torch.no_grad():
        found = diffae(full).latent_net(inputs(case)["x_latent"], T_RAW)
    assert excess(found, expected["pred"], case["tolerance"]) < 1


def test_the_full_network_has_the_official_keys_in_their_order() -> None:
    files = [FOLDER / f"osasis/manifest_diffae_ffhq256_autoenc{suffix}.json" for suffix in ("", "_latent")]
    manifests = [json.loads(file.read_text()) for file in files]
    with torch.device("meta"):
        network = DiffAE()
    expected = {key: tuple(shape) for manifest in manifests for key, shape in manifest["keys"].items()}
    found = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    assert list(found.items()) == list(expected.items())
    assert sum(p.numel() for p in network.parameters()) == sum(m["parameters"] for m in manifests)
    with torch.device("meta"):
        assert DiffAEUNet().state_dict().keys() == {
            k for k in expected if not k.startswith(("encoder.", "latent_net."))
        }


def test_levels_of_the_style_code() -> None:
    assert style_levels(32, 256, 6) == {0, 1, 2, 3}
    assert style_levels(256, 256, 6) == {0}
    assert style_levels(512, 256, 6) == frozenset()
    assert style_levels(1, 64, 4) == {0, 1, 2, 3}


def test_the_published_network_mixes_where_the_paper_says() -> None:
    with torch.device("meta"):
        network = DiffAEUNet()
    style = style_levels(32, 256, network.levels)
    assert [i for i, level in enumerate(network.down_levels) if level in style] == list(range(12))
    assert [i for i, level in enumerate(network.up_levels) if level in style] == list(range(6, 18))


def test_equal_codes_and_all_levels_are_single_conditioning() -> None:
    network = randomised(DiffAEUNet(TINY)).eval()
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([10, 500])
    z, style = torch.randn(2, 16), torch.randn(1, 16)
    with torch.no_grad():
        single = network(x, t, z)
        assert torch.equal(network(x, t, z, z, {0}), single)
        assert torch.equal(network(x, t, z, style), single)
        mixed = network(x, t, z, style, {0, 1})
        assert not torch.allclose(mixed, network(x, t, style.expand(2, -1)))  # the middle keeps z


def test_rows_of_a_batch_do_not_mix() -> None:
    network = randomised(DiffAE(TINY)).eval()
    x, t, z = torch.randn(3, 3, 16, 16), torch.tensor([10, 500, 10]), torch.randn(3, 16)
    with torch.no_grad():
        together = network(x, t, z)
        for i in range(3):
            torch.testing.assert_close(
                network(x[i : i + 1], t[i : i + 1], z[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-5
            )


def test_checkpointing_changes_nothing_but_memory() -> None:
    x, t, z = torch.randn(2, 3, 16, 16), torch.tensor([10, 500]), torch.randn(2, 16)
    gradients = []
    for on in (False, True):
        network = randomised(DiffAEUNet(TINY)).train()
        gradient_checkpointing(network, on)
        torch.manual_seed(1)  # dropout
        network(x, t, z).square().mean().backward()
        gradients.append([p.grad for p in network.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_dropout_acts_in_training_alone() -> None:
    network = randomised(DiffAEUNet(TINY))
    x, t, z = torch.randn(1, 3, 16, 16), torch.tensor([10]), torch.randn(1, 16)
    with torch.no_grad():
        assert not torch.equal(network.train()(x, t, z), network(x, t, z))
        assert torch.equal(network.eval()(x, t, z), network(x, t, z))


def test_half_precision_weights_take_and_return_single_precision() -> None:
    network = randomised(DiffAE(TINY)).eval()
    x, t = torch.randn(1, 3, 16, 16), torch.tensor([10])
    with torch.no_grad():
        z = network.encoder(x)
        expected = network(x, t, z), network.latent_net(z, t)
        network.bfloat16()
        found = network(x, t, z), network.latent_net(z, t)
        assert network.encoder(x).dtype == torch.float32
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert ((a - b).norm() / b.norm()).item() < 0.05


def test_a_fresh_network_predicts_nothing() -> None:
    network = DiffAEUNet(TINY)
    assert not network(torch.randn(1, 3, 16, 16), torch.tensor([3]), torch.randn(1, 16)).any()
