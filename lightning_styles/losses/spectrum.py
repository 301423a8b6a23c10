"""Progressive spectrum regularisation of SMS (arXiv 2503.07601, PSR), with gradients in closed form.

Notation: z latents (B, C, h, w), D(z) their orthonormal two-dimensional DCT-II over (h, w), (u, v) a
frequency, M the low-pass mask (B, 1, h, w), lambda the weight. Because D is linear, D(z_tgt) - D(z_src)
is computed as D(z_tgt - z_src), which is exactly zero where the latents are equal.
"""

import math
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["l1", "l2"]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a table first needed in inference mode must still serve training
def dct_matrix(n: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Orthonormal DCT-II: (n, n), entry (k, i) is c_k cos(pi k (2 i + 1) / 2n), c_0^2 = 1/n, else 2/n."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi * k * (2 * i + 1) / (2 * n)) * math.sqrt(2 / n)
    matrix[0] = math.sqrt(1 / n)
    return matrix.to(dtype).to(device)  # in this order: not every device has float64


def _matrices(z: Tensor) -> tuple[Tensor, Tensor]:
    return dct_matrix(z.shape[-2], z.device, z.dtype), dct_matrix(z.shape[-1], z.device, z.dtype)


def dct2(z: Tensor) -> Tensor:
    """D(z): orthonormal DCT-II over the last two dimensions of z (..., h, w), in z's own precision."""
    rows, columns = _matrices(z)
    with torch.autocast(z.device.type, enabled=False):
        return rows @ z @ columns.T


def idct2(y: Tensor) -> Tensor:
    """The inverse of `dct2`, which is also its transpose."""
    rows, columns = _matrices(y)
    with torch.autocast(y.device.type, enabled=False):
        return rows.T @ y @ columns


def threshold(t: Tensor, h: int, w: int, t_max: int = 500) -> Tensor:
    """Cut-off int(t / t_max * (h + w - 2)) of timesteps t (B,), in 0 ... h + w - 2: (B,) int64.

    A large t keeps (protects) many coefficients, a small t few. The official code divides in float32, then
    multiplies, and uses 2 w - 2 for every shape; the true h and w here are equal to that for square
    latents.
    """
    t = t.float()
    share = t / torch.full_like(t, t_max)  # by a tensor: CUDA turns a division by a number into a product
    return (share * (h + w - 2)).long()


def fixed_threshold(h: int, w: int, share: float = 0.3) -> int:
    """Cut-off of the ablation that always keeps the lowest `share` of the anti-diagonals."""
    return int(share * (h + w - 2))


def low_pass_mask(h: int, w: int, thr: Tensor) -> Tensor:
    """M, true where u + v <= thr, for cut-offs thr (B,): (B, 1, h, w) bool."""
    u, v = torch.arange(h, device=thr.device)[:, None], torch.arange(w, device=thr.device)
    return u + v <= thr.reshape(-1, 1, 1, 1)


def spectrum_loss(
    z_tgt: Tensor, z_src: Tensor, mask: Tensor, weight: float, norm: Norm = "l1"
) -> tuple[Tensor, Tensor]:
    """L_freq = lambda mean |M (D(z_tgt) - D(z_src))| for each sample (SMS, arXiv 2503.07601, PSR).

    The mean runs over all elements of a sample, masked zeros included. "l1" (default) is the official code,
    whose values of lambda belong to it; "l2" is the paper's squared norm.

    Args:
        z_tgt: (B, C, h, w) clean latents that are optimised.
        z_src: (B, C, h, w) clean latents of the source.
        mask: (B, 1, h, w) bool.
        weight: lambda.
        norm: of the spectrum's difference.

    Returns:
        The value (B,) and its gradient with respect to z_tgt (B, C, h, w).
    """
    delta = mask * dct2(z_tgt - z_src)
    scale = weight / delta[0].numel()
    if norm == "l1":
        return scale * delta.abs().flatten(1).sum(1), scale * idct2(mask * delta.sign())
    return scale * delta.square().flatten(1).sum(1), 2 * scale * idct2(delta)


def identity_loss(z_tgt: Tensor, z_src: Tensor, weight: float) -> tuple[Tensor, Tensor]:
    """lambda mean (z_tgt - z_src)^2 of each sample, PSR's spatial rival (SMS, arXiv 2503.07601, supp. E.1).

    Shapes, arguments and results as in `spectrum_loss`.
    """
    delta = z_tgt - z_src
    scale = weight / delta[0].numel()
    return scale * delta.square().flatten(1).sum(1), 2 * scale * delta
