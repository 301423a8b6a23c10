"""Tokens and their self-similarities, by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.models.self_similarity import (
    DinoKeys,
    PerceptualTokens,
    resized,
    self_similarity,
    structure_distance,
)
from tests.micro_judges import micro_vit


class Pixels(nn.Module):
    """Each pixel is a token, its colours the vector."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(2).mT


def test_self_similarities_of_three_vectors() -> None:
    tokens = torch.tensor([[[3.0, 0.0], [1.0, 1.0], [0.0, -2.0], [0.0, 0.0]]])
    half = 0.5**0.5
    expected = [[1, half, 0, 0], [half, 1, -half, 0], [0, -half, 1, 0], [0, 0, 0, 0]]
    torch.testing.assert_close(self_similarity(tokens)[0], torch.tensor(expected))


def test_the_distance_of_two_pairs_of_pixels() -> None:
    red, green, blue = torch.eye(3)
    two = torch.stack([red, green], 1)[None, :, None]  # S = identity
    same = torch.stack([blue, 3 * blue], 1)[None, :, None]  # S = all ones
    opposite = torch.stack([blue, -blue], 1)[None, :, None]  # S = 1 on, -1 off the diagonal
    x, y = torch.cat([two, same, two, same]), torch.cat([same, opposite, two, 0.1 * same])
    distances = structure_distance(Pixels(), x, y)
    torch.testing.assert_close(distances, torch.tensor([2 / 4, 8 / 4, 0, 0]))


def test_other_colours_in_the_same_places_have_the_same_structure() -> None:
    x = torch.rand(2, 3, 4, 4)
    assert structure_distance(Pixels(), x, x[:, [2, 0, 1]]).max() < 1e-9
    assert structure_distance(Pixels(), x, x.flip(-1)).min() > 1e-3


def test_dino_keys_are_the_middle_third_of_the_last_layer() -> None:
    vit, images, seen = micro_vit(), torch.rand(2, 3, 32, 32) * 2 - 1, []
    hook = vit.blocks[-1].attn.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    vit(((images + 1) / 2 - mean) / std)
    hook.remove()
    (qkv,) = seen
    keys = qkv.unflatten(-1, (3, 2, 64))[:, :, 1]  # (B, N, 3, heads, 64) -> the keys of both heads
    found = DinoKeys(vit, short_side=32)(images)
    assert found.shape == (2, 1 + 16, 128)
    torch.testing.assert_close(found, keys.flatten(2))


def test_dino_sees_any_size_and_aspect_ratio() -> None:
    network = DinoKeys(micro_vit(dynamic_img_size=True), short_side=32)
    images = torch.rand(1, 3, 64, 100)
    assert network(images).shape == (1, 1 + 4 * 6, 128)
    shown = F.interpolate(images, (32, 48), mode="bilinear", antialias=True)
    torch.testing.assert_close(network(images), network(shown))


def test_tokens_of_the_small_network_are_centred() -> None:
    network = PerceptualNet((4, 8)).eval()
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    tokens = PerceptualTokens(network)(images)
    assert tokens.shape == (2, 32 * 32, 8)
    features = network.features(images)[-1].flatten(2).mT
    torch.testing.assert_close(tokens, features - features.mean(1, keepdim=True))


@pytest.mark.parametrize(
    ("size", "expected"), [((224, 224), (224, 224)), ((448, 900), (224, 448)), ((300, 100), (672, 224))]
)
def test_the_longer_side_becomes_a_multiple(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized(torch.zeros(1, 3, *size), 224, 8).shape[-2:] == expected
