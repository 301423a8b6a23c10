"""The objective of OSASIS put together (arXiv 2402.17275, supplement A.3), and the score of its twin candidates.

Notation as in `clip_direction`; pictures are (B, 3, H, W) in [-1, 1].
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from lightning_styles.losses.clip_direction import ReClip, cross_loss, in_loss, re_clip_loss

# The weights of the official code.
WEIGHTS = {"cross": 1.0, "in": 0.5, "re_clip": 30.0, "re_l1": 10.0, "re_lpips": 10.0}

Perceptual = Callable[[Tensor], Tensor]  # pictures (B, 3, H, W) -> distances (B,) to the style image


class Anchors(NamedTuple):
    """The embeddings that are constant: I_A^style (1, D), I_B^style (1, D) and the photos (B, D)."""

    style_a: Tensor
    style_b: Tensor
    photo: Tensor


def embedding_terms(
    anchors: Anchors, e_result: Tensor, e_reconstruction: Tensor, re_clip: ReClip = "cosine", normalize: bool = False
) -> dict[str, Tensor]:
    """The terms `cross`, `in` and `re_clip`, not weighted: scalars.

    Args:
        anchors: the constants.
        e_result: (B, D), of the x_0 predicted for the photos.
        e_reconstruction: (1, D), of the x_0 predicted for the style image.
        re_clip: reading of the reconstruction's term.
        normalize: take directions between embeddings of unit length.
    """
    return {
        "cross": cross_loss(*anchors, e_result, normalize),
        "in": in_loss(*anchors, e_result, normalize),
        "re_clip": re_clip_loss(e_reconstruction, anchors.style_b, re_clip),
    }


def picture_terms(reconstruction: Tensor, style_b: Tensor, perceptual: Perceptual) -> dict[str, Tensor]:
    """The terms `re_l1` and `re_lpips` (equations 22 and 23) of the x_0 (1, 3, H, W) predicted for the style image."""
    return {"re_l1": F.l1_loss(reconstruction, style_b), "re_lpips": perceptual(reconstruction).mean()}


def twin_scores(candidates: Tensor, style_b: Tensor, perceptual: Perceptual, l1: float = 10.0) -> Tensor:
    """Distance (n,) of each candidate (n, 3, H, W) to the style image (1, 3, H, W): l1 mean |x - I_B| + LPIPS.

    The smallest is the photorealistic twin I_A^style (OSASIS, arXiv 2402.17275, A.1; weights of its code).
    """
    return l1 * (candidates - style_b).abs().flatten(1).mean(1) + perceptual(candidates)
