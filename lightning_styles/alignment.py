"""Faces cut out of photos as in FFHQ (arXiv 1812.04948, appendix C), and stylized squares put back where they were.

Landmarks are the 68 points of dlib's order, (68, 2); a quad, (4, 2), is the corners of a square in the photo: top left,
bottom left, bottom right, top right as the face stands. Both are (x, y) in px, whole numbers in the middle of pixels.
"""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.files import file_name, read_text
from lightning_styles.imaging import from_uint8, save_png, to_uint8
from lightning_styles.square import to_square

POINTS = 68
FARTHEST = 100_000  # px, of a landmark
MOST_BYTES = 1_000_000  # of a file of landmarks, or of what lies in its place
LEFT_EYE, RIGHT_EYE, MOUTH = slice(36, 42), slice(42, 48), (48, 54)
SAME = 0.05  # of the picture's side, that the corners of an aligned face may be off
EYES, LIPS = ((0.375, 0.47), (0.625, 0.47)), ((0.4, 0.75), (0.6, 0.75))  # of an aligned face, in units of its side
log = logging.getLogger(__name__)


class Face(NamedTuple):
    """A face for the networks.

    Attributes:
        square: (3, S, S) in [-1, 1].
        quad: where it is in the photo; None: the photo was aligned already, or was taken as it is.
    """

    square: Tensor
    quad: np.ndarray | None


# ---- landmarks


def landmarks_beside(picture: Path) -> np.ndarray | None:
    """The landmarks in the `.json` or `.txt` file beside a picture; None if there are none.

    JSON is a list of 68 pairs, or holds one as "landmarks"; text is 136 numbers, and other text is a caption.

    Raises:
        UserError: there are landmarks, but not 68 points in px.
    """
    for suffix, read in ((".json", _from_json), (".txt", _from_text)):
        file = picture.with_suffix(suffix)
        if not os.path.isfile(file):
            continue
        text = read_text(file, MOST_BYTES, "the file beside a picture,")
        try:
            found = read(text)
            points = None if found is None else np.asarray(found, dtype=float).reshape(-1, 2)
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise UserError(f"{file} cannot be read as landmarks ({error}); expected {POINTS} pairs x y.") from error
        if points is None:
            continue
        if len(points) != POINTS:
            raise UserError(f"{file} holds {len(points)} points; expected the {POINTS} landmarks of dlib, in px.")
        if not (np.abs(points) <= FARTHEST).all():
            raise UserError(f"{file} holds NaN or numbers above {FARTHEST}; expected {POINTS} landmarks in px.")
        return points
    return None


def rescaled(points: np.ndarray, factor: float) -> np.ndarray:
    """`points` (..., 2) of a picture in another of `factor` times its size."""
    return (points + 0.5) * factor - 0.5


def face_quad(landmarks: np.ndarray) -> np.ndarray:
    """The square around a face, upright as its eyes and mouth are.

    Raises:
        UserError: they are none of a face: eyes and mouth coincide, or are mirrored as where x and y are swapped.
    """
    left, right = landmarks[LEFT_EYE].mean(0), landmarks[RIGHT_EYE].mean(0)
    eyes, across = (left + right) / 2, right - left
    down = landmarks[list(MOUTH)].mean(0) - eyes
    if np.hypot(*across) + np.hypot(*down) < 1:
        raise UserError("the landmarks have eyes and mouth in one place; expected the 68 points of dlib, in px.")
    if across[0] * down[1] <= across[1] * down[0]:
        raise UserError(
            "the landmarks are those of no face, or of a mirrored one; expected (x, y) of the 68 points of dlib, in px."
        )
    x = across - _turned(down)
    x *= max(2.0 * np.hypot(*across), 1.8 * np.hypot(*down)) / np.hypot(*x)
    y, centre = _turned(x), eyes + 0.1 * down
    return np.stack([centre - x - y, centre - x + y, centre + x + y, centre + x - y])


# ---- out of the photo and back


