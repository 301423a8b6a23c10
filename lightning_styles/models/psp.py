"""pSp: the encoder of pictures into the styles of StyleGAN2 (arXiv 2008.00951), named as in the official weights.

A face recognition trunk, a feature pyramid on its last three resolutions, and one head per style. The codes are
offsets in W+, or lie in Z+, where the variational head of AgileGAN (Song et al., 2021) can be put on top.
Notation: B batch, L styles of a picture, D length of a style.
"""

from itertools import accumulate
from math import log2
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.models.arcface import BLOCKS, WIDTHS, body, input_layer
from lightning_styles.models.stylegan2.generator import Generator
from lightning_styles.models.stylegan2.layers import EqualLinear

COARSE, MIDDLE = 3, 7  # styles below the first read the coarsest maps, below the second the middle ones
LEAK = 0.01
Space = Literal["w_plus", "z_plus"]


class Head(nn.Module):
    """Maps of `side` px -> one style: convolutions of stride 2 down to 1 px, `width` wide, and a linear layer."""

    def __init__(self, inputs: int, style: int, side: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(int(log2(side))):
            layers += [nn.Conv2d(width if i else inputs, width, 3, 2, 1), nn.LeakyReLU(LEAK)]
        self.convs = nn.Sequential(*layers)
        self.linear = EqualLinear(width if layers else inputs, style)


class GradualStyleEncoder(nn.Module):
    """Pictures -> codes (B, L, D).

    Args:
        n_styles: L, 2 log2(size) - 2 of the generator.
        style_dim: D.
        size: px of the pictures, 256 in the official one.
        widths, blocks: of the trunk, see `arcface.body`; the official ones are those of IR-SE50.
        variational: put the layers `fc_mu` and `fc_var` on top, which see every code by itself.
        head_width: channels of the heads; None are D, as in the official one.

    Attributes:
        arguments: the above, which build it again.
    """

    def __init__(
        self,
        n_styles: int = 18,
        style_dim: int = 512,
        size: int = 256,
        widths: tuple[int, ...] = WIDTHS,
        blocks: tuple[int, ...] = BLOCKS,
        variational: bool = False,
        head_width: int | None = None,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "n_styles": n_styles, "style_dim": style_dim, "size": size, "widths": widths, "blocks": blocks,
            "variational": variational, "head_width": head_width,
        }  # fmt: skip
        self.size, self.variational, last = size, variational, widths[-1]
        self.input_layer, self.body = input_layer(widths[0]), body(widths, blocks)
        self.taps = [end - 1 for end in accumulate(blocks)][-3:]
        coarsest = size // 2 ** len(widths)
        sides = [coarsest if i < COARSE else 2 * coarsest if i < MIDDLE else 4 * coarsest for i in range(n_styles)]
        self.styles = nn.ModuleList(Head(last, style_dim, side, head_width or style_dim) for side in sides)
        self.latlayer1, self.latlayer2 = nn.Conv2d(widths[-2], last, 1), nn.Conv2d(widths[-3], last, 1)
        if variational:
            self.fc_mu, self.fc_var = nn.Linear(style_dim, style_dim), nn.Linear(style_dim, style_dim)
            for layer in (self.fc_mu, self.fc_var):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        """Codes (B, L, D) of `image` (B, 3, size, size) in [-1, 1]; with the variational head, their means."""
        codes = self._codes(image)
        return self.fc_mu(codes) if self.variational else codes

    def posterior(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Means and logarithms of the variances, (B, L, D) each, of the variational head."""
        codes = self._codes(image)
        return self.fc_mu(codes), self.fc_var(codes)

    def maps(self, image: Tensor) -> list[Tensor]:
        """The trunk's maps at its last three resolutions, the finest first."""
        x, found = self.input_layer(image), []
        for i, block in enumerate(self.body):
            x = block(x)
            if i in self.taps:
                found.append(x)
        return found

    def _codes(self, image: Tensor) -> Tensor:
        fine, middle, coarse = self.maps(image)
        middle = _enlarged(coarse, middle) + self.latlayer1(middle)
        fine = _enlarged(middle, fine) + self.latlayer2(fine)
        heads = cast("list[Head]", list(self.styles))
        levels = ((coarse, heads[:COARSE]), (middle, heads[COARSE:MIDDLE]), (fine, heads[MIDDLE:]))
        return torch.cat([_together(maps, some) for maps, some in levels if some], 1)


def sample_codes(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """mean + noise * exp(log_variance / 2), with `noise` normal and of the same shape."""
    return mean + noise * (0.5 * log_variance).exp()


def to_w_plus(codes: Tensor, space: Space, generator: Generator, latent_avg: Tensor | None = None) -> Tensor:
    """w+ (B, L, D) of an encoder's codes, for `generator`.

    Args:
        codes: (B, L, D).
        space: "z_plus" sends every code through the mapping network; "w_plus" adds `latent_avg`.
        generator: whose mapping network it is.
        latent_avg: (D,) or (L, D), for encoders that were trained to start from it.
    """
    if space == "z_plus":
        return generator.mapping(codes)
    return codes if latent_avg is None else codes + latent_avg


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=True)


def _together(x: Tensor, heads: list[Head]) -> Tensor:
    """The codes (B, heads, D) of heads of one resolution, of which each layer is one grouped convolution."""
    for i in range(0, len(heads[0].convs), 2):
        convs = [cast("nn.Conv2d", head.convs[i]) for head in heads]
        weight, bias = torch.cat([c.weight for c in convs]), torch.cat([cast("Tensor", c.bias) for c in convs])
        x = F.leaky_relu(F.conv2d(x, weight, bias, 2, 1, groups=len(heads) if i else 1), LEAK)
    codes = x.view(len(x), len(heads), -1).unbind(1)
    return torch.stack([head.linear(code) for head, code in zip(heads, codes, strict=True)], 1)
