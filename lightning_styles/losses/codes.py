"""What keeps the codes of an encoder where the generator was trained (L styles of length D, batch B)."""

from torch import Tensor


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), summed over D and averaged over B and L; arguments (B, L, D)."""
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(-1).mean()


def moment_penalty(z: Tensor) -> Tensor:
    """mean(z)^2 + (std(z) - 1)^2 over all of z+ (B, L, D): 0 for the moments of normal codes."""
    return z.mean().square() + (z.std() - 1).square()


def w_norm(w: Tensor, mean: Tensor) -> Tensor:
    """||w+ - mean|| over L and D, averaged over B (arXiv 2008.00951); `w` (B, L, D), `mean` (D,)."""
    return (w - mean).flatten(1).norm(dim=1).mean()


def row_spread(z: Tensor) -> Tensor:
    """How far the styles of each picture lie apart, (B,): the deviation over L, averaged over D; `z` (B, L, D)."""
    return z.std(1).mean(1)
