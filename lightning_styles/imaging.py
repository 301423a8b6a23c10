"""Pictures in and out: files become float tensors in [-1, 1] here, and nowhere else.

Legend: B batch, H W pixels. A picture is (3, H, W), sRGB, float32 in [-1, 1].
"""

import errno
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.files import replacing
from lightning_styles.image_files import SUFFIXES, opened, scaled_size, target_size, upright_size

METADATA_KEY = "lightning_styles"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
BAD_NAME = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


class NameRefused(UserError):
    """The file system does not take a name; others may be taken."""


def find_images(path: str | Path) -> list[Path]:
    """Lists the pictures at a path: the file itself, or a folder's files with a known suffix, sorted.

    Sub-folders and hidden files are not looked into.

    Raises:
        UserError: the path does not exist, or the folder holds no picture.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if path.exists() and not path.is_dir():
        raise UserError(f"'{path}' is no regular file but a pipe or a device; expected an image file.")
    if not path.is_dir():
        raise UserError(f"'{path}' does not exist; expected an image file or a folder of images.")
    found = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    files = sorted(p for p in found if p.is_file())
    if not files:
        raise UserError(f"'{path}' holds no picture; expected files ending in {', '.join(SUFFIXES)}.")
    return files


def read_image(path: str | Path, short_side: int | None = None, min_side: int = 16) -> Tensor:
    """Reads one picture upright, without transparency (laid over white), first frame if it is animated.

    Colours are brought to sRGB where the file carries another profile.

    Args:
        path: image file in a format of `image_files`, 8 or 16 bit.
        short_side: resize so that the shorter side has this many px; large files are then decoded small.
        min_side: smallest shorter side in px that the file itself may have.

    Returns:
        (3, H, W) float32 in [-1, 1].

    Raises:
        UserError: no such file, not an image, broken, too large, too small or too narrow.
    """
    with opened(path) as image:
        size = target_size(path, upright_size(image), short_side, min_side)
        if short_side is not None:
            image.draft(image.mode, (2 * short_side, 2 * short_side))
        ImageOps.exif_transpose(image, in_place=True)  # otherwise an upright picture would be copied
        pixels = _to_tensor(path, image, short_side)
    return _resize(pixels, size)


def image_size(path: str | Path, short_side: int | None = None, min_side: int = 16) -> tuple[int, int]:
    """(H, W) of what `read_image` with the same arguments returns; most files are not decoded for it.

    Raises:
        UserError: as `read_image`, except that damage behind the header may go unnoticed.
    """
    with opened(path) as image:
        return target_size(path, upright_size(image), short_side, min_side)


def resize_short_side(image: Tensor, n: int) -> Tensor:
    """Resizes (..., 3, H, W) so that its shorter side has n px and its aspect ratio stays.

    Antialiased bicubic; the overshoot of the cubic is clamped to [-1, 1].
    """
    return _resize(image, scaled_size((image.shape[-2], image.shape[-1]), n))


def pad_to_multiple(images: Tensor, m: int) -> tuple[Tensor, tuple[int, int]]:
    """Grows (B, 3, H, W) at the right and bottom to multiples of m px by mirroring the border.

    Returns:
        The padded images and (H, W), so that `padded[..., :H, :W]` gives the originals back.
    """
    height, width = images.shape[-2:]
    down, right = -height % m, -width % m
    if not (down or right):
        return images, (height, width)
    # A mirror cannot be wider than what it mirrors.
    mode = "reflect" if down < height and right < width else "replicate"
    return F.pad(images, (0, right, 0, down), mode=mode), (height, width)


def to_uint8(image: Tensor) -> np.ndarray:
    """(3, H, W) in [-1, 1] to (H, W, 3) uint8 in [0, 255], rounded to nearest, clamped.

    Raises:
        ValueError: the image holds NaN or infinite values.
    """
    image = image.detach().float().cpu()
    if not torch.isfinite(image).all():
        raise ValueError("the image holds NaN or infinite values")
    scaled = (image.clamp(-1, 1) + 1) * 127.5
    return scaled.round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def from_uint8(pixels: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (3, H, W) float32 in [-1, 1], the inverse of `to_uint8`."""
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous().float().div_(127.5).sub_(1)


