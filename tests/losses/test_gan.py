"""The adversarial losses and their regularisers against the official ones."""

import pytest
import torch

from lightning_styles.losses.gan import (
    discriminator_loss,
    generator_loss,
    lazy_adam,
    path_lengths,
    path_penalty,
    r1_penalty,
)
from tests.golden.stylegan_world import case_of, discriminator, excess, generator


def test_losses_and_lazy_optimizers() -> None:
    case, x, expected = case_of("gan_losses")
    loss = discriminator_loss(x["real_logits"], x["fake_logits"])
    assert excess(loss, expected["d_logistic"], case) < 1
    assert excess(generator_loss(x["fake_logits"]), expected["g_nonsaturating"], case) < 1
    for name, every in (("g", 4), ("d", 16)):
        lr, betas = lazy_adam(0.002, every)
        assert excess(torch.tensor([lr, *betas]), expected[f"adam_{name}_lr_beta1_beta2"], case) < 1
    assert lazy_adam(0.002, None) == (0.002, (0.0, 0.99))
    lr, (_, beta2) = lazy_adam(0.002, 4)
    assert (lr, beta2) == (pytest.approx(0.0016), pytest.approx(0.99**0.8, rel=1e-9))


def test_r1_and_its_gradients() -> None:
    case, x, expected = case_of("gan_losses")
    d = discriminator(case, "discriminator", "fill_d").requires_grad_()
    image = x["real_img"].requires_grad_()
    penalty = r1_penalty(d(image), image)
    assert excess(penalty, expected["r1_penalty"], case, "r1_penalty") < 1
    weighted = 10 / 2 * penalty * 16
    assert excess(weighted, expected["r1_weighted_gamma10_every16"], case, "r1_weighted") < 1
    gradients = dict(zip(dict(d.named_parameters()), torch.autograd.grad(
        penalty, list(d.parameters()), allow_unused=True, materialize_grads=True
    ), strict=True))  # fmt: skip
    norms = torch.stack([gradients[key].norm() for key in case["r1_param_grad_norms_keys"]])
    assert excess(norms, expected["r1_param_grad_norms"], case, "r1_param_grad_norms") < 1
    name = "r1_grad.convs.0.0.weight"
    assert excess(gradients["convs.0.0.weight"], expected[name], case, name) < 1


def test_path_length_and_its_gradients() -> None:
    case, x, expected = case_of("gan_losses")
    g = generator(case, "generator", "fill_g").requires_grad_()
    w = g.mapping(x["pl_z"])[:, None].expand(-1, g.n_latent, -1) * 1.0
    lengths = path_lengths(g(w), w, x["pl_noise"])
    penalty, mean = path_penalty(lengths, torch.tensor(case["pl"]["mean_path_length_before"]), case["pl"]["decay"])
    found = {"pl_lengths": lengths, "pl_penalty": penalty, "pl_mean_new": mean, "pl_weighted_2_every4": 2 * 4 * penalty}
    for name, tensor in found.items():
        assert excess(tensor, expected[name], case, name) < 1, name
    assert not mean.requires_grad
    gradients = dict(zip(dict(g.named_parameters()), torch.autograd.grad(
        penalty, list(g.parameters()), allow_unused=True, materialize_grads=True
    ), strict=True))  # fmt: skip
    norms = torch.stack([gradients[key].norm() for key in case["pl_param_grad_norms_keys"]])
    assert excess(norms, expected["pl_param_grad_norms"], case, "pl_param_grad_norms") < 1
    name = "pl_grad.to_rgb1.conv.weight"
    assert excess(gradients["to_rgb1.conv.weight"], expected[name], case, name) < 1


def test_the_regularisers_know_linear_networks() -> None:
    slope = torch.tensor([3.0, 4.0, 0.0])
    image = torch.randn(2, 3, 4, 4, requires_grad=True)
    logits = (image * slope[:, None, None]).sum((1, 2, 3))[:, None]
    assert r1_penalty(logits, image) == pytest.approx(25 * 16)
    w = torch.randn(5, 2, 7, requires_grad=True)
    lengths = path_lengths((2 * w).sum((1, 2))[:, None, None, None].expand(-1, 1, 4, 4), w, torch.ones(5, 1, 4, 4))
    torch.testing.assert_close(lengths, torch.full((5,), 2 * 16 / 4 * 7**0.5))
