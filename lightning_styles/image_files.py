"""Image files: which formats are read, how large a file may be, and one sentence for whatever is wrong with one.

Memory stays bounded whatever a file claims: about its size on disk, and 28 bytes for each of its pixels.
"""

import io
import stat
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lightning_styles.errors import UserError

# Suffix -> Pillow's name of the format. Content decides, but no other format is tried: some of Pillow's run programs.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".avif": "AVIF",
}
SUFFIXES = tuple(FORMATS)
MOST_BYTES = 1 << 30  # of a file
MOST_BESIDE = 1 << 24  # bytes beside the pixels: EXIF, colour profile, texts, tags
MOST_STRIPS = 100_000  # that a TIFF may be cut into
MOST_RATIO = 32  # of the longer side to the shorter one
ORIENTATION = 0x0112


@contextmanager
def opened(path: str | Path, formats: Collection[str] = tuple(FORMATS.values())) -> Iterator[Image.Image]:
    """Opens an image file, and turns whatever goes wrong in the block into one sentence.

    Args:
        path: a regular file.
        formats: those that are tried, values of `FORMATS`.

    Raises:
        UserError: no such file, none of the formats, broken, or larger than the limits of this module.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the size that it refuses, and of damage that it can do without.
            warnings.simplefilter("ignore")
            _check_file(Path(path))
            with _Metered(path) as file, Image.open(file, formats=sorted(_decoders() & set(formats))) as image:
                if image.format == "TIFF" and len(image.tile) > MOST_STRIPS:
                    raise UserError(f"'{path}' is cut into {len(image.tile)} strips; save it as PNG or JPEG.")
                file.left = None
                yield image
    except (UserError, MemoryError):
        raise
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist; expected an image file.") from None
    except UnidentifiedImageError:
        known = ", ".join(dict.fromkeys(formats))
        raise UserError(
            f"'{path}' is not an image that can be read ({known}); save it as PNG or JPEG, or remove it."
        ) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 1_000_000
        raise UserError(f"'{path}' has more than {limit} million pixels; make it smaller first.") from None
    except Exception as error:  # decoders raise almost anything on damaged bytes
        raise UserError(f"'{path}' cannot be read as an image ({error}); replace or remove it.") from error


class _Metered(io.BufferedReader):
    """A file of which only `left` bytes may be asked for piece by piece, until that is set to None.

    Pillow keeps what it reads while it opens a file. WebP and AVIF are read as a whole, which is asked for at once.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(io.FileIO(path))
        self.path = path
        self.left: int | None = MOST_BESIDE

    def read(self, size: int | None = -1, /) -> bytes:
        if self.left is None or size is None or size < 0:
            return super().read(size)
        content = super().read(min(size, self.left + 1))
        self.left -= len(content)
        if self.left < 0:
            raise UserError(
                f"'{self.path}' holds more than {MOST_BESIDE >> 20} MB beside its pixels (EXIF, colour profile, texts, "
                "layers); save it as PNG or JPEG without them."
            )
        return content


@cache
def _decoders() -> set[str]:
    """Pillow's formats; older ones lack AVIF."""
    Image.init()
    return set(Image.OPEN)


def _check_file(path: Path) -> None:
    """Refuse what is no regular file, which might never end, and files of an absurd size."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"'{path}' is no regular file but a folder, a pipe or a device; expected an image file.")
    if status.st_size > MOST_BYTES:
        raise UserError(
            f"'{path}' has {status.st_size / 1e9:.1f} GB; expected at most {MOST_BYTES / 1e9:.1f} GB: make it smaller."
        )


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(H, W) after the EXIF orientation, whose values 5 to 8 swap the sides."""
    if image.format == "TIFF":
        image.load()  # Pillow turns these files itself, while it loads them, and then forgets the tag
    width, height = image.size
    return (width, height) if image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8) else (height, width)


def target_size(path: str | Path, size: tuple[int, int], short_side: int | None, min_side: int) -> tuple[int, int]:
    """(H, W) of a picture of `size` once its shorter side is `short_side` px; None leaves it.

    Raises:
        UserError: the picture is too small or too narrow, or would become too large.
    """
    (height, width), (short, long) = size, sorted(size)
    if short < min_side:
        raise UserError(f"'{path}' is {width} x {height} px; expected at least {min_side} px a side; leave it out.")
    if long > MOST_RATIO * short:
        raise UserError(
            f"'{path}' is {width} x {height} px; expected at most {MOST_RATIO} times as long as wide; crop it."
        )
    wanted = size if short_side is None else scaled_size(size, short_side)
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
    if wanted[0] * wanted[1] > limit:
        raise UserError(
            f"'{path}' would be {wanted[1]} x {wanted[0]} px at a resolution of {short_side}; expected at most "
            f"{limit // 1_000_000} million pixels: lower the resolution, or crop it."
        )
    return wanted


def scaled_size(size: tuple[int, int], n: int) -> tuple[int, int]:
    """(H, W) scaled so that the shorter side is n; the longer one is rounded to nearest."""
    height, width = size
    if height <= width:
        return n, max(n, round(width * n / height))
    return max(n, round(height * n / width)), n
