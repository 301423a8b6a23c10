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

    def embed(self, image: Tensor) -> list[Tensor]:
        """Maps of `image` between which `feature_distance` is the perceptual distance."""
        return [unit(features) for features in self.features(image)]

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Perceptual distance (B,) of `x` and `y`, each (B, 3, H, W) in [-1, 1]; 0 for equal pictures."""
        return feature_distance(self.embed(x), self.embed(y))


def feature_distance(x: list[Tensor], y: list[Tensor]) -> Tensor:
    """Distance (B,) of pictures by their maps (B, C_l, H_l, W_l): sum over l of the squared distances of pixels."""
    pairs = zip(x, y, strict=True)
    return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)


def unit(features: Tensor) -> Tensor:
    """`features` (B, C, H, W) scaled to unit length along C; zero vectors stay zero."""
    return features / features.square().sum(1, keepdim=True).add(1e-10).sqrt()
