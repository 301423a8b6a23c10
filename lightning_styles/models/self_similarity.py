"""What a picture looks like to itself: the tokens behind the structure distance (Splice, arXiv 2201.00424).

Notation: B pictures, N tokens (places) of length D.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.models.perceptual import PerceptualNet

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class DinoKeys(nn.Module):
    """Keys of the last attention layer of a DINO vision transformer (arXiv 2104.14294), all heads side by side.

    Args:
        vit: timm's VisionTransformer with a class token; it must accept pictures of any size.
        short_side: of the pictures as it sees them, in px.
    """

    def __init__(self, vit: Any, short_side: int = 224) -> None:
        super().__init__()
        self.vit = vit
        self.short_side = short_side

    def forward(self, images: Tensor) -> Tensor:
        """Keys (B, 1 + N, D) of the class token and the patches of `images` (B, 3, H, W) in [-1, 1]."""
        mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        shown = resized(images, self.short_side, self.vit.patch_embed.patch_size[0])
        ((patches, class_token),) = self.vit.forward_intermediates(
            ((shown + 1) / 2 - mean) / std,
            indices=[len(self.vit.blocks) - 2],
            return_prefix_tokens=True,
            stop_early=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        last = self.vit.blocks[-1]
        return last.attn.qkv(last.norm1(torch.cat([class_token, patches], dim=1))).chunk(3, dim=-1)[1]


class PerceptualTokens(nn.Module):
    """Tokens of the embedded world: the coarsest features of its perceptual network, less their mean.

    Features after ReLU all point one way; without the mean their cosines tell places apart.

    Args:
        network: the perceptual network.
        short_side: of the pictures as it sees them, in px.
    """

    def __init__(self, network: PerceptualNet, short_side: int = 64) -> None:
        super().__init__()
        self.network = network
        self.short_side = short_side

    def forward(self, images: Tensor) -> Tensor:
        """Tokens (B, N, D) of `images` (B, 3, H, W) in [-1, 1]."""
        step = 2 ** (len(self.network.widths) - 1)
        tokens = self.network.features(resized(images, self.short_side, step))[-1].flatten(2).mT
        return tokens - tokens.mean(1, keepdim=True)


def resized(images: Tensor, short_side: int, multiple: int) -> Tensor:
    """`images` (B, 3, H, W) with the shorter side at `short_side` px and the longer at the nearest `multiple`."""
    short = min(images.shape[-2:])
    sides = [max(round(side * short_side / short / multiple), 1) * multiple for side in images.shape[-2:]]
    if list(images.shape[-2:]) == sides:
        return images
    return F.interpolate(images, sides, mode="bilinear", antialias=True, align_corners=False)


def self_similarity(tokens: Tensor) -> Tensor:
    """S (B, N, N) of `tokens` (B, N, D): S_ij = k_i . k_j / max(|k_i| |k_j|, 1e-8) (arXiv 2201.00424, eq. 3)."""
    norm = tokens.norm(dim=-1)
    return tokens @ tokens.mT / (norm[:, :, None] * norm[:, None]).clamp(min=1e-8)


def structure_distance(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference (B,) of the self-similarities of pictures `x` and `y`, each (B, 3, H, W).

    The mean instead of the Frobenius norm, so that it does not grow with the number of tokens.
    """
    return (self_similarity(network(x)) - self_similarity(network(y))).square().mean((1, 2))
