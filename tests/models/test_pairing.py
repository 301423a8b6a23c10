"""The three levels of pseudo pairs: what each is, what recovers a picture of the generator, independent pictures."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.models.psp import Space
from lightning_styles.models.stylegan2.mixing import truncate
from lightning_styles.models.stylegan2.pairing import (
    Level,
    PairNetworks,
    PairSettings,
    best_levels,
    encode,
    encode_w,
    optimise_codes,
    pseudo_pairs,
)
from lightning_styles.models.stylegan2.projection import noise_regularizer, normalize_noise
from lightning_styles.pretrained.networks import load_identity, load_perceptual
from tests.micro_stylegan import LAYERS, SIZE, STYLE, make_psp, make_stylegan, shaken


@pytest.fixture(scope="module")
def nets() -> PairNetworks:
    model = make_stylegan()
    return PairNetworks(
        source=model.generator.requires_grad_(False),
        finetuned=make_stylegan().generator.requires_grad_(False),
        latent_avg=model.latent_avg,
        encoder=make_psp("z_plus"),
        refiner=make_psp("w_plus"),
        judge=load_perceptual("tiny/perceptual"),
        identity=load_identity("tiny/identity"),
    )


def draws(nets: PairNetworks, count: int) -> list[Tensor]:
    return nets.source.draw_noise(count, torch.Generator().manual_seed(3))


def pictures(nets: PairNetworks, count: int) -> tuple[Tensor, Tensor]:
    """z (B, D) and what G* draws of it."""
    z = torch.randn(count, STYLE, generator=torch.Generator().manual_seed(4))
    return z, nets.finetuned(nets.finetuned.mapping(z))


@pytest.mark.parametrize("space", ["w_plus", "z_plus"])
@pytest.mark.parametrize("shape", [(STYLE,), (LAYERS, STYLE)])
def test_codes_start_from_the_mean_that_their_encoder_has(nets: PairNetworks, space: Space, shape: tuple) -> None:
    image = pictures(nets, 2)[1]
    average = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    bare = replace(nets.encoder, space=space, latent_avg=None)
    model = replace(bare, latent_avg=average)
    codes = encode(bare, image)
    assert codes.shape == (2, LAYERS, STYLE)
    assert torch.equal(encode(model, image), codes + average)
    for one, expected in ((bare, codes), (model, codes + average)):
        if space == "z_plus":
            rows = [nets.source.mapping(expected[:, layer]) for layer in range(LAYERS)]
            torch.testing.assert_close(encode_w(one, nets.source, image), torch.stack(rows, 1))
        else:
            assert torch.equal(encode_w(one, nets.source, image), expected)


def test_the_levels_are_what_the_paper_says(nets: PairNetworks) -> None:
    style = pictures(nets, 2)[1]
    one, two, three = pseudo_pairs(nets, style, draws(nets, 2), PairSettings(steps=5, psi=0.7))
    z = nets.encoder.encoder(style)
    assert z.shape == (2, LAYERS, STYLE)
    torch.testing.assert_close(one.z, z)
    for level in (one, two):
        assert level.z is not None
        torch.testing.assert_close(level.w, truncate(nets.source.mapping(level.z), nets.latent_avg, 0.7))
    assert nets.refiner is not None
    torch.testing.assert_close(three.w, nets.refiner.encoder(two.image) + nets.refiner.latent_avg)
    for level in (one, two, three):
        torch.testing.assert_close(level.image, nets.source(level.w))
        torch.testing.assert_close(level.perceptual, nets.judge(level.image, style))  # type: ignore[operator]
        f = nets.identity
        assert f is not None
        torch.testing.assert_close(level.identity, 1 - (f(level.image) * f(style)).sum(1))
        torch.testing.assert_close(level.score, level.perceptual + level.identity)
    assert one.z is not None
    assert two.z is not None
    assert not torch.equal(one.z, two.z)


def test_pictures_that_g_itself_drew_are_recovered(nets: PairNetworks) -> None:
    """With G* = G, level 2 must find codes that draw the picture again."""
    _, style = pictures(nets, 2)
    settings = PairSettings(steps=200, psi=1.0, lr=0.05, spread=0.1)
    one, two, _ = pseudo_pairs(nets, style, draws(nets, 2), settings)
    # Rounding alone sends the search elsewhere: one picture may be left at half of its distance.
    assert two.perceptual.mean() < 0.5 * one.perceptual.mean(), (one.perceptual, two.perceptual)
    ours, before = ((level.image - style).square().mean((1, 2, 3)) for level in (two, one))
    assert ours.mean() < 0.5 * before.mean(), (before, ours)


def test_level_2_follows_g_star_and_is_drawn_by_g(nets: PairNetworks) -> None:
    other = replace(nets, finetuned=shaken(make_stylegan().generator, 0.5).requires_grad_(False))
    style = pictures(other, 1)[1]
    ours, theirs = (pseudo_pairs(n, style, draws(nets, 1), PairSettings(steps=20))[1] for n in (nets, other))
    assert not torch.allclose(ours.w, theirs.w, atol=1e-3)
    torch.testing.assert_close(theirs.image, nets.source(theirs.w))


def test_what_becomes_of_a_picture_does_not_depend_on_the_others(nets: PairNetworks) -> None:
    style, noise, settings = pictures(nets, 3)[1], draws(nets, 3), PairSettings(steps=6)
    others = style.flip(-1)
    others[1] = style[1]
    ours, theirs = (pseudo_pairs(nets, pictures, noise, settings) for pictures in (style, others))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.w[1], b.w[1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(a.score[1], b.score[1])
        assert not torch.allclose(a.w[0], b.w[0], atol=1e-4)


def test_level_2_keeps_the_palette_if_asked(nets: PairNetworks) -> None:
    style = pictures(nets, 1)[1]
    one, two, _ = pseudo_pairs(nets, style, draws(nets, 1), PairSettings(steps=5, colour_layer=5))
    assert torch.equal(two.w[:, 5:], one.w[:, 5:])
    assert not torch.isclose(two.w[:, :5], one.w[:, :5]).all()


def test_level_3_can_encode_the_style_picture_and_be_left_out(nets: PairNetworks) -> None:
    style = pictures(nets, 1)[1]
    third = pseudo_pairs(nets, style, draws(nets, 1), PairSettings(steps=2, refine="s"))[2]
    assert nets.refiner is not None
    torch.testing.assert_close(third.w, encode_w(nets.refiner, nets.source, style))
    assert len(pseudo_pairs(replace(nets, refiner=None), style, draws(nets, 1), PairSettings(steps=2))) == 2
    without = pseudo_pairs(replace(nets, identity=None), style, draws(nets, 1), PairSettings(steps=2))
    assert [float(level.identity) for level in without] == [0.0] * 3


def test_the_spread_weight_pulls_the_styles_of_a_picture_together(nets: PairNetworks) -> None:
    style = pictures(nets, 1)[1]
    spreads = []
    for weight in (0.0, 100.0):
        level: Level = pseudo_pairs(nets, style, draws(nets, 1), PairSettings(steps=40, spread=weight))[1]
        assert level.z is not None
        spreads.append(float(level.z.std(1).mean()))
    assert spreads[1] < 0.5 * spreads[0]


def test_encoders_see_pictures_of_any_size(nets: PairNetworks) -> None:
    seen: list[Tensor] = []

    class Watch(nn.Module):
        size = SIZE

        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return torch.zeros(len(image), LAYERS, STYLE)

    model = replace(nets.encoder, encoder=Watch())  # type: ignore[arg-type]
    large = torch.rand(1, 3, 4 * SIZE, 4 * SIZE)
    for picture in (large, large[..., :SIZE, :SIZE], torch.rand(1, 3, SIZE // 2, SIZE), large[..., 8:-8]):
        encode(model, picture)
    assert {x.shape for x in seen} == {(1, 3, SIZE, SIZE)}
    torch.testing.assert_close(seen[0], nn.functional.avg_pool2d(large, 4))
    torch.testing.assert_close(seen[1], large[..., :SIZE, :SIZE])


def test_the_best_level_has_the_lowest_score() -> None:
    assert best_levels(torch.tensor([[0.3, 0.2, 0.4], [0.1, 0.2, 0.05]])).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 3}, "pairs has step; expected steps, lr,"),
        ({"lr": -1.0}, "pairs.lr is -1.0; it must be at least 0"),
        ({"batch_size": 0}, "pairs.batch_size is 0"),
        ({"refine": "p1"}, "pairs.refine is p1; expected p2 or s"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PairSettings.of(settings)


def test_level_2_descends_the_sum_of_its_terms(nets: PairNetworks) -> None:
    """LPIPS + lambda_ID (1 - cos) + spread + noise, with Adam from the code of level 1: two steps, written out."""
    style, maps = pictures(nets, 2)[1], draws(nets, 2)
    z = encode(nets.encoder, style).detach()
    settings = PairSettings(steps=2, lr=0.05, identity=3.0, spread=0.7, noise=10.0)
    found = optimise_codes(nets, z, style, maps, settings)

    f, judge = nets.identity, nets.judge
    assert f is not None
    code, noise = z.clone().requires_grad_(True), [x.clone().requires_grad_(True) for x in maps]
    optimizer = torch.optim.Adam([code, *noise], 0.05)
    for share in (0.0, 1.0):  # of the rate, which rises from 0
        optimizer.param_groups[0]["lr"] = 0.05 * share
        image = nets.finetuned(nets.finetuned.mapping(code), noise)
        loss = judge(image, style).sum() + 3.0 * (1 - (f(image) * f(style)).sum(1)).sum()  # type: ignore[operator]
        loss = loss + 0.7 * code.std(1).mean(1).sum() + 10.0 * noise_regularizer(noise).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        normalize_noise(noise)
    assert (found - z).abs().max() > 0.04
    torch.testing.assert_close(found, code.detach(), rtol=1e-3, atol=1e-3)
