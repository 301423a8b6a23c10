"""PSR: the DCT, its masks, the cut-off arithmetic and the closed-form gradients."""

import pytest
import torch
from scipy.fft import dctn

from lightning_styles.losses.spectrum import (
    dct2,
    dct_matrix,
    fixed_threshold,
    idct2,
    identity_loss,
    low_pass_mask,
    spectrum_loss,
    threshold,
)
from tests.golden.fill import load_case, relative_error, values

CASE, EXPECTED = load_case("sms/a_dct")
SEED = CASE["config"]["seed"]


def shape_id(shape: dict) -> str:
    return "x".join(map(str, shape["hw"]))


@pytest.mark.parametrize("shape", CASE["shapes"], ids=shape_id)
def test_dct_masks_and_l1_agree_with_the_reference(shape: dict) -> None:
    (h, w), name = shape["hw"], shape_id(shape)
    x, y = (values(f"{kind}.{name}", (1, 2, h, w), SEED) for kind in ("dct", "dct2"))
    assert relative_error(dct2(x), EXPECTED[f"{name}.dct_ortho"]) < 1e-5
    for thr in shape["thresholds"]:
        mask = low_pass_mask(h, w, torch.tensor([thr]))
        assert mask.shape == (1, 1, h, w)
        assert torch.equal(mask[0, 0], EXPECTED[f"{name}.low{thr}.mask"].bool())
    key = next(k for k in EXPECTED if k.startswith(f"{name}.low") and k.endswith(".l1"))
    mask = low_pass_mask(h, w, torch.tensor([int(key.split(".low")[1].split(".")[0])]))
    value, _ = spectrum_loss(x, y, mask, weight=1.0)
    torch.testing.assert_close(value[0], EXPECTED[key], rtol=1e-5, atol=1e-6)
    assert relative_error(mask * dct2(x), EXPECTED[key.replace(".l1", ".filtered")]) < 1e-5


@pytest.mark.parametrize("side", CASE["threshold_table"]["by_side"])
def test_thresholds_agree_with_the_reference(side: str) -> None:
    t = torch.arange(1, 500, 2)
    assert threshold(t, int(side), int(side)).tolist() == CASE["threshold_table"]["by_side"][side]


def test_threshold_uses_true_height_and_width() -> None:
    assert threshold(torch.tensor([499, 250]), 12, 20).tolist() == [29, 15]
    assert fixed_threshold(64, 64) == 37


@pytest.mark.parametrize(("h", "w"), [(8, 8), (12, 20), (9, 15)])
def test_dct_is_orthonormal_and_equals_scipy(h: int, w: int) -> None:
    x = torch.randn(2, 3, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(idct2(dct2(x)), x)
    torch.testing.assert_close(dct2(x), torch.from_numpy(dctn(x.numpy(), axes=(-2, -1), norm="ortho")))
    D = dct_matrix(h, dtype=torch.float64)
    torch.testing.assert_close(D @ D.T, torch.eye(h, dtype=torch.float64))


def test_a_table_made_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        dct2(torch.zeros(1, 1, 23, 29))
    x = torch.ones(1, 1, 23, 29, requires_grad=True)
    dct2(x).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * x.detach())  # D is orthonormal


@pytest.mark.parametrize("norm", ["l1", "l2", "identity"])
def test_closed_form_gradients_equal_autograd_sample_by_sample(norm: str) -> None:
    draw = torch.Generator().manual_seed(1)
    z_tgt, z_src = torch.randn(2, 3, 4, 12, 20, dtype=torch.float64, generator=draw)
    z_tgt.requires_grad_()
    mask = low_pass_mask(12, 20, torch.tensor([0, 11, 30]))
    difference = mask * (dct2(z_tgt) - dct2(z_src))
    if norm == "identity":
        value, gradient = identity_loss(z_tgt.detach(), z_src, weight=0.3)
        expected = 0.3 * (z_tgt - z_src).square().mean(dim=(1, 2, 3))
    else:
        value, gradient = spectrum_loss(z_tgt.detach(), z_src, mask, weight=0.3, norm=norm)
        expected = 0.3 * (difference.abs() if norm == "l1" else difference.square()).mean(dim=(1, 2, 3))
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), z_tgt)[0])


def test_equal_latents_have_neither_loss_nor_gradient() -> None:
    z = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    value, gradient = spectrum_loss(z, z.clone(), low_pass_mask(16, 16, torch.tensor([9])), weight=1.0)
    assert value.item() == 0
    assert not gradient.any()
