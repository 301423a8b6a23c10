"""Score distillation gradients, by hand and against autograd; tests/methods/test_sms.py has the reference's."""

import torch
from torch import Tensor

from lightning_styles.losses.score_distillation import (
    cfg,
    dds_gradient,
    fake_score_loss,
    pds_gradient,
    relevance_map,
    sds_gradient,
    style_loss,
    vsd_gradient,
)


def test_gradients_of_numbers_worked_out_by_hand() -> None:
    """Two samples with weights of their own."""
    a, b = torch.tensor([[[[3.0]]], [[[1.0]]]]), torch.tensor([[[[1.0]]], [[[2.0]]]])
    weight = torch.tensor([0.25, 0.5])
    assert cfg(a, b, 4.5).flatten().tolist() == [10.0, -2.5]
    assert vsd_gradient(a, b, weight).flatten().tolist() == [0.5, -0.5]
    assert sds_gradient(a, b, weight).flatten().tolist() == [1.5, -0.5]
    assert dds_gradient(a, b).flatten().tolist() == [2.0, -1.0]
    assert fake_score_loss(a, b, weight).tolist() == [4 / 16, 1 / 4]
    assert fake_score_loss(a, b, weight, "none").tolist() == [4.0, 1.0]


def test_gradients_equal_autograd_through_the_stopped_target() -> None:
    draw = torch.Generator().manual_seed(0)
    z, g = torch.randn(2, 3, 4, 6, 10, dtype=torch.float64, generator=draw)
    R = torch.rand(3, 1, 6, 10, dtype=torch.float64, generator=draw)
    z.requires_grad_()
    loss = 0.5 * (z - (z - R * g).detach()).square().mean(dim=(1, 2, 3))
    value, gradient = style_loss(g, R)
    torch.testing.assert_close(value, loss.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(loss.sum(), z)[0])


def test_relevance_map_is_scaled_for_each_sample_and_one_where_flat() -> None:
    null = torch.zeros(2, 2, 1, 3)
    edit = null.clone()
    edit[0, :, 0] = torch.tensor([[2.0, 2.0, -5.0], [-2.0, 4.0, -5.0]])  # channel means 0, 3, -5
    R = relevance_map(edit, null)
    assert R.shape == (2, 1, 1, 3)
    torch.testing.assert_close(R[0, 0, 0], torch.tensor([0.0, 0.6, 1.0]))
    assert torch.equal(R[1], torch.ones(1, 1, 3))


def test_nan_in_a_prediction_does_not_reach_the_latent_but_the_value() -> None:
    eps = torch.ones(2, 1, 1, 2)
    bad = torch.tensor([[[[float("nan"), 3.0]]], [[[1.0, 3.0]]]])
    value, gradient = style_loss(vsd_gradient(bad, eps, torch.tensor([0.5, 0.5])))
    assert gradient.flatten().tolist() == [0.0, 0.5, 0.0, 0.5]
    assert value.isnan().tolist() == [True, False]


def test_nan_in_a_prediction_is_no_flat_relevance_map() -> None:
    null = torch.zeros(2, 1, 1, 3)
    edit = torch.tensor([[[[1.0, float("nan"), 2.0]]], [[[1.0, 1.0, 2.0]]]])
    R = relevance_map(edit, null)
    assert R[0].isnan().all()
    assert R[1].flatten().tolist() == [0.0, 0.0, 1.0]


def test_pds_equals_its_definition_with_both_noises() -> None:
    draw = torch.Generator().manual_seed(0)
    z_tgt, z_src, e_tgt, e_src, eps, eps_prev = torch.randn(6, 2, 4, 6, 10, dtype=torch.float64, generator=draw)
    beta = torch.tensor([0.002, 0.01], dtype=torch.float64)
    a, a_prev = (torch.tensor(x, dtype=torch.float64) for x in ([0.8, 0.2], [0.81, 0.23]))
    b, A, Ap = (x.reshape(2, 1, 1, 1) for x in (beta, a, a_prev))

    def zeta(z: Tensor, e: Tensor) -> Tensor:
        x_t, x_prev = A.sqrt() * z + (1 - A).sqrt() * eps, Ap.sqrt() * z + (1 - Ap).sqrt() * eps_prev
        x_0 = (x_t - (1 - A).sqrt() * e) / A.sqrt()
        mu = Ap.sqrt() * b / (1 - A) * x_0 + (1 - b).sqrt() * (1 - Ap) / (1 - A) * x_t
        return (x_prev - mu) / (b * (1 - Ap) / (1 - A)).sqrt()

    found = pds_gradient(z_tgt, z_src, e_tgt, e_src, beta, a, a_prev)
    torch.testing.assert_close(found, zeta(z_tgt, e_tgt) - zeta(z_src, e_src))
