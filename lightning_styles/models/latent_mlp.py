"""The latent diffusion prior of a diffusion autoencoder (arXiv 2111.15640, section 4): eps for noisy codes z."""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.models.diffusion_blocks import embedding_layers, timestep_embedding


class LatentLayer(nn.Module):
    """Linear layer, scaled by the time, then normalised.

    The official files hold the scale's layer under two names, `linear_emb` and `cond_layers.1`: one module here too.
    """

    def __init__(self, c_in: int, c_out: int, time: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out)
        self.linear_emb = nn.Linear(time, c_out)
        self.cond_layers = nn.Sequential(nn.SiLU(), self.linear_emb)
        self.norm = nn.LayerNorm(c_out)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return F.silu(self.norm(self.linear(h) * (1 + self.cond_layers(temb))))


class LastLayer(nn.Module):
    """A linear layer alone, under the name that it has in the other layers."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.linear = nn.Linear(c_in, c_out)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return self.linear(h)


class LatentMLP(nn.Module):
    """MLP whose input is concatenated again before the layers named in `skips`.

    Args:
        channels: length D of z.
        hidden: width of the hidden layers.
        layers: their number, the last included.
        skips: indices of the layers that see the input again.
        time_channels: sinusoids of the timestep.
    """

    def __init__(self, channels: int, hidden: int, layers: int, skips: Collection[int], time_channels: int) -> None:
        super().__init__()
        self.time_channels, self.skips = time_channels, frozenset(skips)
        self.time_embed = embedding_layers(time_channels, channels)
        stack: list[nn.Module] = []
        for i in range(layers):
            width = (hidden if i else channels) + (channels if i in self.skips else 0)
            stack.append(LatentLayer(width, hidden, channels) if i < layers - 1 else LastLayer(width, channels))
        self.layers = nn.ModuleList(stack)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """eps (B, D) for noisy normalised codes x (B, D) at timesteps t (B,), 0 <= t < 1000."""
        dtype = self.time_embed[0].weight.dtype
        temb = self.time_embed(timestep_embedding(t, self.time_channels).to(dtype))  # type: ignore[arg-type]
        z = h = x.to(temb.dtype)
        for i, layer in enumerate(self.layers):
            h = layer(torch.cat([h, z], dim=1) if i in self.skips else h, temb)
        return h.to(x.dtype)
