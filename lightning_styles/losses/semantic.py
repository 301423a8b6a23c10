"""Distances that keep the person and the scene while the style changes.

Pictures are (B, 3, H, W) in [-1, 1], all results (B,): sum them where pictures are optimised on their own, average
them where a network is trained. A `Judge` is LPIPS or the small perceptual network, an identity network maps
pictures to unit vectors.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.models.perceptual import feature_distance
from lightning_styles.models.stylegan2.generator import Generator

SEEN = 256  # px at which pictures are judged, if they are larger


class Judge(Protocol):
    """A network that embeds pictures for `feature_distance`."""

    def embed(self, image: Tensor) -> list[Tensor]: ...


def shrink(image: Tensor, size: int = SEEN) -> Tensor:
    """Pictures reduced to `size` px by averaging (4 x 4 means at 1024 px); smaller ones stay as they are."""
    return F.adaptive_avg_pool2d(image, size) if min(image.shape[-2:]) > size else image


def identity_distance(network: nn.Module, image: Tensor, target: Tensor) -> Tensor:
    """1 - <f(image), f(target)>; only `image` gets a gradient."""
    with torch.no_grad():
        anchor = network(shrink(target))
    return 1 - (network(shrink(image)) * anchor).sum(1)


def perceptual_distance(judge: Judge, image: Tensor, target: list[Tensor]) -> Tensor:
    """Distance of `image` to pictures whose `embed` of `shrink` is `target`, computed once for many steps."""
    return feature_distance(judge.embed(shrink(image)), target)


def semantic_distance(
    judge: Judge, identity: nn.Module | None, image: Tensor, source: Tensor, identity_weight: float
) -> Tensor:
    """perceptual + identity_weight * identity distance of G'(z) = `image` to G(z) = `source`, which gets no gradient.

    Both are to be drawn with the same styles and the same noise maps: noise of their own adds a floor.
    """
    with torch.no_grad():
        target = judge.embed(shrink(source))
    distance = perceptual_distance(judge, image, target)
    if identity is None or identity_weight == 0:
        return distance
    return distance + identity_weight * identity_distance(identity, image, source)


def twins(source: Generator, styled: Generator, w: Tensor, noise: list[Tensor]) -> tuple[Tensor, Tensor]:
    """G(w), without graph, and G'(w) with the same noise maps."""
    with torch.no_grad():
        original = source(w, noise)
    return original, styled(w, noise)
