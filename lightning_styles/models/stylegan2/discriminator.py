"""The discriminator of StyleGAN2 (arXiv 1912.04958), named as in the rosinality checkpoints.

Notation: B batch, C channels, H W pixels.
"""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.models.stylegan2.generator import REDUCED, channels_of
from lightning_styles.models.stylegan2.layers import ConvLayer, EqualLinear, full_precision

GROUP = 4  # samples that minibatch standard deviation compares


class ResBlock(nn.Module):
    """Two convolutions that halve the resolution, beside a linear path."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = ConvLayer(inputs, inputs, 3)
        self.conv2 = ConvLayer(inputs, outputs, 3, down=True)
        self.skip = ConvLayer(inputs, outputs, 1, down=True, activate=False)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv2(self.conv1(x)) + self.skip(x)) * 2**-0.5


def minibatch_stddev(x: Tensor, group: int = GROUP) -> Tensor:
    """How much maps (B, C, H, W) differ between samples (arXiv 1710.10196): (B, 1, H, W) in float32.

    Sample i is compared with those of equal i mod (B / G), where G = min(B, group).

    Raises:
        UserError: a batch larger than the group is no multiple of it.
    """
    batch, *shape = x.shape
    group = min(batch, group)
    if batch % group:
        raise UserError(f"The discriminator compares {group} pictures at a time: {batch} is no multiple of {group}.")
    with full_precision(x):
        groups = x.float().view(group, batch // group, *shape)
        spread = (groups.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))
    return spread.repeat(group).view(-1, 1, 1, 1).expand(-1, 1, *shape[1:])


class Discriminator(nn.Module):
    """Pictures -> logits of being real.

    Args:
        size: px, a power of two of at least 8.
        channel_multiplier: of the official channels from 64 px on.
        channels: other channels by resolution, such as {4: 64, 8: 64, 16: 32}.
    """

    def __init__(self, size: int, channel_multiplier: int = 2, channels: Mapping[int, int] | None = None) -> None:
        super().__init__()
        widths = channels or channels_of(channel_multiplier)
        self.size = size
        blocks: list[nn.Module] = [ConvLayer(3, widths[size], 1)]
        side = size
        while side > 4:
            blocks.append(ResBlock(widths[side], widths[side // 2]))
            side //= 2
        self.convs = nn.Sequential(*blocks)
        self.final_conv = ConvLayer(widths[4] + 1, widths[4], 3)
        self.final_linear = nn.Sequential(
            EqualLinear(widths[4] * 16, widths[4], activate=True), EqualLinear(widths[4], 1)
        )

    def layers(self) -> list[nn.Module]:
        """The layers from RGB to logits, in the order in which FreezeD (arXiv 2002.10964) holds the first ones still.

        A block counts as three: its convolutions and the path beside them.
        """
        blocks = [part for block in list(self.convs)[1:] for part in (block.conv1, block.conv2, block.skip)]
        return [self.convs[0], *cast("list[nn.Module]", blocks), self.final_conv, *self.final_linear]

    def features(self, image: Tensor) -> list[Tensor]:
        """The maps after the layer from RGB and after each block, from `size` down to 4 px."""
        x, maps, side = image, [], self.size
        for i, block in enumerate(self.convs):
            follows = torch.is_autocast_enabled(x.device.type) and side * 2**REDUCED > self.size
            with torch.autocast(x.device.type, enabled=follows):
                x = block(x if follows else x.float())
            maps.append(x)
            side //= 2 if i else 1
        return maps

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, 1) of `image` (B, 3, size, size) in [-1, 1].

        Raises:
            UserError: see `minibatch_stddev`.
        """
        x = self.features(image)[-1]
        with full_precision(x):
            x = self.final_conv(torch.cat([x.float(), minibatch_stddev(x)], 1))
            return self.final_linear(x.flatten(1))