def align(photo: Tensor, quad: np.ndarray, size: int) -> Tensor:
    """The square (3, size, size) of `photo` (3, H, W) in [-1, 1] at `quad`; what lies outside is mirrored."""
    image, corners = Image.fromarray(to_uint8(photo)), quad + 0.5
    side = float(np.hypot(*(corners[3] - corners[0])))
    factor = int(side / size / 2)
    if factor > 1:
        shrunk = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
        corners = corners * np.array(shrunk) / image.size
        image, side = image.resize(shrunk, Image.Resampling.LANCZOS), side / factor
    border = max(round(0.1 * side), 3)
    low, high = np.floor(corners.min(0)).astype(int) - border, np.ceil(corners.max(0)).astype(int) + border
    box = (*np.clip(low, 0, image.size), *np.clip(high, 0, image.size))
    if box[2] <= box[0] or box[3] <= box[1]:
        raise UserError("the landmarks lie outside of the picture; expected px of the picture itself.")
    image, corners, low, high = image.crop(box), corners - box[:2], low - box[:2], high - box[:2]
    beyond = [*np.maximum(-low, 0), *np.maximum(high - image.size, 0)]  # left, top, right, bottom
    if max(beyond) > border - 4:
        pad = np.maximum(beyond, round(0.3 * side))
        image, corners = Image.fromarray(_surrounded(np.asarray(image), pad, side)), corners + pad[:2]
    finer = max(1, round(side / size))  # more pixels than asked for, to be averaged
    square = image.transform(
        (size * finer, size * finer), Image.Transform.QUAD, corners.flatten().tolist(), Image.Resampling.BILINEAR
    )
    return from_uint8(np.asarray(square.reduce(finer) if finer > 1 else square))


def paste_back(photo: Tensor, square: Tensor, quad: np.ndarray, feather: float = 0.1) -> Tensor:
    """`photo` (3, H, W) with `square` (3, S, S) at `quad`, both in [-1, 1], fading out towards the border.

    Args:
        photo: what the square was cut from, perhaps at another size.
        square: the face.
        quad: where it belongs.
        feather: part of the square's side over which it fades; 0 cuts sharply.
    """
    corners = quad + 0.5
    side = max(1, round(float(np.hypot(*(corners[3] - corners[0])))))
    if side < square.shape[-1]:
        square = to_square(square[None].float(), side, "squash")[0]
    low = np.clip(np.floor(corners.min(0)).astype(int), 0, photo.shape[:0:-1])
    high = np.clip(np.ceil(corners.max(0)).astype(int), 0, photo.shape[:0:-1])
    width, height = (high - low).tolist()
    if width <= 0 or height <= 0:
        return photo
    # u and v, from 0 to 1 along the upper and the left side, of the pixel at (x, y): [u v] = M [x y] + shift.
    inverse = np.linalg.inv(np.stack([corners[3] - corners[0], corners[1] - corners[0]], 1))
    shift = inverse @ (low - corners[0])
    rows = np.concatenate([inverse, shift[:, None]], 1) * square.shape[-1]
    face = Image.fromarray(to_uint8(square)).transform(
        (width, height), Image.Transform.AFFINE, rows.flatten().tolist(), Image.Resampling.BILINEAR
    )
    y, x = np.mgrid[0:height, 0:width] + 0.5
    u, v = (inverse[i, 0] * x + inverse[i, 1] * y + shift[i] for i in (0, 1))
    inside = np.minimum.reduce([u, 1 - u, v, 1 - v])
    ramp = np.clip(inside / feather, 0, 1) if feather > 0 else (inside >= 0).astype(float)
    mask = torch.from_numpy(ramp**2 * (3 - 2 * ramp)).to(photo)
    result = photo.clone()
    part = result[:, low[1] : high[1], low[0] : high[0]]
    part.copy_(torch.lerp(part, from_uint8(np.asarray(face)).to(photo), mask.expand_as(part)))
    return result


# ---- what to do with a photo


def covers(quad: np.ndarray, height: int, width: int) -> bool:
    """Whether `quad` is a picture of height x width px as a whole: the face is aligned already."""
    whole = np.array([(0, 0), (0, height), (width, height), (width, 0)]) - 0.5
    return height == width and bool(np.abs(quad - whole).max() <= SAME * width)


