"""Layers of StyleGAN2 (arXiv 1912.04958), named as in the rosinality checkpoints.

Weights are stored with unit variance and scaled when used ("equalised"), so that Adam moves all of them alike.
Notation: B batch, I O channels in and out, D length of a style, H W pixels.
"""

from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.models.stylegan2.ops import fused_leaky_relu, make_kernel, upfirdn2d

EPSILON = 1e-8
ONE_STEP = 256  # px from which an upsampling layer blurs its weights instead of its maps


def full_precision(x: Tensor) -> AbstractContextManager:
    """Computes in float32 within an autocast, on the device of `x`."""
    return torch.autocast(x.device.type, enabled=False)


class PixelNorm(nn.Module):
    """Vectors along the last axis, scaled to unit mean square."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + EPSILON).rsqrt()


class EqualLinear(nn.Module):
    """y = x (W lr / sqrt(I))^T + b lr, always in float32.

    Args:
        inputs, outputs: channels.
        bias: initial value of the bias.
        lr_mul: lr, how much slower than other layers it learns.
        activate: apply the leaky ReLU of `fused_leaky_relu`.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: float = 0.0, lr_mul: float = 1.0, activate: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / lr_mul)
        self.bias = nn.Parameter(torch.full((outputs,), float(bias)))
        self.scale, self.lr_mul, self.activate = lr_mul * inputs**-0.5, lr_mul, activate

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        with full_precision(x):
            y = F.linear(x.float(), self.weight * self.scale, self.bias * self.lr_mul)
            return fused_leaky_relu(y) if self.activate else y


class EqualConv2d(nn.Module):
    """Convolution with the weight W / sqrt(I k^2); padding keeps the size at stride 1, there is none at stride 2."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.scale, self.stride = (inputs * kernel**2) ** -0.5, stride
        self.padding = kernel // 2 if stride == 1 else 0

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, (self.weight * self.scale).to(x.dtype), self.bias, self.stride, self.padding)


class FusedLeakyReLU(nn.Module):
    """Bias per channel and the leaky ReLU with gain sqrt(2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return fused_leaky_relu(x, self.bias)


class Resample(nn.Module):
    """Filters, and up- or downsamples, maps (B, C, H, W) with the stored `kernel`."""

    kernel: Tensor

    def __init__(self, pad: tuple[int, int], up: int = 1, down: int = 1) -> None:
        super().__init__()
        self.register_buffer("kernel", make_kernel(gain=float(up**2)))
        self.pad, self.up, self.down = pad, up, down

    def forward(self, x: Tensor) -> Tensor:
        return upfirdn2d(x, self.kernel, self.up, self.down, self.pad)


class Blur(Resample):
    """The filter alone; `gain` makes up for the zeros that an upsampling inserted before."""

    def __init__(self, pad: tuple[int, int], gain: float = 1.0) -> None:
        super().__init__(pad)
        self.kernel *= gain


class ConvLayer(nn.Sequential):
    """A layer of the discriminator: (blur,) convolution(, bias and activation)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, down: bool = False, activate: bool = True) -> None:
        layers: list[nn.Module] = []
        if down and kernel == 1:  # what stride 2 would drop is not even filtered
            layers.append(Resample((1, 1), down=2))
        elif down:
            layers.append(Blur((2, 2)))
        layers.append(EqualConv2d(inputs, outputs, kernel, 2 if down and kernel > 1 else 1, bias=False))
        if activate:
            layers.append(FusedLeakyReLU(outputs))
        super().__init__(*layers)


class ModulatedConv2d(nn.Module):
    """Convolution whose input channels are scaled by a style and whose output is brought back to unit variance.

    For sample n, w'_oikl = c w_oikl s_ni with c = 1/sqrt(I k^2), divided by sqrt(sum_ikl w'^2 + 1e-8). Scaling the
    maps before and after one convolution that all samples share is the same, and needs no weights per sample.

    Args:
        inputs, outputs: channels.
        kernel: side of the kernel.
        style: length D of a style.
        demodulate: divide as above.
        resample: "up" doubles the resolution, "down" halves it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        style: int,
        demodulate: bool = True,
        resample: Literal["up", "down"] | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, kernel, kernel))
        self.scale, self.demodulate, self.resample = (inputs * kernel**2) ** -0.5, demodulate, resample
        if resample:
            self.blur = Blur((1, 1), gain=4.0) if resample == "up" else Blur((2, 2))
        self.modulation = EqualLinear(style, inputs, bias=1.0)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """`x` (B, I, H, W) with `style` (B, D) -> (B, O, H', W')."""
        with full_precision(x):
            weight = self.weight[0] * self.scale
            modulation = self.modulation(style)
        y = self._convolve(x * modulation[:, :, None, None].to(x.dtype), weight)
        if not self.demodulate:
            return y
        with full_precision(x):
            energy = modulation.square() @ weight.square().sum((2, 3)).T
            gain = (energy + EPSILON).rsqrt()
        return y * gain[:, :, None, None].to(y.dtype)

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.resample == "down":
            return F.conv2d(self.blur(x), weight.to(x.dtype), stride=2)
        if self.resample is None:
            return F.conv2d(x, weight.to(x.dtype), padding=weight.shape[-1] // 2)
        if 2 * x.shape[-1] < ONE_STEP:
            return self.blur(F.conv_transpose2d(x, weight.transpose(0, 1).to(x.dtype), stride=2))
        # Many narrow pixels: filtering the kernel, 3 x 3 -> 6 x 6, saves two passes over the maps.
        taps = upfirdn2d(weight.transpose(0, 1), self.blur.kernel, pad=(3, 3))
        return F.conv_transpose2d(x, taps.to(x.dtype), stride=2, padding=2)


class NoiseInjection(nn.Module):
    """x + weight * noise, one weight for the whole layer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """`x` (B, C, H, W) and `noise` (B or 1, 1, H, W)."""
        return x + (self.weight * noise).to(x.dtype)


class StyledConv(nn.Module):
    """Modulated 3 x 3 convolution, noise, bias and activation."""

    def __init__(self, inputs: int, outputs: int, style: int, up: bool = False) -> None:
        super().__init__()
        self.conv = ModulatedConv2d(inputs, outputs, 3, style, resample="up" if up else None)
        self.noise = NoiseInjection()
        self.activate = FusedLeakyReLU(outputs)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor) -> Tensor:
        return self.activate(self.noise(self.conv(x, style), noise))


class ToRGB(nn.Module):
    """Maps -> colours, added to the upsampled colours of the resolution below; the sum is in float32."""

    def __init__(self, inputs: int, style: int, up: bool = True) -> None:
        super().__init__()
        if up:
            self.upsample = Resample((2, 1), up=2)
        self.conv = ModulatedConv2d(inputs, 3, 1, style, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))

    def forward(self, x: Tensor, style: Tensor, below: Tensor | None = None) -> Tensor:
        """`x` (B, I, H, W), `style` (B, D) and `below` (B, 3, H/2, W/2) -> (B, 3, H, W)."""
        colours = self.conv(x, style)
        with full_precision(x):
            colours = colours.float() + self.bias
            return colours if below is None else colours + self.upsample(below)
