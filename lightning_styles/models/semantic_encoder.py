"""The semantic encoder of a diffusion autoencoder (arXiv 2111.15640, section 3): a picture -> its code z."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from lightning_styles.models.diffusion_blocks import GroupNorm, ResBlock
from lightning_styles.models.pixel_unet import Heads, down_path, middle


class SemanticEncoder(nn.Module):
    """The downward half of a UNet without time, global average and a linear map.

    Args:
        widths: channels of each level.
        res_blocks: residual blocks of each level.
        attention: levels with attention.
        heads: channels -> attention heads.
        embedding: length D of z.
    """

    def __init__(
        self, widths: Sequence[int], res_blocks: int, attention: Collection[int], heads: Heads, embedding: int
    ) -> None:
        super().__init__()
        self.input_blocks, _, _ = down_path(ResBlock, widths, res_blocks, attention, heads)
        self.middle_block = middle(ResBlock, widths[-1], heads)
        last = nn.Conv2d(widths[-1], embedding, 1)
        self.out = nn.Sequential(GroupNorm(widths[-1]), nn.SiLU(), nn.AdaptiveAvgPool2d(1), last, nn.Flatten())

    def forward(self, image: Tensor) -> Tensor:
        """z (B, D) of `image` (B, 3, H, W) in [-1, 1]."""
        h = image.to(self.out[3].weight.dtype)  # type: ignore[arg-type]
        for stage in self.input_blocks:
            h = stage(h)
        return self.out(self.middle_block(h)).to(image.dtype)
