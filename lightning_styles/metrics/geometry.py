"""Whether the lines of a twin lie where those of its photo do, found by block matching."""

from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.metrics.pictures import check_pictures
from lightning_styles.metrics.rapsd import LUMA

SIDE = 64  # px of what is matched
WINDOW = 15  # px of a block
REACH = 5  # px, longest shift each way
SMOOTH = 21  # px over which neighbours must agree: outlines drawn on both sides of an edge cancel
# Twins of the embedded world in the same place have 0.000 to 0.026 (four filters, cartoon, sketch, watercolor), and
# pixel art 0.016 to 0.040. Shifted by 3 % of the side they have 0.033 to 0.058, enlarged by 18 % 0.030 to 0.077; of
# smooth warps by 5 % (0.014 to 0.046) about half are above. Larger eyes alone do not show.
DISPLACED = 0.03


@torch.no_grad()
def displacement(photo: Tensor, twin: Tensor) -> Tensor:
    """How far the lines of `twin` lie from those of `photo`, (B,), as a share of the side.

    The mean length of the smoothed shifts to which blocks of edge strength correlate best, weighted by contrast and
    correlation.

    Args:
        photo: (B, 3, H, W) in [-1, 1].
        twin: as `photo`.
    """
    check_pictures("displacement", photo, twin)
    a, b = _edges(photo), _edges(twin)
    padded, steps = F.pad(b, [REACH] * 4, mode="replicate"), range(2 * REACH + 1)
    scores = [_correlation(a, padded[..., y : y + SIDE, x : x + SIDE]) for y, x in product(steps, steps)]
    best, index = torch.cat(scores, 1).max(1, keepdim=True)
    shifts = torch.tensor(list(product(steps, steps)), device=a.device, dtype=a.dtype) - REACH
    weight = (_variance(a) * _variance(b)).sqrt() * best.clamp_min(0)
    moved = _mean(shifts[index[:, 0]].permute(0, 3, 1, 2) * weight, SMOOTH) / _mean(weight, SMOOTH).clamp_min(1e-9)
    total = (weight * moved.norm(dim=1, keepdim=True)).sum((1, 2, 3))
    return total / weight.sum((1, 2, 3)).clamp_min(1e-9) / SIDE


def _edges(images: Tensor) -> Tensor:
    """Edge strength (B, 1, SIDE, SIDE) of the brightness."""
    gray = torch.einsum("bchw,c->bhw", images.float(), torch.tensor(LUMA, device=images.device))[:, None]
    gray = F.interpolate(gray, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    gray = F.pad(gray, [1] * 4, mode="replicate")
    down, right = gray[..., 2:, 1:-1] - gray[..., :-2, 1:-1], gray[..., 1:-1, 2:] - gray[..., 1:-1, :-2]
    return _mean(torch.hypot(down, right), 3)


def _mean(x: Tensor, window: int = WINDOW) -> Tensor:
    return F.avg_pool2d(x, window, 1, window // 2, count_include_pad=False)


def _variance(x: Tensor) -> Tensor:
    return (_mean(x * x) - _mean(x) ** 2).clamp_min(0)


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of the blocks around each pixel, in [-1, 1]; 0 where one of them is flat."""
    shared = _mean(a * b) - _mean(a) * _mean(b)
    return shared / (_variance(a) * _variance(b)).sqrt().clamp_min(1e-6)
