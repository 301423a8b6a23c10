"""A small convolutional trunk whose features measure perceptual distance in the embedded world.

Notation: B batch, C channels, H W pixels, l level (resolution H / 2^l).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PerceptualNet(nn.Module):
    """VGG-like trunk of levels at full, half, quarter ... resolution, and the LPIPS distance on its features.

    The distance is that of LPIPS (arXiv 1801.03924, equation 1) with equal weights on all channels, which needs no
    human judgements: sum over levels of the mean squared difference of channel-normalised features.

    Args:
        widths: channels of each level.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 128)) -> None:
        super().__init__()
        self.widths = tuple(widths)
        inputs = (3, *self.widths[:-1])
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(i, o, 3, padding=1),
                nn.GroupNorm(4, o),
                nn.ReLU(),
                nn.Conv2d(o, o, 3, padding=1),
                nn.ReLU(),
            )
            for i, o in zip(inputs, self.widths, strict=True)
        )

    def features(self, image: Tensor) -> list[Tensor]:
        """Features of `image` (B, 3, H, W) in [-1, 1]: one (B, C_l, H / 2^l, W / 2^l) per level l."""
        maps = []
        for level, layers in enumerate(self.levels):
            image = layers(F.avg_pool2d(image, 2) if level else image)
            maps.append(image)
        return maps

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Perceptual distance (B,) of `x` and `y`, each (B, 3, H, W) in [-1, 1]; 0 for equal pictures."""
        pairs = zip(self.features(x), self.features(y), strict=True)
        return torch.stack([(unit(a) - unit(b)).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)


def unit(features: Tensor) -> Tensor:
    """`features` (B, C, H, W) scaled to unit length along C; zero vectors stay zero."""
    return features / features.square().sum(1, keepdim=True).add(1e-10).sqrt()
