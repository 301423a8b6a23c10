"""The structure-preserving network of OSASIS (arXiv 2402.17275): what to add to x_t so as to keep I."""

import torch
from torch import Tensor, nn

from lightning_styles.models.diffusion_blocks import GroupNorm, embedding_layers, timestep_embedding

TIME_CHANNELS, EMBEDDING = 128, 512


class MappingBlock(nn.Module):
    """Two 1 x 1 convolutions, modulated by the time between them."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.pre_layer = nn.Sequential(GroupNorm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 1), GroupNorm(c_out))
        self.post_layer = nn.Sequential(nn.SiLU(), nn.Conv2d(c_out, c_out, 1))
        self.emb_layer = nn.Sequential(nn.SiLU(), nn.Linear(EMBEDDING, 2 * c_out))

    def modulate(self, h: Tensor, temb: Tensor) -> Tensor:
        """The half that sees the time, for the features h of `pre_layer`."""
        scale, shift = self.emb_layer(temb)[..., None, None].chunk(2, dim=1)
        return self.post_layer(h * (1 + scale) + shift)

    def forward(self, h: Tensor, temb: Tensor) -> Tensor:
        return self.modulate(self.pre_layer(h), temb)


class MappingNetTime(nn.Module):
    """SPN(I, t): pixels of the clean picture I and a time -> an offset of x_t. Only the norms see other pixels.

    Its last layer starts like any other, not at zero: a fresh SPN already moves x_t.
    """

    def __init__(self) -> None:
        super().__init__()
        self.in_layer = nn.Sequential(nn.Conv2d(3, 128, 1))
        self.block1 = MappingBlock(128, 256)
        self.block2 = MappingBlock(256, 128)
        self.out_layer = nn.Sequential(nn.Conv2d(128, 3, 1))
        self.time_embed = embedding_layers(TIME_CHANNELS, EMBEDDING)

    def features(self, image: Tensor) -> Tensor:
        """What does not depend on the time, (B, 256, H, W) for `image` (B, 3, H, W) in [-1, 1]: worth keeping."""
        return self.block1.pre_layer(self.in_layer(image))

    def offset(self, features: Tensor, t: Tensor) -> Tensor:
        """SPN(I, t) (B, 3, H, W) from `features` of I and t (B,) or (1,)."""
        temb = self.time_embed(timestep_embedding(t, TIME_CHANNELS).to(features.dtype))
        return self.out_layer(self.block2(self.block1.modulate(features, temb), temb))

    def forward(self, image: Tensor, t: Tensor) -> Tensor:
        """SPN(I, t) (B, 3, H, W) for `image` (B, 3, H, W) in [-1, 1] and t (B,) or (1,)."""
        return self.offset(self.features(image), t)


class MappingNet(nn.Module):
    """The variant without time: the same offset at every step."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 128, 1)]
        for c_in, c_out in ((128, 256), (256, 128), (128, 3)):
            layers += [GroupNorm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor, t: Tensor | None = None) -> Tensor:
        """SPN(I) (B, 3, H, W) for `image` (B, 3, H, W) in [-1, 1]; t is taken, so that either net fits, and ignored."""
        return self.layers(image)


class NoSPN(nn.Module):
    """Stands where the structure-preserving network is ablated."""

    def forward(self, image: Tensor, t: Tensor | None = None) -> Tensor:
        return torch.zeros_like(image)


def fresh_spn(kind: str, seed: int) -> MappingNetTime | MappingNet | NoSPN:
    """An untrained SPN, "time", "plain" or "none": a function of the seed, whatever was drawn before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {"time": MappingNetTime, "plain": MappingNet, "none": NoSPN}[kind]()
