"""The UNet of guided diffusion (ADM, arXiv 2105.05233) as trained with P2 weighting (arXiv 2204.00227)."""

from dataclasses import dataclass
from functools import partial

from torch import Tensor

from lightning_styles.models.diffusion_blocks import ResBlock, embedding_layers, set_groups, timestep_embedding
from lightning_styles.models.pixel_unet import PixelUNet


@dataclass(frozen=True)
class GuidedConfig:
    """Architecture; the defaults are those of ffhq_p2.pt at 256 px.

    Attributes:
        channels: base width.
        multipliers: width of each level in units of `channels`.
        res_blocks: residual blocks of each level on the way down.
        attention_levels: levels with attention (level i works at 1 / 2^i of the resolution).
        head_channels: channels of one attention head.
        dropout: while training.
        groups: of each normalisation, at most; see `DiffAEConfig`.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    res_blocks: int = 1
    attention_levels: tuple[int, ...] = (4,)
    head_channels: int = 64
    dropout: float = 0.0
    groups: int = 32

    def heads(self, channels: int) -> int:
        """Attention heads of a layer."""
        if channels % self.head_channels:
            raise ValueError(f"{channels} channels do not divide into attention heads of {self.head_channels}")
        return channels // self.head_channels


class GuidedUNet(PixelUNet):
    """eps and the interpolation of the variance for noisy pictures, without a class or a code."""

    def __init__(self, config: GuidedConfig | None = None) -> None:
        c = config or GuidedConfig()
        time = 4 * c.channels
        super().__init__(
            embedding_layers(c.channels, time),
            partial(ResBlock, time=time, dropout=c.dropout),
            [c.channels * m for m in c.multipliers],
            c.res_blocks,
            c.attention_levels,
            c.heads,
            out_channels=6,
        )
        self.config = c
        set_groups(self, c.groups)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """eps and v (B, 6, H, W), three channels each, for x_t (B, 3, H, W) and timesteps t (B,), 0 <= t < 1000."""
        temb = self.time_embed(timestep_embedding(t, self.config.channels).to(self.dtype))
        return self.run(x, temb, None, [None] * self.levels)
