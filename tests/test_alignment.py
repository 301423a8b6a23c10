"""Alignment by painted landmarks: known positions are undone, pasted faces land where they came from."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_styles.alignment import (
    align,
    covers,
    face_quad,
    find_face,
    landmarks_beside,
    overlay,
    paste_back,
    rescaled,
)
from lightning_styles.errors import UserError
from lightning_styles.imaging import read_image

SIDE = 128


def face(side: int = SIDE) -> np.ndarray:
    """Landmarks of an aligned face: its quad is the whole square."""
    points = np.tile([0.5, 0.9], (68, 1))
    points[36:42], points[42:48] = (0.375, 0.475), (0.625, 0.475)
    points[36, 0], points[39, 0] = 0.345, 0.405
    points[48], points[54] = (0.42, 0.725), (0.58, 0.725)
    return points * side - 0.5


def painted(x: np.ndarray, y: np.ndarray, side: int = SIDE) -> Tensor:
    """Smooth colours (3, H, W) with one dark dot on each eye and mouth corner, at places of the aligned square."""
    colours = [np.sin(3 * x / side), np.cos(4 * y / side), np.sin(2 * (x + y) / side)]
    dots = sum(
        np.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * (0.03 * side) ** 2))
        for px, py in (face(side)[36:42].mean(0), face(side)[42:48].mean(0), *face(side)[[48, 54]])
    )
    return torch.from_numpy(np.stack([0.5 * c - np.clip(dots, 0, 1) for c in colours])).float().clamp(-1, 1)


def photograph(
    degrees: float, scale: float, shift: tuple[float, float], height: int = 260, width: int = 300
) -> tuple[Tensor, np.ndarray]:
    """A photo in which the face is turned, scaled and shifted, and its landmarks."""
    angle = np.radians(degrees)
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    landmarks = face() @ matrix.T + shift
    y, x = np.mgrid[0:height, 0:width].astype(float)
    there = np.einsum("ij,jhw->ihw", np.linalg.inv(matrix), np.stack([x - shift[0], y - shift[1]]))
    return painted(*there), landmarks


def dots(image: Tensor) -> np.ndarray:
    """Centroids of the dark dots, left eye, right eye and both mouth corners, near where they should be."""
    side = image.shape[-1]
    y, x = np.mgrid[0:side, 0:side]
    plain = torch.from_numpy(np.stack([np.sin(3 * x / side), np.cos(4 * y / side), np.sin(2 * (x + y) / side)]))
    dark = (0.5 * plain - image.double()).clamp(0).mean(0).numpy()
    found = []
    for px, py in (face(side)[36:42].mean(0), face(side)[42:48].mean(0), *face(side)[[48, 54]]):
        weight = dark * (np.hypot(x - px, y - py) < 0.075 * side)
        found.append([(weight * x).sum() / weight.sum(), (weight * y).sum() / weight.sum()])
    return np.array(found)


PLACES = [(0, 1.0, (60, 50)), (25, 1.2, (110, 30)), (-40, 0.9, (60, 130)), (180, 1.0, (210, 190)), (7, 1.6, (50, 20))]


@pytest.mark.parametrize(("degrees", "scale", "shift"), PLACES)
def test_a_known_position_is_undone(degrees: float, scale: float, shift: tuple[float, float]) -> None:
    photo, landmarks = photograph(degrees, scale, shift)
    aligned = align(photo, face_quad(landmarks), SIDE)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    expected = painted(x, y)
    assert np.abs(dots(aligned) - dots(expected)).max() < 0.3
    inner = (slice(None), slice(16, -16), slice(16, -16))
    assert (aligned[inner] - expected[inner]).abs().mean() < 0.02


def test_the_quad_of_an_aligned_face_is_its_picture() -> None:
    whole = np.array([(0, 0), (0, SIDE), (SIDE, SIDE), (SIDE, 0)]) - 0.5
    np.testing.assert_allclose(face_quad(face()), whole, atol=1e-9)
    assert covers(face_quad(face()), SIDE, SIDE)
    assert covers(face_quad(face() + 5), SIDE, SIDE)
    assert not covers(face_quad(face() + 9), SIDE, SIDE)
    assert not covers(face_quad(face()), SIDE, SIDE + 1)


def test_a_wide_mouth_distance_makes_the_square_larger() -> None:
    long = face()
    long[[48, 54], 1] += 0.25 * SIDE
    quad = face_quad(long)
    assert np.hypot(*(quad[3] - quad[0])) == pytest.approx(2 * 1.8 * 0.5 * SIDE)


@pytest.mark.parametrize("factor", [3, 5])
def test_large_photos_are_shrunk_without_a_shift(factor: int) -> None:
    photo, landmarks = photograph(20, 1.2, (110, 30))
    large = torch.nn.functional.interpolate(photo[None], scale_factor=factor, mode="bicubic")[0]
    small = align(photo, face_quad(landmarks), 32)
    again = align(large, face_quad(rescaled(landmarks, factor)), 32)
    assert (small - again).abs().mean() < 0.01
    assert np.abs(dots(small) - dots(again)).max() < 0.1


def test_what_lies_outside_is_filled_and_the_inside_stays() -> None:
    photo, landmarks = photograph(0, 1.0, (-30, 40))
    aligned = align(photo, face_quad(landmarks), SIDE)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    expected = painted(x, y)
    assert (aligned[:, 30:-30, 60:-16] - expected[:, 30:-30, 60:-16]).abs().mean() < 0.02
    assert aligned[:, :, :20].std() > 0
    assert aligned.shape == (3, SIDE, SIDE)
    with pytest.raises(UserError, match="outside of the picture"):
        align(photo, face_quad(landmarks + 1000), SIDE)


@pytest.mark.parametrize(("degrees", "scale", "shift"), PLACES)
def test_a_face_that_is_pasted_back_unchanged_changes_nothing(
    degrees: float, scale: float, shift: tuple[float, float]
) -> None:
    photo, landmarks = photograph(degrees, scale, shift)
    quad = face_quad(landmarks)
    again = paste_back(photo, align(photo, quad, 2 * SIDE), quad)
    assert (again - photo).abs().mean() < 0.004
    assert (again - photo).abs().max() < 0.06


def test_a_pasted_face_fills_the_quad_and_fades_at_its_border() -> None:
    photo, landmarks = photograph(30, 1.0, (110, 40))
    quad = face_quad(landmarks)
    white = paste_back(photo, torch.ones(3, 64, 64), quad)
    x, y = quad.mean(0).round().astype(int)
    assert torch.equal(white[:, y, x], torch.ones(3))
    for corner in quad:
        x, y = np.clip(np.round(corner + (corner - quad.mean(0)) * 0.05), 0, [299, 259]).astype(int)
        assert torch.equal(white[:, y, x], photo[:, y, x]), "nothing outside"
    middle = (quad[0] + quad[3]) / 2
    inside = middle + 0.05 * (quad[1] - quad[0])
    x, y = inside.round().astype(int)
    share = (white - photo)[:, y, x] / (1 - photo[:, y, x])
    assert ((share > 0.2) & (share < 0.8)).all()
    sharp = paste_back(photo, torch.ones(3, 64, 64), quad, feather=0.0)
    assert (sharp == 1).float().mean() > (white == 1).float().mean()
    assert torch.equal(paste_back(photo, white[:, :64, :64], quad + 5000), photo), "a face elsewhere"


# ---- files and photos without landmarks


def test_landmarks_are_read_from_beside_the_picture(tmp_path: Path) -> None:
    points, picture = face(), tmp_path / "a.jpg"
    assert landmarks_beside(picture) is None
    (tmp_path / "a.txt").write_text("\n".join(f"{x:.4f} {y:.4f}" for x, y in points))
    np.testing.assert_allclose(landmarks_beside(picture), points, atol=1e-3)
    (tmp_path / "a.json").write_text(json.dumps({"landmarks": (points + 1).tolist()}))
    np.testing.assert_allclose(landmarks_beside(picture), points + 1)
    (tmp_path / "a.json").write_text(json.dumps((points + 2).tolist()))
    np.testing.assert_allclose(landmarks_beside(picture), points + 2)


def test_captions_are_no_landmarks_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    picture = tmp_path / "a.jpg"
    (tmp_path / "a.txt").write_text("a woman with 2 earrings")
    assert landmarks_beside(picture) is None
    (tmp_path / "a.json").write_text('{"licence": "CC0"}')
    assert landmarks_beside(picture) is None
    (tmp_path / "a.txt").write_text("1 2\n3 4")
    with pytest.raises(UserError, match=r"a.txt holds 2 points; expected the 68 landmarks"):
        landmarks_beside(picture)
    (tmp_path / "a.json").write_text("[[1, 2], [3]]")
    with pytest.raises(UserError, match=r"a.json cannot be read as landmarks"):
        landmarks_beside(picture)
    with pytest.raises(UserError, match="eyes and mouth in one place"):
        face_quad(np.zeros((68, 2)))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[" * 100_000, "cannot be read as landmarks"),
        (json.dumps([[10**400, 1]] * 68), "cannot be read as landmarks"),
        (json.dumps([[1e308, 1]] * 68), "holds NaN or numbers above 100000"),
        (json.dumps([[float("nan"), 1]] * 68), "holds NaN or numbers above 100000"),
        (json.dumps([[-1e6, 1]] * 68), "holds NaN or numbers above 100000"),
        (json.dumps([[1, 2]] * 67), "holds 67 points; expected the 68 landmarks"),
        (json.dumps([[1, 2]] * 98), "holds 98 points; expected the 68 landmarks"),
        (json.dumps({"landmarks": [{"x": 1, "y": 2}] * 68}), "cannot be read as landmarks"),
        ("[[1, 2]", "cannot be read as landmarks"),
        (" " * 1_000_001, "has 1,000,001 bytes; expected at most 1,000,000"),
    ],
)
def test_every_wrong_file_of_landmarks_gets_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a.json {says}"):
        landmarks_beside(tmp_path / "a.jpg")


def test_landmarks_of_no_face_name_the_picture(tmp_path: Path) -> None:
    photo, landmarks = photograph(0, 1.0, (60, 50))
    for wrong, says in (
        (landmarks[:, ::-1], "those of no face, or of a mirrored one"),
        (landmarks * [1, -1], "those of no face, or of a mirrored one"),
        (np.zeros((68, 2)), "eyes and mouth in one place"),
        (landmarks + 9999, "lie outside of the picture"),
    ):
        with pytest.raises(UserError, match=f"'me' cannot be aligned: the landmarks .*{says}"):
            find_face(photo, wrong, SIDE, "me", tmp_path)
    for degrees in (90, 180, 270):  # turned faces are faces
        assert find_face(*photograph(degrees, 1.0, (150, 150)), SIDE, "me", tmp_path).quad is not None


def test_aligned_pictures_pass_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(float)
    picture = painted(x, y)
    for landmarks in (None, face()):
        found = find_face(picture, landmarks, SIDE, "a", tmp_path)
        assert torch.equal(found.square, picture)
        assert found.quad is None
    photo, landmarks = photograph(25, 1.2, (110, 30))
    found = find_face(photo, landmarks, SIDE, "b", tmp_path)
    assert found.quad is not None
    assert torch.equal(found.square, align(photo, face_quad(landmarks), SIDE))
    assert not caplog.records
    assert list(tmp_path.iterdir()) == []


def test_a_photo_that_is_not_aligned_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    photo, landmarks = photograph(0, 1.0, (60, 50))
    with caplog.at_level(logging.WARNING, "lightning_styles"):
        found = find_face(photo, None, SIDE, "me", tmp_path)
    assert found.quad is None
    assert found.square.shape == (3, SIDE, SIDE)
    (record,) = caplog.records
    assert str(tmp_path / "me_unaligned.png") in record.getMessage()
    assert "'me' is not aligned" in record.getMessage()
    shown = read_image(tmp_path / "me_unaligned.png")
    red = (shown[0] > 0.9) & (shown[1:] < -0.9).all(0)
    assert red[:, :20].sum() == 0, "left of the middle square"
    assert red[100:160, 20:22].all()
    assert red.sum() > 3 * 260
    marked = overlay(photo, face_quad(landmarks), landmarks)
    x, y = landmarks[30].round().astype(int)
    assert torch.equal(marked[:, y, x], torch.tensor([1.0, 1.0, -1.0]))