def save_png(path: str | Path, image: Tensor, settings: dict[str, Any] | None = None, overwrite: bool = False) -> None:
    """Writes (3, H, W) in [-1, 1] as an 8-bit PNG: the whole file appears, or nothing does.

    Args:
        path: target; missing folders are made.
        image: picture; values outside [-1, 1] are clamped.
        settings: kept in the file as JSON, in a text chunk that `read_settings` reads.
        overwrite: replace a file that this function has not written, too.

    Raises:
        NameRefused: the file system does not take this name.
        UserError: there is such a file, or nothing can be written there.
    """
    if not overwrite and is_foreign(path):
        raise UserError(
            f"'{path}' is there already and was not written by lightning_styles; move it, or write elsewhere."
        )
    info = PngInfo()
    info.add_text(METADATA_KEY, json.dumps(settings or {}, sort_keys=True, default=str))
    picture = Image.fromarray(to_uint8(image))
    try:
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG", pnginfo=info)
    except OSError as error:
        reason = f"'{path}' cannot be written: {error.strerror or error}"
        if error.errno in BAD_NAME:
            raise NameRefused(f"{reason}; rename the picture, or write to another disk.") from error
        advice = "make room, then go on" if error.errno in FULL else "check the folder and its rights"
        raise UserError(f"{reason}; {advice}.") from error


def read_settings(path: str | Path) -> dict[str, Any] | None:
    """The settings inside a PNG of `save_png`; None when there are none or the file is not whole."""
    try:
        with opened(path, ("PNG",)) as image:
            text = image.info.get(METADATA_KEY)
            image.load()
        settings = json.loads(text) if isinstance(text, str) else None
    except (UserError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) else None


def is_foreign(path: str | Path) -> bool:
    """Whether there is something that `save_png` has not written; what it wrote may be cut since."""
    if not os.path.isfile(path):
        return os.path.lexists(path)
    with open(path, "rb") as file:
        start = file.read(100)
    return not (start.startswith(b"\x89PNG") and f"tEXt{METADATA_KEY}\0".encode() in start)


def _resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    flat = image.reshape(-1, *image.shape[-3:]).float()
    out = F.interpolate(flat, size=size, mode="bicubic", antialias=True, align_corners=False).clamp_(-1, 1)
    return out.reshape(*image.shape[:-2], *size)


def _to_tensor(path: str | Path, image: Image.Image, short_side: int | None) -> Tensor:
    """Any Pillow mode to (3, H, W) in [-1, 1], at least twice `short_side` if it was larger."""
    if image.mode.startswith("I"):
        return _gray16_to_tensor(path, image)
    if image.mode == "F":
        raise UserError(f"'{path}' holds floating-point values; save it with 8 or 16 bits per channel.")
    image = _to_rgb(image)
    # Exact box averages in 8 bit, so that a very large picture never exists in float.
    factor = min(image.size) // (2 * short_side) if short_side else 1
    return from_uint8(np.asarray(image.reduce(factor) if factor > 1 else image))


def _gray16_to_tensor(path: str | Path, image: Image.Image) -> Tensor:
    """16-bit gray: the full range 0 to 65535 maps to [-1, 1], which Pillow's own conversion clips."""
    values = torch.from_numpy(np.asarray(image).astype(np.int32))
    if values.min() < 0 or values.max() > 65535:
        raise UserError(f"'{path}' holds 32-bit integers; save it with 8 or 16 bits per channel.")
    return (values.float() / 32767.5 - 1).expand(3, -1, -1).contiguous()


def _to_rgb(image: Image.Image) -> Image.Image:
    """Colour profile applied, transparency laid over white."""
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        image.info = dict(rgba.info)
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "CMYK"):
        image = _to_srgb(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Applies an embedded colour profile; a profile that is broken or does not fit is ignored."""
    if image.mode == "RGBA":
        image = image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(source):
            return image
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    return converted or image
