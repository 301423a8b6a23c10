"""Which image files are opened, and how large they may be: one sentence for everything else, and bounded memory."""

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lightning_styles import image_files
from lightning_styles.errors import UserError
from lightning_styles.imaging import METADATA_KEY, find_images, image_size, is_foreign, read_image, read_settings
from tests.trust.bad_files import png_chunk, png_header

ROOT = Path(__file__).resolve().parent.parent
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n{} loop\n%%EOF\n"


@pytest.mark.parametrize("suffix", [suffix for suffix in image_files.FORMATS if suffix != ".avif"])
def test_documented_formats_are_read_by_content(tmp_path: Path, suffix: str) -> None:
    Image.new("RGB", (20, 16), (255, 0, 0)).save(tmp_path / f"a{suffix}")
    (tmp_path / f"a{suffix}").rename(tmp_path / "b.png")
    assert image_size(tmp_path / "b.png") == (16, 20)
    assert read_image(tmp_path / "b.png").shape == (3, 16, 20)


@pytest.mark.parametrize("name", ["PPM", "ICO", "TGA", "SGI", "PCX", "JPEG2000", "DDS", "PDF"])
def test_other_formats_of_pillow_are_not(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png", format=name)
    with pytest.raises(UserError, match="a.png' is not an image that can be read .PNG, JPEG, WEBP, BMP, TIFF, GIF, AV"):
        read_image(tmp_path / "a.png")


def test_postscript_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: object, **words: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", run)
    monkeypatch.setattr(subprocess, "Popen", run)
    for name in ("a.png", "a.jpg"):
        (tmp_path / name).write_bytes(EPS)
        for look in (read_image, image_size):
            with pytest.raises(UserError, match="is not an image that can be read"):
                look(tmp_path / name)


def test_no_other_module_opens_images() -> None:
    """One opener has the list of formats; the pattern is put together so that this file does not match."""
    opening = "Image" + ".open("
    found = [path for part in ("lightning_styles", "datamodules", "callbacks") for path in (ROOT / part).rglob("*.py")]
    assert [path.name for path in found if opening in path.read_text(encoding="utf-8")] == ["image_files.py"]


def test_pipes_devices_and_folders_are_no_pictures(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "folder.png", "device.png"):
        with pytest.raises(UserError, match=rf"{name}' is no regular file but a folder, a pipe or a device"):
            read_image(tmp_path / name)
    for name in ("pipe.png", "device.png"):
        with pytest.raises(UserError, match="is no regular file"):
            find_images(tmp_path / name)


@pytest.mark.parametrize(("width", "height"), [(16, 4000), (60_000, 16)])
def test_extreme_shapes_are_refused(tmp_path: Path, width: int, height: int) -> None:
    Image.new("L", (width, height)).save(tmp_path / "a.png")
    for look in (image_size, read_image):
        with pytest.raises(UserError, match=rf"is {width} x {height} px; expected at most 32 times as long as wide"):
            look(tmp_path / "a.png", 64)
    Image.new("L", (64, 2048)).save(tmp_path / "long.png")
    assert image_size(tmp_path / "long.png", 32) == (1024, 32)


def test_a_resolution_that_makes_a_picture_too_large_is_refused(tmp_path: Path) -> None:
    Image.new("L", (64, 2048)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="would be 8192 x 262144 px at a resolution of 8192; expected at most 178 mill"):
        read_image(tmp_path / "a.png", 8192)


def test_files_of_an_absurd_size_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_header(32, 32))
    os.truncate(tmp_path / "a.png", 5_000_000_000)  # takes no room on the disk
    with pytest.raises(UserError, match=r"has 5.0 GB; expected at most 1.1 GB"):
        read_image(tmp_path / "a.png")


def tiff(entries: list[tuple[int, int, int, int]], data: bytes) -> bytes:
    """A TIFF with `data` from byte 8 on and one directory of (tag, type, count, value)."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(entries)) + packed + bytes(4)


def jpeg(path: Path, kind: int, start: bytes, count: int) -> None:
    """A JPEG with `count` segments of 60 kB before its pixels."""
    Image.new("RGB", (32, 32)).save(path, "JPEG")
    content, segment = path.read_bytes(), start + bytes(60_000)
    segments = (bytes((0xFF, kind)) + struct.pack(">H", len(segment) + 2) + segment) * count
    path.write_bytes(content[:2] + segments + content[2:])


def test_what_lies_beside_the_pixels_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for make in (
        lambda: jpeg(path, 0xE1, b"Exif\0\0", 300),
        lambda: jpeg(path, 0xE2, b"ICC_PROFILE\0\1\1", 300),
        lambda: path.write_bytes(png_header(32, 32) + png_chunk(b"eXIf", bytes(17_000_000))),
        lambda: path.write_bytes(png_header(32, 32) + png_chunk(b"abCd", bytes(17_000_000))),
        lambda: Image.new("RGB", (32, 32)).save(path, "TIFF", icc_profile=bytes(17_000_000)),
    ):
        make()
        with pytest.raises(UserError, match="holds more than 16 MB beside its pixels .EXIF, colour profile, texts"):
            read_image(path)
    jpeg(path, 0xE2, b"ICC_PROFILE\0\1\1", 10)
    assert read_image(path).shape == (3, 32, 32)


def test_a_tiff_of_countless_strips_is_refused(tmp_path: Path) -> None:
    count = 200_000
    places = struct.pack("<I", 8) * count
    size = [(256, 3, 1, 64), (257, 4, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    strips = [(273, 4, count, 4104), (278, 3, 1, 1), (279, 4, count, 4104)]
    (tmp_path / "a.tif").write_bytes(tiff(size + strips, bytes(4096) + places))
    with pytest.raises(UserError, match="is cut into 200000 strips; save it as PNG or JPEG"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "9" * 5000, "[1]", "", "nothing"])
def test_settings_of_any_text_are_none_or_some(tmp_path: Path, text: str) -> None:
    info = PngInfo()
    info.add_text(METADATA_KEY, text)
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png", pnginfo=info)
    assert read_settings(tmp_path / "a.png") is None


def test_settings_of_other_files_are_none(tmp_path: Path) -> None:
    bomb = png_chunk(b"zTXt", METADATA_KEY.encode() + b"\0\0" + zlib.compress(json.dumps(["x" * (1 << 25)]).encode()))
    (tmp_path / "bomb.png").write_bytes(png_header(32, 32) + bomb + png_chunk(b"IDAT", zlib.compress(bytes(3104))))
    (tmp_path / "eps.png").write_bytes(EPS)
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("bomb.png", "eps.png", "pipe.png", "missing.png"):
        assert read_settings(tmp_path / name) is None
        assert is_foreign(tmp_path / name) == (name != "missing.png")


@pytest.mark.slow
def test_memory_of_reading_is_what_is_stated(tmp_path: Path) -> None:
    """In a process of its own: at most 28 bytes for each of 20 million pixels."""
    Image.new("RGBA", (5000, 4000)).save(tmp_path / "a.png")
    code = (
        "import resource; from lightning_styles.imaging import read_image\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak(); read_image('a.png'); print((peak() - before) / 20e6)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", code]
    run = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 28
