"""Filters and the activation of StyleGAN2 (arXiv 1912.04958) in plain PyTorch, differentiable any number of times.

Notation: B batch, C channels, H W pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TAPS = (1.0, 3.0, 3.0, 1.0)  # of every filter of the official networks
SLOPE = 0.2
GAIN = 2**0.5  # of the activation, which keeps the variance of its input

Pair = int | tuple[int, int]


def make_kernel(taps: tuple[float, ...] = TAPS, gain: float = 1.0) -> Tensor:
    """The two-dimensional filter (n, n) of `taps` along both axes, with sum `gain`."""
    line = torch.tensor(taps)
    return torch.outer(line, line) * (gain / line.sum().square())


def upfirdn2d(x: Tensor, kernel: Tensor, up: Pair = 1, down: Pair = 1, pad: tuple[int, ...] = (0, 0)) -> Tensor:
    """Zero insertion, padding, convolution and subsampling of `x` (B, C, H, W), one axis after the other.

    Args:
        x: the maps.
        kernel: (n, m) of rank one, as every filter of StyleGAN2; its two factors are what is applied.
        up: up - 1 zeros are put after every sample; a pair is (x, y).
        down: every down-th sample is kept; a pair is (x, y).
        pad: zeros before and after the samples, (both axes) or (x, x, y, y); negative values crop.
    """
    (up_x, up_y), (down_x, down_y) = _pair(up), _pair(down)
    pad_x, pad_y = pad[:2], pad[-2:]
    kernel = kernel.to(x.dtype)
    norm = kernel.sum().rsqrt()  # for k = a b^T, the sums over its rows and columns are b and a up to this factor
    x = _along(3, x, kernel.sum(0) * norm, up_x, down_x, pad_x)
    return _along(2, x, kernel.sum(1) * norm, up_y, down_y, pad_y)


def fused_leaky_relu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """sqrt(2) * leaky_relu(x + bias), with `bias` (C,) along axis 1 of `x`; in the precision of `x`."""
    if bias is not None:
        x = x + bias.to(x.dtype).view(1, -1, *[1] * (x.ndim - 2))
    return F.leaky_relu(x, SLOPE) * GAIN


def _along(axis: int, x: Tensor, taps: Tensor, up: int, down: int, pad: tuple[int, ...]) -> Tensor:
    """`upfirdn2d` along axis 2 (y) or 3 (x) alone, with the filter `taps` (n,)."""
    channels, n, (before, after) = x.shape[1], len(taps), pad

    def place(value: int, other: int) -> tuple[int, int]:
        return (value, other) if axis == 2 else (other, value)

    weight = taps.reshape(place(n, 1)).expand(channels, 1, -1, -1)
    if up == 1:
        if before != after or before < 0:
            x, before = F.pad(x, _borders(axis, before, after)), 0
        return F.conv2d(x, weight.flip(2, 3), None, place(down, 1), place(before, 0), 1, channels)
    # The transposed convolution is the full convolution of samples with zeros between; padding extends or cuts it.
    left, right = before + 1 - n, after + up - n
    cut = -left if left == right <= 0 else 0
    x = F.conv_transpose2d(x, weight, None, place(up, 1), place(cut, 0), 0, channels)
    if not cut and (left or right):
        x = F.pad(x, _borders(axis, left, right))
    if down == 1:
        return x
    return x[:, :, ::down] if axis == 2 else x[..., ::down]


def _borders(axis: int, before: int, after: int) -> tuple[int, ...]:
    return (0, 0, before, after) if axis == 2 else (before, after)


def _pair(value: Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
