"""Every kind of file reads right, and what is written can be read back."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from lightning_styles import imaging
from lightning_styles.errors import UserError


def test_exif_orientation_moves_pixels(tmp_path):
    """Orientation 6: the stored top-left pixel is shown at the top right."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = imaging.read_image(tmp_path / "a.png")
    assert image.shape == (3, 32, 16)
    assert imaging.image_size(tmp_path / "a.png") == (32, 16)
    assert (image > 0).nonzero().tolist() == [[0, 0, 15], [1, 0, 15], [2, 0, 15]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_over_white(tmp_path, mode):
    pixels = np.zeros((16, 16, 4), np.uint8)
    pixels[:, 8:, 3] = 255
    rgba = Image.fromarray(pixels)
    if mode == "P":
        image = Image.fromarray((pixels[..., 3] // 255).astype(np.uint8), mode="P")
        image.putpalette([9, 9, 9, 0, 0, 0])
        image.save(tmp_path / "a.png", transparency=0)
    elif mode == "PA":
        rgba.save(tmp_path / "a.webp", lossless=True)
        (tmp_path / "a.webp").rename(tmp_path / "a.png")  # a wrong suffix does no harm
    else:
        rgba.convert(mode).save(tmp_path / "a.png")
    image = imaging.read_image(tmp_path / "a.png")
    assert torch.equal(image[:, :, :8], torch.ones(3, 16, 8))
    assert torch.equal(image[:, :, 8:], -torch.ones(3, 16, 8))


def test_half_transparent_is_mixed_with_white(tmp_path):
    Image.new("RGBA", (16, 16), (0, 0, 0, 102)).save(tmp_path / "a.png")
    expected = torch.full((3, 16, 16), 153 / 127.5 - 1)
    torch.testing.assert_close(imaging.read_image(tmp_path / "a.png"), expected)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 51, (51, 51, 51)),
        ("1", 1, (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
    ],
)
def test_other_modes(tmp_path, mode, colour, expected):
    Image.new(mode, (16, 17), colour).save(tmp_path / "a.tif")
    image = imaging.read_image(tmp_path / "a.tif")
    assert image.shape == (3, 17, 16)
    assert imaging.to_uint8(image)[3, 4].tolist() == list(expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray16_uses_the_full_range(tmp_path, suffix):
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    image = imaging.read_image(tmp_path / f"a.{suffix}")
    expected = torch.from_numpy(values.astype(np.float32)) / 65535 * 2 - 1
    torch.testing.assert_close(image, expected.expand(3, -1, -1), atol=1e-6, rtol=0)


def test_float_file_is_refused(tmp_path):
    Image.fromarray(np.ones((16, 16), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif.*floating-point"):
        imaging.read_image(tmp_path / "a.tif")


def test_animation_gives_first_frame(tmp_path):
    frames = [Image.new("RGB", (16, 16), c) for c in ((255, 0, 0), (0, 255, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert imaging.to_uint8(imaging.read_image(tmp_path / "a.gif"))[0, 0].tolist() == [255, 0, 0]


def test_broken_files_are_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.jpg", "text.png", "empty.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            imaging.read_image(tmp_path / name)


def test_too_small_and_too_large(tmp_path, monkeypatch):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    with pytest.raises(UserError, match=r"dot\.png' is 1 x 1 px; expected at least 16 px a side"):
        imaging.read_image(tmp_path / "dot.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    with pytest.raises(UserError, match=r"big\.png' has more than"):
        imaging.read_image(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # between one and two times the limit
    assert imaging.read_image(tmp_path / "big.png").shape == (3, 40, 40)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_reading_small_equals_reading_and_resizing(tmp_path, suffix):
    y, x = np.mgrid[0:600, 0:900] / 900
    pixels = np.stack([x, y, (x + y) / 2], -1)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(tmp_path / f"a.{suffix}", quality=95)
    small = imaging.read_image(tmp_path / f"a.{suffix}", short_side=32)
    reference = imaging.resize_short_side(imaging.read_image(tmp_path / f"a.{suffix}"), 32)
    assert small.shape == reference.shape == (3, 32, 48)
    assert imaging.image_size(tmp_path / f"a.{suffix}", short_side=32) == (32, 48)
    assert (small - reference).abs().max() < 0.03


def test_colour_profile_is_applied(tmp_path):
    """Another profile changes values (here: a copy with red and blue swapped); sRGB and damage do not."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmp0").replace(b"bXYZ", b"rXYZ").replace(b"tmp0", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "test".encode("utf-16-be"))
    picture = Image.new("RGB", (16, 16), (200, 100, 50))
    picture.save(tmp_path / "swapped.png", icc_profile=swapped)
    red, green, blue = imaging.to_uint8(imaging.read_image(tmp_path / "swapped.png"))[0, 0].tolist()
    assert abs(red - 50) <= 2
    assert abs(green - 100) <= 2
    assert abs(blue - 200) <= 2
    for name, profile in (("s", srgb), ("broken", b"nothing")):
        picture.save(tmp_path / f"{name}.png", icc_profile=profile)
        assert imaging.to_uint8(imaging.read_image(tmp_path / f"{name}.png"))[0, 0].tolist() == [200, 100, 50]


def test_resize_keeps_ratio_constant_and_range():
    image = torch.full((3, 20, 50), 0.25)
    out = imaging.resize_short_side(image, 31)
    assert out.shape == (3, 31, 78)
    torch.testing.assert_close(out, torch.full_like(out, 0.25))
    edge = torch.ones(2, 3, 32, 32)
    edge[..., :16] = -1
    assert imaging.resize_short_side(edge, 64).abs().max() <= 1


@pytest.mark.parametrize(("height", "width", "m"), [(33, 64, 32), (20, 50, 64), (64, 64, 64)])
def test_pad_and_crop_back(height, width, m):
    images = torch.rand(2, 3, height, width)
    padded, (h, w) = imaging.pad_to_multiple(images, m)
    assert padded.shape[-2] % m == padded.shape[-1] % m == 0
    assert padded.shape[-2] - height < m
    assert padded.shape[-1] - width < m
    assert torch.equal(padded[..., :h, :w], images)


def test_to_uint8_rounds_and_refuses_nan():
    levels = torch.arange(256) / 127.5 - 1
    image = levels.reshape(1, 16, 16).expand(3, -1, -1)
    assert imaging.to_uint8(image)[..., 0].ravel().tolist() == list(range(256))
    assert imaging.to_uint8(torch.full((3, 1, 1), 0.006)).ravel().tolist() == [128] * 3
    assert imaging.to_uint8(torch.full((3, 1, 1), 7.0)).ravel().tolist() == [255] * 3
    with pytest.raises(ValueError, match="NaN"):
        imaging.to_uint8(torch.full((3, 1, 1), float("nan")))


def test_png_round_trip_with_settings(tmp_path):
    image = torch.randint(0, 256, (3, 20, 30)) / 127.5 - 1
    settings = {"prompt": "caf\u00e9", "lr": 0.1, "size": [1, 2]}
    imaging.save_png(tmp_path / "new" / "a.png", image, settings)
    torch.testing.assert_close(imaging.read_image(tmp_path / "new" / "a.png"), image.float())
    assert imaging.read_settings(tmp_path / "new" / "a.png") == settings
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
    whole = (tmp_path / "new" / "a.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[:-200])
    assert imaging.read_settings(tmp_path / "half.png") is None


def test_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "a.txt").write_text("old")

    def fail():
        with imaging.replacing(tmp_path / "a.txt") as temporary:
            temporary.write_text("new")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        fail()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_find_images(tmp_path):
    for name in ("b.PNG", "a.jpg", "._a.jpg", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "sub.png").mkdir()
    assert [p.name for p in imaging.find_images(tmp_path)] == ["a.jpg", "b.PNG"]
    assert imaging.find_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(UserError, match="holds no picture"):
        imaging.find_images(tmp_path / "sub.png")
    with pytest.raises(UserError, match="does not exist"):
        imaging.find_images(tmp_path / "nowhere")


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_orientation_and_small_decoding_together(tmp_path, suffix, orientation):
    """A bright upper-left quarter lands where the orientation says, in files read small."""
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[:128, :256] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif)
    image = imaging.read_image(tmp_path / f"a.{suffix}", short_side=16)
    expected = {3: (16, 32, "lower right"), 6: (32, 16, "upper right"), 8: (32, 16, "lower left")}[orientation]
    height, width, corner = expected
    assert image.shape == (3, height, width)
    quarters = {
        "upper left": image[:, 2, 2], "upper right": image[:, 2, -3],
        "lower left": image[:, -3, 2], "lower right": image[:, -3, -3],
    }  # fmt: skip
    assert [name for name, pixel in quarters.items() if pixel.mean() > 0.9] == [corner]


def test_a_picture_of_a_hundred_megapixels_is_read_small(tmp_path):
    Image.new("L", (12_500, 8_000), 255).save(tmp_path / "huge.jpg")
    image = imaging.read_image(tmp_path / "huge.jpg", short_side=64)
    assert image.shape == (3, 64, 100)
    torch.testing.assert_close(image, torch.ones(3, 64, 100), rtol=0, atol=1e-5)
