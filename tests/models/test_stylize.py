"""Standard, multimodal and reference-guided drawing, and the inversion of references in V space."""

from functools import cache

import pytest
import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.models.stylegan2.factorization import VSpace, factorize, modulation_weights
from lightning_styles.models.stylegan2.inversion import invert
from lightning_styles.models.stylegan2.mixing import truncate
from lightning_styles.models.stylegan2.stylize import (
    MULTIMODAL,
    REFERENCE,
    invert_reference,
    multimodal,
    reference_guided,
    scaled,
    standard,
)
from lightning_styles.pretrained.networks import load_perceptual
from tests.micro_stylegan import STYLE as D
from tests.micro_stylegan import make_stylegan


@cache
def network() -> Generator:
    """A frozen generator of 32 px."""
    return make_stylegan().generator.eval().requires_grad_(False)


def photos(count: int = 2) -> Tensor:
    """w+ of `count` pictures with styles of their own in every layer."""
    return network().mapping(torch.randn(count, network().n_latent, D))


def space() -> VSpace:
    return factorize(modulation_weights(network()))


def test_the_official_layers_are_scaled_to_the_depth() -> None:
    assert [scaled(layer, 18) for layer in (*MULTIMODAL, *REFERENCE)] == [6, 9, 12, 3, 6, 9]
    assert [scaled(layer, 10) for layer in (0, 3, 6, 9, 12, 18)] == [0, 2, 3, 5, 7, 10]


def test_standard_is_the_generator_and_truncation_ends_at_the_mean() -> None:
    g, w = network(), photos()
    mean = g.mean_latent(64)[0]
    assert torch.equal(standard(g, w), g(w))
    assert torch.equal(standard(g, w, mean=mean, psi=1.0), g(w))
    torch.testing.assert_close(standard(g, w, mean=mean, psi=0.0), g(mean.expand(2, -1)))
    noise = g.draw_noise(2)
    assert torch.equal(standard(g, w, noise), g(w, noise))


def test_multimodal_goes_from_the_random_style_alone_to_the_photo_alone() -> None:
    g, w, z = network(), photos(), torch.randn(2, network().n_latent, D)
    mean = g.mean_latent(64)[0]
    assert torch.equal(multimodal(g, w, z, mean, g.n_latent), standard(g, w))
    torch.testing.assert_close(multimodal(g, w, z, mean, 0, psi=1.0), g(g.mapping(z)))
    torch.testing.assert_close(multimodal(g, w, z, mean, 0, psi=0.0), g(mean.expand(2, -1)))
    expected = torch.cat([w[:, :3], mean + 0.7 * (g.mapping(z[:, 3:]) - mean)], 1)
    torch.testing.assert_close(multimodal(g, w, z, mean, 3), g(expected))


def test_the_larger_the_layer_the_subtler_the_change() -> None:
    g, w, z = network(), photos(8), torch.randn(8, network().n_latent, D)
    mean = g.mean_latent(64)[0]
    changes = [(multimodal(g, w, z, mean, layer) - standard(g, w)).abs().mean() for layer in (1, 3, 5, 8)]
    assert changes == sorted(changes, reverse=True)
    assert changes[-1] == 0


def test_a_reference_at_layer_0_is_all_there_is() -> None:
    g, w, v = network(), photos(), torch.randn(D)
    drawn = space().to_w(v)
    torch.testing.assert_close(reference_guided(g, w, v, space(), 0), g(drawn.expand(2, -1)))
    assert torch.equal(reference_guided(g, w, v, space(), g.n_latent), standard(g, w))
    each = reference_guided(g, w, torch.stack([v, v]), space(), 4)
    torch.testing.assert_close(each, reference_guided(g, w, v, space(), 4))
    torch.testing.assert_close(each, g(torch.cat([w[:, :4], drawn.expand(2, 4, -1)], 1)))


@pytest.mark.parametrize("layer", [-1, 9])
def test_layers_that_are_not_there_are_refused(layer: int) -> None:
    g, w = network(), photos()
    with pytest.raises(UserError, match=f"layer is {layer}; the generator has 8 styles, so expected 0 to 8"):
        multimodal(g, w, torch.randn(2, 8, D), g.mean_latent(64)[0], layer)
    with pytest.raises(UserError, match="so expected 0 to 8"):
        reference_guided(g, w, torch.randn(D), space(), layer)


def test_the_inversion_of_its_own_pictures_recovers_them() -> None:
    g, judge = network(), load_perceptual("tiny/perceptual")
    mean = g.mean_latent(512)[0]
    w = truncate(g.mapping(torch.randn(3, D)), mean, 0.5)
    target, start = g(w), g(mean.expand(3, -1))
    found = invert_reference(g, space(), target, judge, steps=150, mean=mean)
    assert found.code.shape == (3, D)
    again = g(space().to_w(found.code))
    assert (found.distance < 0.1 * judge(start, target)).all()
    assert (judge(again, target) < 0.25 * judge(start, target)).all()
    assert ((again - target).abs().mean((1, 2, 3)) < 0.35 * (start - target).abs().mean((1, 2, 3))).all()
    assert (torch.cosine_similarity(space().to_w(found.code) - mean, w - mean) > 0.85).all()
    for x in found.noise:
        torch.testing.assert_close(x.std((1, 2, 3)), torch.ones(3))
    assert all(p.grad is None for p in g.parameters())


def test_references_are_inverted_each_by_itself() -> None:
    g, judge = network(), load_perceptual("tiny/perceptual")
    targets = g(g.mapping(torch.randn(2, D)))
    together = invert_reference(g, space(), targets, judge, steps=4).code
    alone = [invert_reference(g, space(), targets[i : i + 1], judge, steps=4).code for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_an_inversion_works_within_predict_and_keeps_what_it_is_told_to() -> None:
    g, judge = network(), load_perceptual("tiny/perceptual")
    with torch.inference_mode():
        target = g(g.mapping(torch.randn(1, D)))
        v = invert_reference(g, space(), target, judge, steps=3).code
        assert reference_guided(g, target.new_zeros(1, 8, D), v, space(), 2).isfinite().all()
    start = torch.ones(1, 8, D)
    held = invert(g, target, judge, start, steps=5, penalty=lambda w: 1e6 * (w - 1).square().sum((1, 2)), lr=0.01)
    free = invert(g, target, judge, start, steps=5, lr=0.01)
    assert (held.code - 1).abs().mean() < (free.code - 1).abs().mean()
    still = invert(g, target, judge, start, steps=2, noise_weight=0.0, seed=5)
    drawn = g.draw_noise(1, torch.Generator().manual_seed(5))
    assert all(torch.equal(a, b) for a, b in zip(still.noise, drawn, strict=True))
