"""The adversarial objective of StyleGAN2 (arXiv 1912.04958): losses, both regularisers, and Adam made up for laziness.

Logits are (B, 1), pictures (B, 3, H, W), w+ (B, L, D). The regularisers differentiate twice: draw their pictures and
logits in float32, and on networks that are not compiled. Their weights are left to the caller, who also multiplies
them by the number of iterations between two of their uses.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """softplus(-D(x)) + softplus(D(G(z))) over logits (arXiv 1406.2661, logistic form)."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def generator_loss(fake: Tensor) -> Tensor:
    """The non-saturating softplus(-D(G(z)))."""
    return F.softplus(-fake).mean()


def r1_penalty(logits: Tensor, image: Tensor) -> Tensor:
    """E ||grad_x D(x)||^2 on real pictures (arXiv 1801.04406); it is used with the weight gamma / 2.

    Args:
        logits: D(image), through the augmentation where there is one.
        image: what requires grad.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), image, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


def path_lengths(image: Tensor, w: Tensor, noise: Tensor) -> Tensor:
    """How far pictures move with their styles, (B,): sqrt(mean over layers of sum over D of g^2).

    Args:
        image: G(w).
        w: w+ in the graph of `image`.
        noise: normal, of the shape of `image`; g is the gradient of sum(image * noise / sqrt(H W)) by w+.
    """
    height, width = image.shape[-2:]
    (gradient,) = torch.autograd.grad((image * noise).sum() * (height * width) ** -0.5, w, create_graph=True)
    return gradient.square().sum(2).mean(1).sqrt()


def path_penalty(lengths: Tensor, mean: Tensor, decay: float = 0.01) -> tuple[Tensor, Tensor]:
    """mean((length - a)^2), and the running mean a, without graph, to go on with.

    The mean moves first, and the gradient also goes through it, as in the official code.

    Args:
        lengths: of `path_lengths`.
        mean: the running mean before, a scalar.
        decay: how much of the new mean is of this batch.
    """
    mean = mean + decay * (lengths.mean() - mean)
    return (lengths - mean).square().mean(), mean.detach()


def lazy_adam(lr: float, every: int | None, beta2: float = 0.99) -> tuple[float, tuple[float, float]]:
    """Learning rate and betas of an Adam that takes an extra step for a regulariser after `every` steps.

    All are raised to r = every / (every + 1) steps' worth, so that the pace per iteration stays; None is no extra.
    """
    r = every / (every + 1) if every else 1.0
    return lr * r, (0.0, beta2**r)
