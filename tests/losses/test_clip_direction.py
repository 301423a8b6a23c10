"""CLIP directions, reconstruction and the objective of OSASIS against the official losses."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.errors import UserError
from lightning_styles.losses.clip_direction import (
    CLIP_MEAN,
    CLIP_STD,
    check_directions,
    clip_input,
    cosine_distance,
    cross_loss,
    in_loss,
    re_clip_loss,
)
from lightning_styles.losses.osasis import Anchors, embedding_terms, picture_terms, twin_scores
from tests.golden.fill import load_case
from tests.golden.osasis_world import excess, fake_clip_of, inputs


def test_terms_and_gradients_agree_with_the_reference() -> None:
    case, expected = load_case("osasis/f_losses_embeddings")
    given = inputs(case)
    result, style = (given[name].requires_grad_() for name in ("e_cont_B", "e_pred_style_B"))
    anchors = (given["e_style_A"], given["e_style_B"], given["e_cont_A"])
    cross, within = cross_loss(*anchors, result), in_loss(*anchors, result)
    again = re_clip_loss(style, given["e_style_B"])
    found = {
        "cross": cross,
        "in": within,
        "recon_clip": again,
        "grad_cross_cont_B": torch.autograd.grad(cross, result)[0],
        "grad_in_cont_B": torch.autograd.grad(within, result)[0],
        "grad_recon_pred_style_B": torch.autograd.grad(again, style)[0],
    }
    for name, tensor in expected.items():
        assert excess(found[name], tensor, case["tolerance"]) < 1, name


def test_the_objective_on_pictures_agrees_with_the_reference() -> None:
    case, expected = load_case("osasis/f_losses_images")
    given, config = inputs(case), case["config"]
    clip = fake_clip_of(given)
    result, again = (given[f"x0_pred_{name}_B"].requires_grad_() for name in ("cont", "style"))
    anchors = Anchors(*(clip(given[name]) for name in ("img_style_A", "img_style_B", "img_cont_A")))
    terms = embedding_terms(anchors, clip(result), clip(again))
    terms |= picture_terms(again, given["img_style_B"], lambda x: x.new_zeros(len(x)))
    names = {"cross": "cross_dom", "in": "in_dom", "re_clip": "recon_clip", "re_l1": "recon_l1"}
    names |= {"re_lpips": "recon_lpips"}
    terms = {ours: config[theirs] * terms[ours] for ours, theirs in names.items()}
    for ours, theirs in names.items():
        assert terms[ours].item() == pytest.approx(case["expected"]["weighted_terms"][theirs], rel=2e-5, abs=1e-6)
    total = sum(terms.values(), torch.tensor(0.0))
    gradients = torch.autograd.grad(total, [result, again])
    found = (total[None], *gradients)
    for name, tensor in zip(("total", "grad_x0_pred_cont_B", "grad_x0_pred_style_B"), found, strict=True):
        assert excess(tensor, expected[name], case["tolerance"]) < 1, name


def test_parallel_directions_cost_nothing_and_opposite_ones_two() -> None:
    style_a, style_b, photo = torch.randn(1, 8), torch.randn(1, 8), torch.randn(3, 8)
    moved = photo + 0.5 * (style_b - style_a)
    torch.testing.assert_close(cross_loss(style_a, style_b, photo, moved), torch.tensor(0.0), atol=1e-5, rtol=0)
    against = photo - 2 * (style_b - style_a)
    torch.testing.assert_close(cross_loss(style_a, style_b, photo, against), torch.tensor(2.0))
    shifted = photo + (style_b - style_a)
    torch.testing.assert_close(in_loss(style_a, style_b, photo, shifted), torch.tensor(0.0), atol=1e-5, rtol=0)


def test_normalised_directions_ignore_the_length_of_embeddings() -> None:
    style_a, style_b, photo, result = torch.randn(1, 8), torch.randn(1, 8), torch.randn(3, 8), torch.randn(3, 8)
    for loss in (cross_loss, in_loss):
        found = loss(style_a, style_b, photo, result, normalize=True)
        torch.testing.assert_close(loss(3 * style_a, style_b, 5 * photo, 0.1 * result, normalize=True), found)
        unit = [F.normalize(e, dim=-1) for e in (style_a, style_b, photo, result)]
        torch.testing.assert_close(loss(*unit), found)
        assert not torch.isclose(loss(style_a, style_b, photo, result), found)


def test_both_readings_of_the_reconstruction() -> None:
    e, target = torch.tensor([[3.0, 0.0, 4.0]]), torch.tensor([[0.0, 2.0, 0.0]])
    assert re_clip_loss(e, target).item() == pytest.approx(1.0)
    assert re_clip_loss(e, target, "l1").item() == pytest.approx(3.0)
    assert re_clip_loss(target, target).item() == pytest.approx(re_clip_loss(target, target, "l1").item())


def test_a_zero_direction_is_neither_nan_nor_a_gradient() -> None:
    a = torch.zeros(2, 4)
    a[1] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    a.requires_grad_()
    found = cosine_distance(a, torch.ones(1, 4))
    assert found[0].item() == 1
    found.sum().backward()
    assert a.grad is not None
    assert torch.equal(a.grad[0], torch.zeros(4))
    assert a.grad[1].abs().max() > 0
    assert torch.isfinite(a.grad).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_pictures_without_a_direction_are_refused(normalize: bool) -> None:
    style_a, style_b = 10 * torch.randn(1, 16), 10 * torch.randn(1, 16)
    check_directions(style_a, style_b, normalize)
    rounding = 1 + 1e-7 * torch.randn(1, 16)
    with pytest.raises(UserError, match="photorealistic twin"):
        check_directions(style_a, style_a * rounding, normalize)


def test_clip_sees_repeated_pixels_or_its_own_preprocessing() -> None:
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    plain = clip_input(image)
    assert plain.shape == (2, 3, 224, 224)
    assert torch.equal(plain[..., ::7, ::7], image)
    assert torch.equal(plain[..., 3::7, 6::7], image)
    white = clip_input(torch.ones(1, 3, 32, 48), "clip", size=64)
    assert white.shape == (1, 3, 64, 64)
    for channel in range(3):
        expected = (1 - CLIP_MEAN[channel]) / CLIP_STD[channel]
        torch.testing.assert_close(white[0, channel], torch.full((64, 64), expected))


def test_clip_preprocessing_equals_torchvision() -> None:
    from torchvision.transforms import v2

    image = torch.rand(1, 3, 40, 64)
    theirs = v2.Compose(
        [
            v2.Resize(28, v2.InterpolationMode.BICUBIC, antialias=True),
            v2.CenterCrop(28),
            v2.Lambda(lambda x: x.clamp(0, 1)),
            v2.Normalize(list(CLIP_MEAN), list(CLIP_STD)),
        ]
    )
    torch.testing.assert_close(clip_input(2 * image - 1, "clip", 28), theirs(image), rtol=1e-4, atol=1e-4)


def test_the_twin_is_near_in_pixels_and_in_perception() -> None:
    style = torch.zeros(1, 3, 4, 4)
    candidates = torch.stack([torch.full((3, 4, 4), value) for value in (0.1, -0.2, 0.3)])

    def perceptual(x: Tensor) -> Tensor:
        return torch.tensor([3.0, 0.5, 0.0])[: len(x)]

    torch.testing.assert_close(twin_scores(candidates, style, perceptual), torch.tensor([4.0, 2.5, 3.0]))
    terms = picture_terms(candidates[:1], style, perceptual)
    assert terms["re_l1"].item() == pytest.approx(0.1)
    assert terms["re_lpips"].item() == pytest.approx(3.0)
