"""The identity network of the embedded world: a face -> a unit vector; same person, same direction."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class IdentityNet(nn.Module):
    """Strided convolutions, global average and maximum, a linear embedding of unit length.

    Args:
        widths: channels after each stride-2 stage.
        embedding: length D of the vector.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128, 192), embedding: int = 128) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        for i, o in zip((3, *widths[:-1]), widths, strict=True):
            stages += [nn.Conv2d(i, o, 4, stride=2, padding=1), nn.GroupNorm(8, o), nn.SiLU()]
            stages += [nn.Conv2d(o, o, 3, padding=1), nn.GroupNorm(8, o), nn.SiLU()]
        self.stages = nn.Sequential(*stages)
        self.embed = nn.Linear(widths[-1] * 16, embedding)

    def forward(self, image: Tensor) -> Tensor:
        """Identity vectors (B, D) of unit length for faces (B, 3, H, W) in [-1, 1], seen at 64 x 64."""
        if image.shape[-2:] != (64, 64):
            image = F.interpolate(image, (64, 64), mode="bicubic", antialias=True, align_corners=False)
        return F.normalize(self.embed(self.stages(image).flatten(1)), dim=1)


def identity_similarity(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cosine similarity (B,) of the identities in `x` and `y`, both (B, 3, H, W) in [-1, 1]."""
    return torch.einsum("bd,bd->b", network(x), network(y))
