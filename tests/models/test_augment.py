"""ADA against its reference, DiffAugment against its formulas, and both as functions of what is drawn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.models import diff_augment as da
from lightning_styles.models.augment import (
    BGC,
    BLIT,
    COLOUR,
    GEOMETRY,
    Draws,
    augment,
    colour_matrices,
    draw,
    next_probability,
    recolour,
    warp,
    warp_matrices,
)
from lightning_styles.models.augmentation import Augmentation
from tests.golden.stylegan_world import case_of, excess

SETS = {"blit": BLIT, "geom": GEOMETRY, "color": COLOUR, "bgc": BGC}


def at_percentile(q: float, batch: int) -> Draws:
    """Numbers that lie at one percentile, without a second rotation, as the reference is debugged."""
    n = len(BGC) + 1
    uniform = torch.full((batch, n + 1), q)
    uniform[:, len(BGC)] = 0.5
    return Draws(torch.zeros(batch, n), uniform, torch.erfinv(torch.full((batch, n + 1), 2 * q - 1)))


def picture(low: Tensor) -> Tensor:
    return F.interpolate(low, (32, 32), mode="bilinear", align_corners=False)


@pytest.mark.parametrize("q", [0.3, 0.8])
@pytest.mark.parametrize("name", SETS)
def test_transforms_of_the_reference(name: str, q: float) -> None:
    case, x, expected = case_of("ada_augment")
    assert set(case["nvidia_sets"][name]) == set(SETS[name])
    found = augment(picture(x["low"]), at_percentile(q, 2), 1.0, SETS[name])
    assert excess(found, expected[f"nvidia_{name}_percentile{q}"], case) < 1


def test_given_matrices_do_what_the_reference_does_with_them() -> None:
    case, x, expected = case_of("ada_augment")
    image = picture(x["low"])
    assert excess(warp(image, expected["rosinality_G_inverse"]), expected["rosinality_affine"], case) < 1
    assert excess(recolour(image, expected["rosinality_C"]), expected["rosinality_color"], case) < 1


def test_probability_zero_is_no_augmentation_and_one_is_all_of_it() -> None:
    draws = draw(6, torch.Generator().manual_seed(3))
    assert torch.equal(warp_matrices(draws, 0.0, 32, 32), torch.eye(3).expand(6, -1, -1))
    assert torch.equal(colour_matrices(draws, 0.0), torch.eye(4).expand(6, -1, -1))
    assert not any(torch.equal(m, torch.eye(3)) for m in warp_matrices(draws, 1.0, 32, 32))
    image = torch.rand(6, 3, 32, 32)
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    smooth = picture(torch.rand(6, 3, 8, 8))
    assert (augment(smooth, draws, 0.0) - smooth)[inside].abs().max() < 0.05  # resampling twice is almost nothing
    assert torch.equal(augment(image, draws, 0.5), augment(image, draws, 0.5))


def test_each_transform_comes_with_its_probability() -> None:
    draws = draw(4000, torch.Generator().manual_seed(5))
    for name in BGC:
        matrices = warp_matrices(draws, 0.4, 32, 32, (name,)) if name not in COLOUR else None
        found = colour_matrices(draws, 0.4, (name,)) if matrices is None else matrices
        moved = (found - torch.eye(found.shape[-1])).abs().amax((1, 2)) > 1e-6
        share = {"xflip": 0.2, "rotate90": 0.3, "lumaflip": 0.2}.get(name, 0.4)  # some of the draws are "do nothing"
        assert moved.float().mean().item() == pytest.approx(share, abs=0.03), name


def test_shifts_by_whole_px_move_the_picture() -> None:
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16, 16] = 1
    draws = Draws(torch.zeros(1, len(BGC) + 1), torch.full((1, len(BGC) + 2), 0.5), torch.zeros(1, len(BGC) + 2))
    draws.uniform[:, BGC.index("xint")] = 0.75  # a quarter of the way to the right, 2 px
    moved = augment(image, draws, 1.0, ("xint",))
    assert divmod(int(moved[0, 0].argmax()), 32) == (16, 18)


@pytest.mark.parametrize("which", ["ada", "diff_augment"])
def test_gradients_go_through_twice(which: str) -> None:
    generator = torch.Generator().manual_seed(1)
    draws, numbers = draw(2, generator), da.draw(2, generator)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "ada": lambda image: augment(image, draws, 1.0),
        "diff_augment": lambda image: da.diff_augment(image, numbers),
    }
    image = torch.rand(2, 3, 16, 16, requires_grad=True)
    (first,) = torch.autograd.grad(functions[which](image).pow(3).sum(), image, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), image)
    assert second.isfinite().all()
    assert second.abs().max() > 0


def test_the_probability_follows_the_signs() -> None:
    assert next_probability(0.2, 0.9, 4_000) == pytest.approx(0.24)
    assert next_probability(0.2, 0.1, 4_000) == pytest.approx(0.16)
    assert next_probability(0.2, 0.6, 4_000) == 0.2
    assert next_probability(0.02, 0.1, 4_000) == 0.0
    assert next_probability(0.99, 0.9, 4_000) == 1.0


def test_within_an_autocast_pictures_stay_in_full_precision() -> None:
    image = torch.rand(2, 3, 512, 512) * 2 - 1
    ada = Augmentation("ada", [], 0.8, 0.6, 1000)
    expected = ada(image, torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ada(image, torch.Generator().manual_seed(0)), expected)
        assert ada(image.bfloat16(), torch.Generator().manual_seed(0)).dtype == torch.float32


def test_a_probability_goes_on_as_its_checkpoint_has_it() -> None:
    straight, rest = (Augmentation("ada", [], 0.1, 0.6, 777) for _ in range(2))
    for i in range(400):
        if i == 200:
            rest.load_state_dict(straight.state_dict())
        for ada in (straight, rest)[: 1 + (i >= 200)]:
            ada.observe(torch.randn(4, 1, generator=torch.Generator().manual_seed(i)) + 0.8, i, lambda x: x)
        assert i < 200 or torch.equal(straight.p, rest.p), i
    assert 0 < straight.p < 1


def test_diff_augment_by_its_formulas() -> None:
    image = torch.rand(2, 3, 16, 16) * 2 - 1
    neutral = torch.tensor([[0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.0]]).expand(2, -1)
    assert torch.allclose(da.diff_augment(image, neutral, ("color", "translation")), image, atol=1e-6)
    brighter = neutral.clone()
    brighter[:, 0] = 0.75
    torch.testing.assert_close(da.diff_augment(image, brighter, ("color",)), image + 0.25)
    grey = neutral.clone()
    grey[:, 1] = 0.0
    torch.testing.assert_close(
        da.diff_augment(image, grey, ("color",)), image.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    )
    shifted = neutral.clone()
    shifted[:, 3:5] = torch.tensor([0.0, 0.99])  # 2 px down, 2 px to the left
    moved = da.diff_augment(image, shifted, ("translation",))
    assert torch.equal(moved[..., 2:, :14], image[..., :14, 2:])
    assert moved[..., :2, :].abs().max() == moved[..., 14:].abs().max() == 0
    corner = da.diff_augment(torch.ones(1, 3, 16, 16), neutral[:1], ("cutout",))
    assert corner[..., :4, :4].abs().max() == 0
    assert corner.sum() == 3 * (256 - 16)
