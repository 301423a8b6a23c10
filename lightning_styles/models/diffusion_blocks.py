"""Building blocks of pixel diffusion networks (ADM, arXiv 2105.05233; DiffAE, arXiv 2111.15640).

Modules carry the names of the official files. Notation: B batch, C channels, H W pixels of a feature map, temb (B, E)
the embedded timestep, z (B, D) or (1, D) the semantic code.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

Resample = Literal["up", "down"]


class GroupNorm(nn.GroupNorm):
    """Normalisation over min(32, C) groups, computed in float32 whatever the precision of the input."""

    def __init__(self, channels: int) -> None:
        super().__init__(min(32, channels), channels)

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            out = F.group_norm(input.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)
        return out.to(input.dtype)


def set_groups(module: nn.Module, groups: int) -> None:
    """Let every GroupNorm inside normalise over at most `groups` groups; its weights do not depend on them."""
    for norm in module.modules():
        if isinstance(norm, GroupNorm):
            norm.num_groups = min(groups, norm.num_channels)


def timestep_embedding(t: Tensor, channels: int) -> Tensor:
    """Sinusoids [cos(t f_k), sin(t f_k)], f_k = 10000^(-2k / channels), of timesteps t (B,): (B, channels) float32.

    The cosines come first, and an odd number of channels ends with a zero.
    """
    half = channels // 2
    k = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * k / half)
    return F.pad(torch.cat([angles.cos(), angles.sin()], dim=1), (0, channels % 2))


def embedding_layers(channels: int, width: int) -> nn.Sequential:
    """The two linear layers on top of `timestep_embedding`."""
    return nn.Sequential(nn.Linear(channels, width), nn.SiLU(), nn.Linear(width, width))


def zeroed(module: nn.Module) -> nn.Module:
    """`module` with all parameters set to zero: a residual branch starts as nothing."""
    for p in module.parameters():
        nn.init.zeros_(p)
    return module


def resample(x: Tensor, how: Resample | None) -> Tensor:
    """Twice the size by repetition, half the size by averaging, or `x` itself."""
    if how == "up":
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return F.avg_pool2d(x, 2) if how == "down" else x


class ResBlock(nn.Module):
    """Residual block, optionally resampling, modulated by time, by time and z, or by nothing.

    An unconditioned block (`time` None) ends after its first convolution, as in the semantic encoder.

    Args:
        c_in: channels of the input.
        c_out: channels of the output.
        time: E, or None.
        cond: D, or None.
        dropout: share of features dropped while training.
        how: resample on the way in.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        time: int | None = None,
        cond: int | None = None,
        dropout: float = 0.0,
        how: Resample | None = None,
    ) -> None:
        super().__init__()
        self.how: Resample | None = how
        self.in_layers = nn.Sequential(GroupNorm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * c_out)) if time else None
        self.cond_emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(cond, c_out)) if time and cond else None
        if time:
            last = zeroed(nn.Conv2d(c_out, c_out, 3, padding=1))
            self.out_layers = nn.Sequential(GroupNorm(c_out), nn.SiLU(), nn.Dropout(dropout), last)
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, temb: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        """(B, c_out, H', W') for x (B, c_in, H, W)."""
        norm, activation, conv = self.in_layers
        h = conv(resample(activation(norm(x)), self.how))
        x = self.skip_connection(resample(x, self.how))
        if self.emb_layers is None:
            return x + h
        norm, activation, dropout, conv = self.out_layers
        h = norm(h)
        scale, shift = self.emb_layers(temb)[..., None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
        if self.cond_emb_layers is not None:
            # After the shift: z scales the time's shift too, and shifts nothing itself.
            h = h * (1 + self.cond_emb_layers(z)[..., None, None])
        return x + conv(dropout(activation(h)))


class Attention(nn.Module):
    """Self-attention over the pixels of a feature map; each head's q, k, v lie together in `qkv`."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{channels} channels do not divide into {heads} attention heads")
        self.heads = heads
        self.norm = GroupNorm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) plus what its pixels read from each other."""
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat)).unflatten(1, (self.heads, -1)).transpose(2, 3)  # (B, heads, HW, 3 C / heads)
        h = F.scaled_dot_product_attention(*(part.contiguous() for part in qkv.chunk(3, dim=-1)))
        return (flat + self.proj_out(h.transpose(2, 3).flatten(1, 2))).view_as(x)


class Stage(nn.Sequential):
    """The layers between two lateral connections: residual blocks see temb and z, other layers the features alone.

    With `checkpointing` on, the activations inside are recomputed in the backward pass instead of kept.
    """

    checkpointing = False

    def forward(self, x: Tensor, temb: Tensor | None = None, z: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(self._run, x, temb, z, use_reentrant=False)
        return self._run(x, temb, z)

    def _run(self, x: Tensor, temb: Tensor | None, z: Tensor | None) -> Tensor:
        for layer in self:
            x = layer(x, temb, z) if isinstance(layer, ResBlock) else layer(x)
        return x


def gradient_checkpointing(network: nn.Module, on: bool = True) -> None:
    """Trade time for memory: recompute the activations of every stage of `network` in the backward pass."""
    for module in network.modules():
        if isinstance(module, Stage):
            module.checkpointing = on
