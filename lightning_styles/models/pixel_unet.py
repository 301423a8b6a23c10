"""The UNet that DiffAE and guided diffusion share: residual up- and downsampling, one code z per level.

Level i works at 1 / 2^i of the picture's resolution. On the way down a level begins with the block that halves the
resolution, on the way up it ends with the block that doubles it; the middle belongs to no level.
"""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor, nn

from lightning_styles.models.diffusion_blocks import Attention, GroupNorm, ResBlock, Stage, zeroed

Block = Callable[..., ResBlock]
Heads = Callable[[int], int]  # channels -> attention heads


def down_path(
    block: Block, widths: Sequence[int], res_blocks: int, attention: Collection[int], heads: Heads
) -> tuple[nn.ModuleList, list[int], list[int]]:
    """Stem, residual blocks and halvings: the stages, and for each its channels and its level."""
    stages, channels, levels = [Stage(nn.Conv2d(3, widths[0], 3, padding=1))], [widths[0]], [0]

    def append(stage: Stage, width: int, level: int) -> None:
        stages.append(stage)
        channels.append(width)
        levels.append(level)

    for level, width in enumerate(widths):
        if level:
            append(Stage(block(channels[-1], channels[-1], how="down")), channels[-1], level)
        for _ in range(res_blocks):
            layers: list[nn.Module] = [block(channels[-1], width)]
            if level in attention:
                layers.append(Attention(width, heads(width)))
            append(Stage(*layers), width, level)
    return nn.ModuleList(stages), channels, levels


def middle(block: Block, width: int, heads: Heads) -> Stage:
    """Two residual blocks with attention between them, at the lowest resolution."""
    return Stage(block(width, width), Attention(width, heads(width)), block(width, width))


def up_path(
    block: Block,
    widths: Sequence[int],
    laterals: Sequence[int],
    res_blocks: int,
    attention: Collection[int],
    heads: Heads,
) -> tuple[nn.ModuleList, list[int]]:
    """Residual blocks, each taking one of the `laterals` (channels), and doublings: the stages and their levels."""
    stages, levels, laterals, channels = [], [], list(laterals), widths[-1]
    for level in reversed(range(len(widths))):
        for i in range(res_blocks + 1):
            layers: list[nn.Module] = [block(channels + laterals.pop(), widths[level])]
            channels = widths[level]
            if level in attention:
                layers.append(Attention(channels, heads(channels)))
            if level and i == res_blocks:
                layers.append(block(channels, channels, how="up"))
            stages.append(Stage(*layers))
            levels.append(level)
    return nn.ModuleList(stages), levels


class PixelUNet(nn.Module):
    """Down path, middle, up path and output convolution.

    Args:
        time_embed: embeds sinusoids of the timestep; registered first, as in the official files.
        block: makes a residual block.
        widths: channels of each level.
        res_blocks: residual blocks of each level on the way down; one more on the way up.
        attention: levels with attention.
        heads: channels -> attention heads.
        out_channels: of the output.
    """

    def __init__(
        self,
        time_embed: nn.Module,
        block: Block,
        widths: Sequence[int],
        res_blocks: int,
        attention: Collection[int],
        heads: Heads,
        out_channels: int = 3,
    ) -> None:
        super().__init__()
        self.time_embed = time_embed
        self.input_blocks, laterals, self.down_levels = down_path(block, widths, res_blocks, attention, heads)
        self.middle_block = middle(block, widths[-1], heads)
        self.output_blocks, self.up_levels = up_path(block, widths, laterals, res_blocks, attention, heads)
        last = zeroed(nn.Conv2d(widths[0], out_channels, 3, padding=1))
        self.out = nn.Sequential(GroupNorm(widths[0]), nn.SiLU(), last)

    @property
    def levels(self) -> int:
        """Number of levels."""
        return self.up_levels[0] + 1

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.input_blocks[0][0].weight.dtype  # type: ignore[index, union-attr, return-value]

    def run(self, x: Tensor, temb: Tensor, z: Tensor | None, z_of: Sequence[Tensor | None]) -> Tensor:
        """Features through all stages: z in the middle, z_of[i] in level i. Takes any precision, returns that of x."""
        h, laterals = x.to(self.dtype), []
        for stage, level in zip(self.input_blocks, self.down_levels, strict=True):
            h = stage(h, temb, z_of[level])
            laterals.append(h)
        h = self.middle_block(h, temb, z)
        for stage, level in zip(self.output_blocks, self.up_levels, strict=True):
            h = stage(torch.cat([h, laterals.pop()], dim=1), temb, z_of[level])
        return self.out(h).to(x.dtype)
