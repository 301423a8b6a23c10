"""Photographs that belong to style pictures, on three levels (Lu and Zhou 2025, section on pseudo-paired supervision).

Level 1 encodes the picture into Z+ and lets the source generator draw it. Level 2 first moves the code until G*, the
generator finetuned without constraints, draws the style picture. Level 3 encodes the photograph of level 2 into W+.
There equation 6 of the paper says E_w(S), its text that P2 is refined. Here it is P2: E_w(S) would have nothing of the
first two levels, and the paper itself finds that style pictures embed badly into W+. `PairSettings.refine` chooses.
Numbers that the paper leaves open are those of its closest relative (DualStyleGAN, arXiv 2203.13248).
Notation: S style pictures, B of them, L styles of a picture, D length of a style.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Adam

from lightning_styles.errors import UserError, at_least, check_keys
from lightning_styles.losses.codes import row_spread
from lightning_styles.losses.semantic import Judge, identity_distance, perceptual_distance, shrink
from lightning_styles.models.psp import to_w_plus
from lightning_styles.models.stylegan2.generator import Generator
from lightning_styles.models.stylegan2.mixing import mix, truncate
from lightning_styles.models.stylegan2.projection import noise_regularizer, normalize_noise, ramp
from lightning_styles.pretrained.psp import PSP
from lightning_styles.square import to_square


@dataclass(frozen=True)
class PairSettings:
    """How the photographs are made.

    Attributes:
        steps: of Adam on the codes and noise maps of level 2.
        lr: of Adam; it rises over the first 5 % and falls over the last 25 %.
        identity: weight of the identity distance of G*(z+) and S.
        spread: weight that pulls the L codes of a picture together, towards Z.
        noise: weight of the regulariser of the noise maps.
        psi: truncation of levels 1 and 2 about the mean of w.
        colour_layer: first layer whose styles level 2 takes from level 1, to keep the palette of S; None takes none.
        refine: what level 3 encodes: the photograph of level 2 ("p2", the paper's text) or the style picture ("s", its
            equation 6, under which levels 1 and 2 have no part in level 3).
        batch_size: pictures at once; they do not influence each other.
    """

    steps: int = 300
    lr: float = 0.1
    identity: float = 0.1
    spread: float = 1.0
    noise: float = 1e5
    psi: float = 0.7
    colour_layer: int | None = None
    refine: Literal["p2", "s"] = "p2"
    batch_size: int = 8

    @classmethod
    def of(cls, settings: dict[str, Any]) -> "PairSettings":
        """The settings of a config.

        Raises:
            UserError: a key is unknown or a value out of range.
        """
        check_keys("pairs", settings, [field.name for field in fields(cls)])
        made = cls(**settings)
        at_least(1, **{"pairs.batch_size": made.batch_size})
        numbers = ("steps", "lr", "identity", "spread", "noise", "psi")
        at_least(0, **{f"pairs.{name}": getattr(made, name) for name in numbers})
        if made.refine not in ("p2", "s"):
            raise UserError(f"pairs.refine is {made.refine}; expected p2 or s.")
        return made


@dataclass(frozen=True)
class PairNetworks:
    """What takes part, all frozen and on one device.

    Attributes:
        source: G, which draws the photographs.
        finetuned: G*.
        latent_avg: (D,), the mean of w of G.
        encoder: into Z+.
        refiner: into W+; without it there are two levels.
        judge: perceptual network.
        identity: network of unit vectors, or None: its terms are then 0.
    """

    source: Generator
    finetuned: Generator
    latent_avg: Tensor
    encoder: PSP
    refiner: PSP | None
    judge: Judge
    identity: nn.Module | None


@dataclass(frozen=True)
class Level:
    """The photographs of one level.

    Attributes:
        w: (B, L, D), after truncation: what draws `image`.
        image: (B, 3, H, W), drawn with the stored noise maps.
        perceptual: (B,), distance of `image` and S.
        identity: (B,), as well.
        z: (B, L, D), or None on level 3.
    """

    w: Tensor
    image: Tensor
    perceptual: Tensor
    identity: Tensor
    z: Tensor | None = None

    @property
    def score(self) -> Tensor:
        """(B,), the lower the better."""
        return self.perceptual + self.identity


def pseudo_pairs(nets: PairNetworks, style: Tensor, noise: Sequence[Tensor], settings: PairSettings) -> list[Level]:
    """The levels of style pictures, two or three.

    Args:
        nets: the networks.
        style: S, (B, 3, H, W) in [-1, 1].
        noise: maps (B, 1, S, S) that level 2 starts from.
        settings: see there.
    """
    with torch.no_grad():
        z = encode(nets.encoder, style)
        levels = [_level(nets, style, _truncated(nets, z, settings.psi), z)]
    z = optimise_codes(nets, z, style, noise, settings)
    with torch.no_grad():
        w = _truncated(nets, z, settings.psi)
        if settings.colour_layer is not None:
            w = mix(w, levels[0].w, settings.colour_layer)
        levels.append(_level(nets, style, w, z))
        if nets.refiner is not None:
            seen = style if settings.refine == "s" else levels[1].image
            levels.append(_level(nets, style, encode_w(nets.refiner, nets.source, seen)))
    return levels


def encode(model: PSP, image: Tensor) -> Tensor:
    """Codes (B, L, D), z+ or w+, of pictures (B, 3, H, W) of any size, seen at that of the encoder."""
    size = model.encoder.size
    square = to_square(image, min(image.shape[-2:]), "crop")
    codes = model.encoder(to_square(shrink(square, size), size, "squash"))
    return codes if model.latent_avg is None else codes + model.latent_avg


def encode_w(model: PSP, generator: Generator, image: Tensor) -> Tensor:
    """w+ (B, L, D) of pictures (B, 3, H, W) of any size, for `generator`."""
    return to_w_plus(encode(model, image), model.space, generator)


def optimise_codes(
    nets: PairNetworks, z: Tensor, style: Tensor, noise: Sequence[Tensor], settings: PairSettings
) -> Tensor:
    """z+ (B, L, D) for which G* draws `style` (B, 3, H, W), from `z` of the same shape on.

    Losses are summed over the pictures and noise is normalised for each, so that what becomes of one does not depend
    on the others.
    """
    with torch.no_grad():
        target = nets.judge.embed(shrink(style))
    with torch.inference_mode(False), torch.enable_grad():
        z = z.clone().requires_grad_()
        maps = [x.clone().requires_grad_() for x in noise]
        optimizer = Adam([z, *maps], settings.lr)
        for step in range(settings.steps):
            optimizer.param_groups[0]["lr"] = settings.lr * ramp(step / settings.steps)
            image = nets.finetuned(nets.finetuned.mapping(z), maps)
            loss = perceptual_distance(nets.judge, image, target)
            loss = loss + settings.spread * row_spread(z) + settings.noise * noise_regularizer(maps)
            if nets.identity is not None and settings.identity:
                loss = loss + settings.identity * identity_distance(nets.identity, image, style)
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            normalize_noise(maps)
    return z.detach()


def best_levels(scores: Tensor) -> Tensor:
    """For each picture the index (B,) of the level with the lowest of its `scores` (B, levels)."""
    return scores.argmin(1)


def _truncated(nets: PairNetworks, z: Tensor, psi: float) -> Tensor:
    return truncate(nets.source.mapping(z), nets.latent_avg, psi)


def _level(nets: PairNetworks, style: Tensor, w: Tensor, z: Tensor | None = None) -> Level:
    image = nets.source(w)
    perceptual = perceptual_distance(nets.judge, image, nets.judge.embed(shrink(style)))
    identity = torch.zeros_like(perceptual)
    if nets.identity is not None:
        identity = identity_distance(nets.identity, image, style)
    return Level(w, image, perceptual, identity, z)