def find_face(photo: Tensor, landmarks: np.ndarray | None, size: int, name: str, folder: Path) -> Face:
    """The face of `photo` (3, H, W) in [-1, 1] as a square of `size` px.

    Photos that are aligned pass through, and so do squares without landmarks, which are taken for that. Others without
    landmarks are cropped in the middle, with a warning that names a picture of what was cropped.

    Args:
        photo: the photo.
        landmarks: of its face, in its px.
        size: of the square.
        name: of the photo.
        folder: for the picture that warns.

    Raises:
        UserError: the landmarks are those of no face, or lie outside of the photo.
    """
    height, width = photo.shape[-2:]
    if landmarks is not None:
        try:
            quad = face_quad(landmarks)
            if not covers(quad, height, width):
                return Face(align(photo, quad, size).to(photo), quad)
        except UserError as error:
            raise UserError(f"'{name}' cannot be aligned: {error}") from error
    elif height != width:
        shown = folder / file_name(name, "_unaligned.png")
        save_png(shown, overlay(photo, _middle(height, width)))
        log.warning(
            "'%s' is not aligned and has no landmarks beside it, so its middle is taken; %s shows that, and where eyes "
            "and mouth should be. Put 68 landmarks into a .json file of the same name, or crop it as in FFHQ.",
            name,
            shown,
        )
    return Face(to_square(photo[None], size, "crop")[0], None)


def overlay(photo: Tensor, quad: np.ndarray, landmarks: np.ndarray | None = None) -> Tensor:
    """`photo` (3, H, W) with the outline of `quad`, where an aligned face has its eyes and mouth, and its landmarks."""
    image = Image.fromarray(to_uint8(photo))
    drawing, thick = ImageDraw.Draw(image), max(1, min(image.size) // 150)
    corners, (right, down) = quad + 0.5, (quad[3] - quad[0], quad[1] - quad[0])

    def place(u: float, v: float) -> tuple[float, float]:
        x, y = corners[0] + u * right + v * down
        return float(x), float(y)

    drawing.line([place(u, v) for u, v in ((0, 0), (0, 1), (1, 1), (1, 0), (0, 0))], "red", 2 * thick)
    radius = 0.05 * float(np.hypot(*right))
    for u, v in EYES:
        drawing.circle(place(u, v), radius, outline="red", width=thick)
    drawing.line([place(u, v) for u, v in LIPS], "red", thick)
    for x, y in landmarks if landmarks is not None else ():
        drawing.circle((float(x) + 0.5, float(y) + 0.5), 2 * thick, fill="yellow")
    return from_uint8(np.asarray(image))


# ---- helpers


def _middle(height: int, width: int) -> np.ndarray:
    """The largest square in the middle of a picture."""
    side = min(height, width)
    corners = np.array([(0, 0), (0, side), (side, side), (side, 0)])
    return corners + (np.array([width, height]) - side) / 2 - 0.5


def _turned(vector: np.ndarray) -> np.ndarray:
    """By a quarter, from x to y."""
    return np.array([-vector[1], vector[0]])


def _surrounded(pixels: np.ndarray, pad: np.ndarray, side: float) -> np.ndarray:
    """`pixels` (H, W, 3) mirrored by `pad` px (left, top, right, bottom), plainer towards the border."""
    from scipy.ndimage import gaussian_filter

    left, top, right, bottom = pad.tolist()
    wide = np.pad(pixels.astype(np.float32), ((top, bottom), (left, right), (0, 0)), "reflect")
    y, x = np.mgrid[0 : wide.shape[0], 0 : wide.shape[1]]
    near = [
        np.minimum(x / left, (wide.shape[1] - 1 - x) / right),
        np.minimum(y / top, (wide.shape[0] - 1 - y) / bottom),
    ]
    out = (1 - np.minimum(*near))[..., None]  # 1 at the new border, 0 at the old one, below 0 inside
    blurred = gaussian_filter(wide, (0.02 * side, 0.02 * side, 0))
    wide += (blurred - wide) * np.clip(3 * out + 1, 0, 1)
    wide += (np.median(wide, (0, 1)) - wide) * np.clip(out, 0, 1)
    return np.clip(np.rint(wide), 0, 255).astype(np.uint8)


def _from_json(text: str) -> Any:
    found = json.loads(text)
    return found.get("landmarks") if isinstance(found, dict) else found


def _from_text(text: str) -> list[float] | None:
    words = re.split(r"[\s,;]+", text.strip())
    try:
        return [float(word) for word in words] if words != [""] else None
    except ValueError:
        return None
