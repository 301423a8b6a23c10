"""Adaptive discriminator augmentation (ADA, arXiv 2006.06676): blits, geometry and colours of "bgc".

What is drawn and what is done with it are apart: `draw` makes numbers from a generator, `warp_matrices` and
`colour_matrices` are functions of them, and `warp` and `recolour` differentiate any number of times.
Notation: B batch, H W pixels; matrices act on homogeneous columns, (x, y, 1) with 0 at the middle or (r, g, b, 1).
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_styles.models.stylegan2.ops import make_kernel, upfirdn2d

# The symlet of 6 vanishing moments, which keeps resampling from leaking its trace to the discriminator.
SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
REACH = len(SYM6) // 4  # px that the filter sees on each side

BLIT = ("xflip", "rotate90", "xint")
GEOMETRY = ("scale", "rotate", "aniso", "xfrac")
COLOUR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
BGC = BLIT + GEOMETRY + COLOUR
SHIFT, SCALE, CONTRAST = 0.125, 0.2, 0.5  # widths of the distributions


@dataclass
class Draws:
    """The random numbers of one batch.

    Attributes:
        gate: (B, n) in [0, 1), one per transform of BGC and one for the second rotation: below p, it is applied.
        uniform: (B, n) in [0, 1), as many and one for the second axis of a shift in whole px.
        normal: (B, n), as `uniform`, with the second axis of a shift in parts of px.
    """

    gate: Tensor
    uniform: Tensor
    normal: Tensor


def draw(batch: int, generator: torch.Generator) -> Draws:
    """Fresh numbers, on the device of `generator`; on the CPU, no result has to be waited for later."""
    n, device = len(BGC) + 1, generator.device
    gate = torch.rand(batch, n, generator=generator, device=device)
    uniform = torch.rand(batch, n + 1, generator=generator, device=device)
    return Draws(gate, uniform, torch.randn(batch, n + 1, generator=generator, device=device))


def augment(image: Tensor, draws: Draws, p: float, transforms: tuple[str, ...] = BGC) -> Tensor:
    """`image` (B, 3, H, W) with each of the `transforms` at probability `p`."""
    height, width = image.shape[-2:]
    image = warp(image, warp_matrices(draws, p, height, width, transforms))
    return recolour(image, colour_matrices(draws, p, transforms))


def next_probability(
    p: float, sign: float, images: int, target: float = 0.6, ramp: int = 100_000, most: float = 1.0
) -> float:
    """The probability to go on with.

    Args:
        p: the probability now.
        sign: mean sign of the discriminator's logits of real pictures since the last change; above `target`, it
            overfits.
        images: pictures since then.
        target: see `sign`.
        ramp: pictures in which p can move by 1.
        most: what p stays below.
    """
    return min(max(p + (1 if sign > target else -1 if sign < target else 0) * images / ramp, 0.0), most)


def warp_matrices(draws: Draws, p: float, height: int, width: int, transforms: tuple[str, ...] = BGC) -> Tensor:
    """(B, 3, 3): where each px of the result, from the middle, is found in the picture."""
    u, n = draws.uniform.unbind(1), draws.normal.unbind(1)
    # Two rotations, before and after the stretching, that together are there with probability p.
    halved = 1 - (1 - p) ** 0.5
    first = {name: _column(name) for name in BGC}
    second = len(BGC)
    shift = (torch.round((u[first["xint"]] * 2 - 1) * SHIFT * width), torch.round((u[-1] * 2 - 1) * SHIFT * height))
    fraction = (n[first["xfrac"]] * SHIFT * width, n[-1] * SHIFT * height)
    flip = 1 - 2 * (u[first["xflip"]] * 2).floor()
    size, stretch = (torch.exp2(-n[first[name]] * SCALE) for name in ("scale", "aniso"))
    steps: tuple[tuple[str, int, float, Tensor], ...] = (
        ("xflip", first["xflip"], p, _scaling(flip, torch.ones_like(flip))),
        ("rotate90", first["rotate90"], p, _rotation(pi / 2 * (u[first["rotate90"]] * 4).floor())),
        ("xint", first["xint"], p, _translation(-shift[0], -shift[1])),
        ("scale", first["scale"], p, _scaling(size, size)),
        ("rotate", first["rotate"], halved, _rotation((u[first["rotate"]] * 2 - 1) * pi)),
        ("aniso", first["aniso"], p, _scaling(stretch, 1 / stretch)),
        ("rotate", second, halved, _rotation((u[second] * 2 - 1) * pi)),
        ("xfrac", first["xfrac"], p, _translation(-fraction[0], -fraction[1])),
    )
    eye = torch.eye(3, device=draws.gate.device)
    matrix = eye.expand(len(draws.gate), -1, -1)
    for name, column, chance, step in steps:
        if name in transforms:
            matrix = matrix @ torch.where((draws.gate[:, column] < chance)[:, None, None], step, eye)
    return matrix


def colour_matrices(draws: Draws, p: float, transforms: tuple[str, ...] = BGC) -> Tensor:
    """(B, 4, 4): what happens to the colours."""
    u, n = ({name: x[:, _column(name)] for name in COLOUR} for x in (draws.uniform, draws.normal))
    eye = torch.eye(4, device=draws.gate.device)
    grey = torch.tensor([1.0, 1.0, 1.0, 0.0], device=eye.device) / 3**0.5
    luma = torch.outer(grey, grey)
    offset = torch.zeros_like(eye)
    offset[:3, 3] = 1
    rgb = eye.clone()
    rgb[3, 3] = 0

    def times(x: Tensor, matrix: Tensor) -> Tensor:
        return x[:, None, None] * matrix

    steps = {
        "brightness": eye + times(n["brightness"] * SCALE, offset),
        "contrast": eye + times(torch.exp2(n["contrast"] * CONTRAST) - 1, rgb),
        "lumaflip": eye - times(2 * (u["lumaflip"] * 2).floor(), luma),
        "hue": _hue((u["hue"] * 2 - 1) * pi),
        "saturation": luma + times(torch.exp2(n["saturation"]), eye - luma),
    }
    matrix = eye.expand(len(draws.gate), -1, -1)
    for name, step in steps.items():
        if name in transforms:
            gate = draws.gate[:, _column(name)] < p
            matrix = torch.where(gate[:, None, None], step, eye) @ matrix
    return matrix


def warp(image: Tensor, matrix: Tensor) -> Tensor:
    """`image` (B, C, H, W) resampled by `matrix` (B, 3, 3), mirrored at its borders; at twice the resolution inside."""
    height, width = image.shape[-2:]
    left, top, right, bottom = _margins(matrix, height, width)
    image = F.pad(image, (left, right, top, bottom), mode="reflect")
    image = upfirdn2d(image, make_kernel(SYM6, 4.0).to(image.device), up=2, pad=(2 * REACH, 2 * REACH - 1))
    shape = [len(image), image.shape[1], 2 * (height + 2 * REACH), 2 * (width + 2 * REACH)]
    theta = _to_grid(matrix, image.shape, shape, left - right, top - bottom).to(image.device)
    grid = F.affine_grid(theta, shape, align_corners=False).to(image.dtype)
    image = F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return upfirdn2d(image, make_kernel(SYM6[::-1]).to(image.device), down=2, pad=(-1, -1))


def recolour(image: Tensor, matrix: Tensor) -> Tensor:
    """`image` (B, 3, H, W) with its colours sent through `matrix` (B, 4, 4)."""
    matrix = matrix.to(image)
    return (matrix[:, :3, :3] @ image.flatten(2) + matrix[:, :3, 3:]).view_as(image)


def _column(name: str) -> int:
    return BGC.index(name)


def _margins(matrix: Tensor, height: int, width: int) -> list[int]:
    """Px to add left, above, right and below, so that every corner of every picture finds something."""
    x, y = (width - 1) / 2, (height - 1) / 2
    corners = matrix.new_tensor([[-x, x, x, -x], [-y, -y, y, y], [1, 1, 1, 1]])
    places = (matrix @ corners)[:, :2].transpose(0, 1).flatten(1)
    reach = torch.cat([-places, places]).amax(1)
    needed = (reach + 2 * REACH - reach.new_tensor([x, y, x, y])).ceil().int().tolist()
    return [min(max(n, 0), most) for n, most in zip(needed, [width - 1, height - 1] * 2, strict=True)]


def _to_grid(matrix: Tensor, source: torch.Size, target: list[int], uneven_x: int, uneven_y: int) -> Tensor:
    """`matrix` in the coordinates of `F.affine_grid`, between padded pictures of twice the resolution."""
    dtype, device = matrix.dtype, matrix.device

    def constant(*rows: tuple[float, float, float]) -> Tensor:
        return torch.tensor([*rows, (0.0, 0.0, 1.0)], dtype=dtype, device=device)

    centre = constant((1, 0, uneven_x / 2), (0, 1, uneven_y / 2))
    double, half = constant((2, 0, -0.5), (0, 2, -0.5)), constant((0.5, 0, 0.25), (0, 0.5, 0.25))
    inwards = constant((target[3] / 2, 0, 0), (0, target[2] / 2, 0))
    outwards = constant((2 / source[3], 0, 0), (0, 2 / source[2], 0))
    return (outwards @ double @ centre @ matrix @ half @ inwards)[:, :2]


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _stacked((x, zero, zero), (zero, y, zero), (zero, zero, one))


def _translation(x: Tensor, y: Tensor) -> Tensor:
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    return _stacked((one, zero, x), (zero, one, y), (zero, zero, one))


def _rotation(angle: Tensor) -> Tensor:
    zero, one, cos, sin = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    return _stacked((cos, -sin, zero), (sin, cos, zero), (zero, zero, one))


def _hue(angle: Tensor) -> Tensor:
    """Rotations of RGB around the grey axis, (B, 4, 4)."""
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    keep = (1 + 2 * angle.cos()) / 3
    before = (1 - angle.cos()) / 3 - angle.sin() / 3**0.5
    after = (1 - angle.cos()) / 3 + angle.sin() / 3**0.5
    rows = ((keep, before, after, zero), (after, keep, before, zero), (before, after, keep, zero))
    return _stacked(*rows, (zero, zero, zero, one))


def _stacked(*rows: tuple[Tensor, ...]) -> Tensor:
    """Matrices (B, n, n) of entries (B,)."""
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
