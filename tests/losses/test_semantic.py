"""LPIPS against its reference, kept features, and the distances between a generator and its finetuned copy."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_styles.losses.semantic import (
    identity_distance,
    perceptual_distance,
    semantic_distance,
    shrink,
    twins,
)
from lightning_styles.metrics.perceptual import LPIPS
from lightning_styles.models.identity import IdentityNet
from lightning_styles.models.perceptual import PerceptualNet, feature_distance
from lightning_styles.models.stylegan2 import Generator
from tests.golden.stylegan_world import case_of, excess, fill_state


def reference_lpips(net: str) -> tuple[LPIPS, dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
    """LPIPS with the weights of a case, its settings, inputs and expected tensors."""
    case, x, expected = case_of(f"lpips_{net}")
    trunk = {key: torch.empty(shape) for key, shape in case["trunk_keys"].items()}
    network = LPIPS(fill_state(trunk, case["fill"]))
    for k, head in enumerate(network.network.lins):
        head.model[-1].weight.copy_(x[f"lin{k}"])
    return network, case, x, expected


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_lpips_of_the_reference(net: str) -> None:
    network, case, x, expected = reference_lpips(net)
    a = x["a"].requires_grad_()
    distance = network(a, x["b"])
    assert excess(distance, expected["distance"], case) < 1
    (gradient,) = torch.autograd.grad(distance.sum(), a)
    assert excess(gradient.abs().sum((1, 3)), expected["grad_a_rows"], case, "grad_a_rows") < 1
    maps = zip(network.embed(a), network.embed(x["b"]), strict=True)
    per_layer = torch.stack([feature_distance([p], [q]) for p, q in maps], 1)
    assert excess(per_layer, expected["per_layer"], case) < 1
    target = network.embed(x["b"])
    torch.testing.assert_close(perceptual_distance(network, a, target), distance)


def test_lpips_has_a_gradient_where_no_feature_lives() -> None:
    network = reference_lpips("alex")[0]
    for name, tensor in network.network.net.named_parameters():
        if name.endswith("bias"):
            tensor.fill_(-100.0)  # every ReLU is closed
    image = torch.randn(1, 3, 64, 64, requires_grad=True)
    network(image, torch.randn(1, 3, 64, 64)).sum().backward()
    assert image.grad is not None
    assert image.grad.isfinite().all()


def test_large_pictures_are_judged_by_their_means() -> None:
    large = torch.randn(1, 3, 1024, 1024)
    torch.testing.assert_close(shrink(large)[0, 0, 5, 7], large[0, 0, 20:24, 28:32].mean())
    small = torch.randn(1, 3, 64, 64)
    assert shrink(small) is small


def test_the_semantic_distance_is_zero_for_the_copy_and_only_trains_it() -> None:
    channels = dict.fromkeys((4, 8, 16, 32, 64), 8)
    source, judge, identity = Generator(64, 16, 2, channels=channels), PerceptualNet((8, 8)), IdentityNet()
    styled = Generator(64, 16, 2, channels=channels)
    styled.load_state_dict(source.state_dict())
    w, noise = source.mapping(torch.randn(3, 16)).detach(), source.draw_noise(3)
    original, copy = twins(source, styled, w, noise)
    assert semantic_distance(judge, identity, copy, original, 0.5).abs().max() < 1e-5
    torch.nn.init.normal_(styled.to_rgbs[-1].bias)
    original, moved = twins(source, styled, w, noise)
    distance = semantic_distance(judge, identity, moved, original, 0.5)
    expected = judge(moved, original) + 0.5 * identity_distance(identity, moved, original)
    torch.testing.assert_close(distance, expected)
    assert torch.equal(semantic_distance(judge, None, moved, original, 0.5), judge(moved, original))
    distance.mean().backward()
    assert all(p.grad is None for p in source.parameters())
    assert styled.conv1.conv.weight.grad.abs().max() > 0
