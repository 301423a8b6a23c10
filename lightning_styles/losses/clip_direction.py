"""Losses of OSASIS on CLIP embeddings (arXiv 2402.17275, supplement A.3; the directions of StyleGAN-NADA and MTG).

Notation: e_* embeddings (B, D) or (1, D). style_a is the photorealistic twin I_A^style, style_b the style image
I_B^style, photo the picture I_A^in, result the x_0 predicted for it, reconstruction the x_0 predicted for style_a.
Gradients flow through the last two alone. Embeddings are not normalised unless `normalize` says so.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.errors import UserError

ClipPreprocess = Literal["osasis", "clip"]
ReClip = Literal["cosine", "l1"]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EPS = 1e-8
NO_DIRECTION = 1e-5  # in units of the embeddings' length: rounding of the network, no difference of pictures


def clip_input(
    image: Tensor,
    how: ClipPreprocess = "osasis",
    size: int = 224,
    mean: tuple[float, ...] = CLIP_MEAN,
    std: tuple[float, ...] = CLIP_STD,
) -> Tensor:
    """What CLIP is shown of pictures (B, 3, H, W) in [-1, 1]: (B, 3, size, size), differentiable.

    "osasis" (official code) repeats or skips pixels and keeps [-1, 1]; "clip" is CLIP's own: bicubic resize of the
    short side, center crop, `mean` and `std` of [0, 1].
    """
    if how == "osasis":
        return F.interpolate(image, (size, size), mode="nearest")
    short = min(image.shape[-2:])
    sides = [side * size // short for side in image.shape[-2:]]
    image = F.interpolate((image + 1) / 2, sides, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (round((side - size) / 2) for side in sides)
    image = image[..., top : top + size, left : left + size]
    return (image - image.new_tensor(mean)[:, None, None]) / image.new_tensor(std)[:, None, None]


def direction(e_to: Tensor, e_from: Tensor, normalize: bool = False) -> Tensor:
    """e_to - e_from; with `normalize` (MTG, arXiv 2110.08398) of embeddings of unit length."""
    if normalize:
        return F.normalize(e_to, dim=-1) - F.normalize(e_from, dim=-1)
    return e_to - e_from


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 - cos(a, b) (B,) of a and b, (B, D) or (1, D); 1 without a gradient where either is zero."""
    return 1 - (_unit(a) * _unit(b)).sum(-1)


def _unit(a: Tensor) -> Tensor:
    norm = a.norm(dim=-1, keepdim=True)
    return a / norm.clamp(min=EPS) * (norm > EPS)


def cross_loss(
    e_style_a: Tensor, e_style_b: Tensor, e_photo: Tensor, e_result: Tensor, normalize: bool = False
) -> Tensor:
    """Between the domains, a photo moves as the style image did (supplement, equations 15 to 17): a scalar."""
    style = direction(e_style_b, e_style_a, normalize)
    return cosine_distance(style, direction(e_result, e_photo, normalize)).mean()


def in_loss(e_style_a: Tensor, e_style_b: Tensor, e_photo: Tensor, e_result: Tensor, normalize: bool = False) -> Tensor:
    """Within a domain, pictures differ alike before and after (supplement, equations 18 to 20): a scalar."""
    before = direction(e_photo, e_style_a, normalize)
    return cosine_distance(before, direction(e_result, e_style_b, normalize)).mean()


def re_clip_loss(e_reconstruction: Tensor, e_style_b: Tensor, how: ReClip = "cosine") -> Tensor:
    """The reconstructed style image means the same (supplement, equation 24): a scalar.

    "cosine" is the official code, "l1" the paper's formula, as a mean over the embedding.
    """
    if how == "l1":
        return (e_reconstruction - e_style_b).abs().mean()
    return cosine_distance(e_reconstruction, e_style_b).mean()


@torch.no_grad()
def check_directions(e_style_a: Tensor, e_style_b: Tensor, normalize: bool = False) -> None:
    """Refuse a style image that CLIP cannot tell from its twin: a direction of length zero teaches nothing.

    The two embeddings (1, D) are constants of a run, so this is called once, outside of the loop.

    Raises:
        UserError: it cannot.
    """
    length = 1.0 if normalize else torch.maximum(e_style_a.norm(), e_style_b.norm())
    if direction(e_style_b, e_style_a, normalize).norm() <= NO_DIRECTION * length:
        raise UserError(
            "CLIP sees no difference between the style image and its photorealistic twin, so there is no style to "
            "learn; take another style image, or make the twin again with more noise."
        )
