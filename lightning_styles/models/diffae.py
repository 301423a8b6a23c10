"""Diffusion autoencoder (DiffAE, arXiv 2111.15640), conditioned on one code z or, in OSASIS, on two by resolution."""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor, nn

from lightning_styles.models.diffusion_blocks import ResBlock, embedding_layers, set_groups, timestep_embedding
from lightning_styles.models.latent_mlp import LatentMLP
from lightning_styles.models.pixel_unet import PixelUNet
from lightning_styles.models.semantic_encoder import SemanticEncoder


@dataclass(frozen=True)
class LatentConfig:
    """Architecture of the latent prior; the defaults are those of ffhq256_autoenc_latent.

    Attributes:
        hidden: width of the hidden layers.
        layers: number of layers.
        skips: layers that see the input again.
        time_channels: sinusoids of the timestep.
    """

    hidden: int = 2048
    layers: int = 10
    skips: tuple[int, ...] = tuple(range(1, 10))
    time_channels: int = 64


@dataclass(frozen=True)
class DiffAEConfig:
    """Architecture; the defaults are those of ffhq256_autoenc.

    Attributes:
        channels: base width.
        multipliers: width of each level of the UNet in units of `channels`.
        res_blocks: residual blocks of each level on the UNet's way down.
        attention_levels: levels with attention in the UNet (level i works at 1 / 2^i of the resolution).
        encoder_multipliers: as `multipliers`, of the semantic encoder.
        encoder_res_blocks: as `res_blocks`, of the semantic encoder.
        encoder_attention_levels: as `attention_levels`, of the semantic encoder.
        heads: attention heads.
        embedding: length D of z.
        dropout: of the UNet while training.
        groups: of each normalisation, at most. A narrow network wants fewer than its channels: with a group for each
            channel the mean colour and the amplitude of the noise, which DDIM needs exactly, are lost.
        latent: the prior over z, None for an autoencoder without it.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4)
    res_blocks: int = 2
    attention_levels: tuple[int, ...] = (4,)
    encoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4, 4, 4)
    encoder_res_blocks: int = 2
    encoder_attention_levels: tuple[int, ...] = (4,)
    heads: int = 1
    embedding: int = 512
    dropout: float = 0.1
    groups: int = 32
    latent: LatentConfig | None = field(default_factory=LatentConfig)


class TimeEmbedding(nn.Module):
    """The timestep's linear layers, under the nested name of the official files."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.time_embed = embedding_layers(channels, width)

    def forward(self, sinusoids: Tensor) -> Tensor:
        return self.time_embed(sinusoids)


class DiffAEUNet(PixelUNet):
    """The autoencoder's conditional UNet: eps for noisy pictures and codes z."""

    def __init__(self, config: DiffAEConfig | None = None) -> None:
        c = config or DiffAEConfig()
        super().__init__(
            TimeEmbedding(c.channels, c.embedding),
            partial(ResBlock, time=c.embedding, cond=c.embedding, dropout=c.dropout),
            [c.channels * m for m in c.multipliers],
            c.res_blocks,
            c.attention_levels,
            lambda _: c.heads,
        )
        self.config = c
        set_groups(self, c.groups)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        z: Tensor,
        z_style: Tensor | None = None,
        style_levels: Collection[int] = (),
    ) -> Tensor:
        """eps (B, 3, H, W) (OSASIS, arXiv 2402.17275, eq. 27, where two codes are given).

        Args:
            x: x_t (B, 3, H, W).
            t: timesteps (B,), 0 <= t < 1000.
            z: code (B, D) or (1, D) of the content; of everything if it is alone.
            z_style: code (B, D) or (1, D) of the levels in `style_levels`, on the way down as on the way up.
            style_levels: see the function of that name.
        """
        temb = self.time_embed(timestep_embedding(t, self.config.channels).to(self.dtype))
        z = z.to(self.dtype)
        style = z if z_style is None else z_style.to(self.dtype)
        return self.run(x, temb, z, [style if i in style_levels else z for i in range(self.levels)])


class DiffAE(DiffAEUNet):
    """UNet, semantic `encoder` and, where the config has one, the prior `latent_net` over z."""

    def __init__(self, config: DiffAEConfig | None = None) -> None:
        super().__init__(config)
        c = self.config
        widths = [c.channels * m for m in c.encoder_multipliers]
        self.encoder = SemanticEncoder(
            widths, c.encoder_res_blocks, c.encoder_attention_levels, lambda _: c.heads, c.embedding
        )
        set_groups(self.encoder, c.groups)
        self.latent_net = None
        if c.latent is not None:
            prior = c.latent
            self.latent_net = LatentMLP(c.embedding, prior.hidden, prior.layers, prior.skips, prior.time_channels)


def style_levels(f_ch: int, size: int, levels: int) -> frozenset[int]:
    """Levels whose feature maps have a side of at least `f_ch` (32 in OSASIS) for pictures of side `size`."""
    return frozenset(i for i in range(levels) if size / 2**i >= f_ch)
