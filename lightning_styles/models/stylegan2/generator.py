"""The generator of StyleGAN2 (arXiv 1912.04958), named as in the rosinality checkpoints.

Notation: B batch, D length of a style, L = 2 log2(size) - 2 styles of a picture, H W pixels.
"""

from collections.abc import Mapping, Sequence
from math import log2

import torch
from torch import Tensor, nn

from lightning_styles.models.stylegan2.layers import EqualLinear, PixelNorm, StyledConv, ToRGB, full_precision

REDUCED = 4  # resolutions, from the highest, that follow an autocast; those below stay in float32
MAPPING_LR = 0.01


def channels_of(multiplier: int = 2) -> dict[int, int]:
    """Channels of the official networks by resolution in px; `multiplier` 2 is "config f"."""
    wide = dict.fromkeys((4, 8, 16, 32), 512)
    return wide | {2 ** (6 + i): 256 // 2**i * multiplier for i in range(5)}


class ConstantInput(nn.Module):
    """The learned 4 x 4 maps that every picture starts from."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))

    def forward(self, batch: int) -> Tensor:
        return self.input.expand(batch, -1, -1, -1)


class Generator(nn.Module):
    """Styles -> pictures, nominally in [-1, 1].

    Args:
        size: px, a power of two of at least 8.
        style_dim: length D of z and w.
        n_mlp: layers of the mapping network.
        channel_multiplier: of the official channels from 64 px on.
        channels: other channels by resolution, such as {4: 64, 8: 64, 16: 32}.

    Attributes:
        n_latent: L. Layer 0 is `conv1`; layer 1 colours 4 px and is the first of 8 px; and so on.
        noise_sizes: px of the L - 1 noise maps.
    """

    def __init__(
        self,
        size: int,
        style_dim: int = 512,
        n_mlp: int = 8,
        channel_multiplier: int = 2,
        channels: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        widths = channels or channels_of(channel_multiplier)
        self.size, self.style_dim, self.n_latent = size, style_dim, 2 * int(log2(size)) - 2
        self.noise_sizes = [2 ** ((k + 5) // 2) for k in range(self.n_latent - 1)]
        layers = [EqualLinear(style_dim, style_dim, lr_mul=MAPPING_LR, activate=True) for _ in range(n_mlp)]
        self.style = nn.Sequential(PixelNorm(), *layers)
        self.input = ConstantInput(widths[4])
        self.conv1 = StyledConv(widths[4], widths[4], style_dim)
        self.to_rgb1 = ToRGB(widths[4], style_dim, up=False)
        self.convs, self.to_rgbs, self.noises = nn.ModuleList(), nn.ModuleList(), nn.Module()
        for side in self.noise_sizes[2::2]:
            self.convs.append(StyledConv(widths[side // 2], widths[side], style_dim, up=True))
            self.convs.append(StyledConv(widths[side], widths[side], style_dim))
            self.to_rgbs.append(ToRGB(widths[side], style_dim))
        for k, side in enumerate(self.noise_sizes):
            self.noises.register_buffer(f"noise_{k}", torch.randn(1, 1, side, side))

    def mapping(self, z: Tensor) -> Tensor:
        """z (..., D), normal -> w (..., D); every row by itself, so that z+ (B, L, D) gives w+."""
        return self.style(z)

    def mean_latent(self, count: int = 4096, generator: torch.Generator | None = None) -> Tensor:
        """The mean (1, D) of w over `count` draws of z."""
        place = generator.device if generator is not None else self.input.input.device
        z = torch.randn(count, self.style_dim, generator=generator, device=place)
        with torch.no_grad():
            return self.mapping(z.to(self.input.input.device)).mean(0, keepdim=True)

    def draw_noise(self, batch: int, generator: torch.Generator | None = None) -> list[Tensor]:
        """Fresh noise maps (B, 1, S, S), for `forward`; drawn where `generator` lives."""
        device = self.input.input.device
        place = generator.device if generator is not None else device
        return [torch.randn(batch, 1, s, s, generator=generator, device=place).to(device) for s in self.noise_sizes]

    def stored_noise(self) -> list[Tensor]:
        """The noise maps (1, 1, S, S) that belong to the weights."""
        return [self.noises.get_buffer(f"noise_{k}") for k in range(self.n_latent - 1)]

    def forward(
        self, w: Tensor, noise: Sequence[Tensor] | None = None, replace: Mapping[int, Tensor] | None = None
    ) -> Tensor:
        """The pictures (B, 3, size, size) of `w`.

        Args:
            w: (B, D), the same for all layers, or w+ (B, L, D).
            noise: maps (B or 1, 1, S, S) of `noise_sizes`, such as `draw_noise`; the stored ones by default.
            replace: by resolution in px, what takes the place of `features` there, before they are coloured.
        """
        return self._run(w, noise, replace or {}, self.size)[1]

    def features(self, w: Tensor, resolution: int, noise: Sequence[Tensor] | None = None) -> Tensor:
        """The maps (B, C, R, R) after the last convolution at `resolution` R; arguments as in `forward`."""
        return self._run(w, noise, {}, resolution)[0]

    def _run(
        self, w: Tensor, noise: Sequence[Tensor] | None, replace: Mapping[int, Tensor], until: int
    ) -> tuple[Tensor, Tensor]:
        """Maps and colours at the resolution `until`."""
        if w.ndim == 2:
            w = w[:, None].expand(-1, self.n_latent, -1)
        noise = self.stored_noise() if noise is None else noise
        with full_precision(w):
            x = self.conv1(self.input(len(w)), w[:, 0], noise[0])
            x = replace.get(4, x)
            colours = self.to_rgb1(x, w[:, 1])
        for b, to_rgb in enumerate(self.to_rgbs):
            side = self.noise_sizes[2 * b + 2]
            if side > until:
                break
            with torch.autocast(w.device.type, enabled=self._follows_autocast(w, side)):
                x = self.convs[2 * b](x, w[:, 2 * b + 1], noise[2 * b + 1])
                x = self.convs[2 * b + 1](x, w[:, 2 * b + 2], noise[2 * b + 2])
                x = replace.get(side, x)
                colours = to_rgb(x, w[:, 2 * b + 3], colours)
        return x, colours

    def _follows_autocast(self, w: Tensor, side: int) -> bool:
        return torch.is_autocast_enabled(w.device.type) and side * 2**REDUCED > self.size
