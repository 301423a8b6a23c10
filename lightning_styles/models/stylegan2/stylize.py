"""Photos, as w+ of the source generator, drawn by a finetuned one: as they are, with random styles, with a reference's.

Layers are counted as in `Generator`: what is below the given layer comes from the photo, the rest from the style. Low
ones shape the face, high ones colour it; so the larger the layer, the subtler the change.
Notation: B batch, D length of a style, L styles of a picture, w+ (B, L, D).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.losses.semantic import Judge
from lightning_styles.models.stylegan2.factorization import VSpace
from lightning_styles.models.stylegan2.generator import Generator
from lightning_styles.models.stylegan2.inversion import Inverted, invert
from lightning_styles.models.stylegan2.mixing import mix, truncate

OFFICIAL_LAYERS = 18  # L at 1024 px, which the layers below are counted for
MULTIMODAL, REFERENCE = (6, 9, 12), (3, 6, 9)  # first layers of the style
PSI = 0.7

Noise = Sequence[Tensor] | None


def scaled(layer: int, n_latent: int) -> int:
    """The layer of a generator with `n_latent` styles at the same share of its depth as `layer` of 18."""
    return min(n_latent, int(layer * n_latent / OFFICIAL_LAYERS + 0.5))


def check_layer(layer: int, n_latent: int, name: str = "layer") -> None:
    """Refuse a layer that the generator has not.

    Raises:
        UserError: naming the setting.
    """
    if not 0 <= layer <= n_latent:
        raise UserError(f"{name} is {layer}; the generator has {n_latent} styles, so expected 0 to {n_latent}.")


def standard(
    generator: Generator, w: Tensor, noise: Noise = None, mean: Tensor | None = None, psi: float = 1.0
) -> Tensor:
    """The pictures (B, 3, S, S) of w+ `w`, drawn towards `mean` (D,) for `psi` below 1."""
    return generator(w if mean is None or psi >= 1 else truncate(w, mean, psi), noise)


def multimodal(
    generator: Generator, w: Tensor, z: Tensor, mean: Tensor, layer: int, psi: float = PSI, noise: Noise = None
) -> Tensor:
    """Pictures (B, 3, S, S) of `w` whose styles from `layer` on are random.

    Args:
        generator: the finetuned one.
        w: w+ of the photos.
        z: (B, L, D), normal, one for each style.
        mean: (D,), of w.
        layer: the first random one; L draws `w` alone, 0 draws `z` alone.
        psi: truncation of the random styles.
        noise: maps; None are the stored ones.

    Raises:
        UserError: there is no such layer.
    """
    check_layer(layer, generator.n_latent)
    return generator(mix(w, truncate(generator.mapping(z), mean, psi), layer), noise)


def reference_guided(
    generator: Generator, w: Tensor, v: Tensor, space: VSpace, layer: int, noise: Noise = None
) -> Tensor:
    """Pictures (B, 3, S, S) of `w` whose styles from `layer` on are those of a reference.

    Args:
        generator: the finetuned one.
        w: w+ of the photos.
        v: (D,) or (B, D), coordinates of the reference in V space, see `invert_reference`.
        space: V space of `generator`.
        layer: the first one of the reference.
        noise: maps; None are the stored ones.

    Raises:
        UserError: there is no such layer.
    """
    check_layer(layer, generator.n_latent)
    return generator(mix(w, space.to_w(v).expand(len(w), -1), layer), noise)


def invert_reference(
    generator: Generator,
    space: VSpace,
    target: Tensor,
    judge: Judge,
    *,
    steps: int = 1000,
    lr: float = 0.1,
    pixel_weight: float = 0.0,
    noise_weight: float = 1e5,
    mean: Tensor | None = None,
    seed: int = 0,
) -> Inverted:
    """Coordinates (B, D) in V space of reference pictures (UI2I, arXiv 2010.05713): one style for all layers.

    Args:
        generator: the finetuned one, whose pictures look like the references.
        space: its V space.
        target: (B, 3, S, S) in [-1, 1].
        judge: LPIPS or the small perceptual network.
        steps, lr, pixel_weight, noise_weight, seed: see `invert`.
        mean: (D,) of w, where the search begins; None begins at v = 0, as UI2I does.
    """
    start = target.new_zeros(generator.style_dim) if mean is None else space.to_v(mean.detach())
    with torch.inference_mode(False):
        inner = VSpace(space.singular_values.clone(), space.directions.clone(), space.ui2i)
    return invert(
        generator,
        target,
        judge,
        start.expand(len(target), -1),
        inner.to_w,
        steps=steps,
        lr=lr,
        pixel_weight=pixel_weight,
        noise_weight=noise_weight,
        seed=seed,
    )
