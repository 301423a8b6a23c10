"""Filters: what each style promises, the same look at every size, each picture on its own."""

import pytest
import torch
from torch.nn import functional as F

from datamodules import scenes
from datamodules.filters import COLOURS, FILTERS, apply_filter
from lightning_styles.errors import UserError

STILL = [("portrait", 3), ("animal", 3), ("landscape", 3)]


@pytest.fixture(scope="module")
def photos():
    with torch.no_grad():
        drawn = [scenes.render(scenes.sample_scenes(0, [i], kind=kind), "photo", 256) for kind, i in STILL]
    return torch.cat(drawn)


@pytest.fixture(scope="module")
def twins(photos):
    return {name: apply_filter(photos, name) for name in FILTERS}


def colours(image):
    return image.flatten(1).T.unique(dim=0)


def flatness(images):
    """Share of neighbours that are of exactly one colour."""
    return (images[..., 1:] == images[..., :-1]).all(1).float().mean()


@pytest.mark.parametrize("name", FILTERS)
def test_shape_range_and_repeat(photos, twins, name):
    twin = twins[name]
    assert twin.shape == photos.shape
    assert twin.dtype == torch.float32
    assert -1 <= twin.min() <= twin.max() <= 1
    assert torch.equal(twin[1:2], apply_filter(photos[1:2], name))
    odd = photos[:1, :, :33, :50]
    assert apply_filter(odd, name).shape == odd.shape


@pytest.mark.parametrize("name", FILTERS)
def test_twin_is_another_style_of_the_same_picture(photos, twins, name):
    assert (twins[name] - photos).abs().mean() > 0.03
    for other in set(FILTERS) - {name}:
        assert (twins[name] - twins[other]).abs().mean() > 0.05
    if name != "sketch":  # its colours are of the paper
        coarse, coarse_twin = F.avg_pool2d(photos, 32), F.avg_pool2d(twins[name], 32)
        assert torch.corrcoef(torch.stack([coarse.flatten(), coarse_twin.flatten()]))[0, 1] > 0.95


@pytest.mark.parametrize("name", ["cartoon", "painting", "sketch"])
def test_look_does_not_depend_on_the_size(photos, twins, name):
    """Seen from afar, the style of the small picture is the small picture of the style."""
    small = F.interpolate(photos, size=64, mode="area")
    there = F.avg_pool2d(twins[name], 4)
    back = apply_filter(small, name)
    assert (back - there).abs().mean() < 0.6 * (there - small).abs().mean()


def test_posterize_has_eight_colours(photos, twins):
    assert [len(colours(twin)) for twin in twins["posterize"]] == [COLOURS] * 3
    stripes = torch.tensor([-1.0, -0.2, 1.0]).repeat_interleave(16).expand(1, 3, 48, 48)
    shown = apply_filter(stripes, "posterize")
    torch.testing.assert_close(shown, stripes, atol=1 / 255, rtol=0)
    assert len(colours(apply_filter(photos[:1, :, :64, :64], "posterize")[0])) <= COLOURS


def test_cartoon_is_flat_with_dark_lines(photos, twins):
    assert flatness(twins["cartoon"]) > 0.6
    assert flatness(photos) < 0.2
    halves = torch.full((1, 3, 256, 256), 0.7)
    halves[..., :128] = 0.0
    row = apply_filter(halves, "cartoon")[0, :, 128].mean(0)
    assert row[118:138].min() < -0.5
    assert row[:100].min() > -0.1
    assert row[150:].min() > 0.5


def test_painting_covers_the_whole_canvas_with_strokes(twins):
    """Strokes of one colour: a pixel mostly equals its neighbour exactly, where a photo never does."""
    assert flatness(twins["painting"]) > 0.6
    plain = apply_filter(torch.zeros(1, 3, 256, 256), "painting")
    assert 0.02 < plain.std() < 0.2
    assert abs(plain.mean()) < 0.05


def test_sketch_is_a_gray_drawing_on_bright_paper(photos, twins):
    sketch = twins["sketch"]
    red, green, blue = (sketch + 1).unbind(1)
    assert ((red >= green) & (green >= blue) & (red - blue < 0.09)).all()
    assert (sketch.mean((1, 2, 3)) > 0.5).all()
    assert (sketch.amin((1, 2, 3)) < -0.5).all()
    paper = apply_filter(torch.ones(1, 3, 64, 64), "sketch")
    assert paper.flatten(2).std(-1).max() == 0
    torch.testing.assert_close((paper[0, :, 0, 0] + 1) * 127.5, torch.tensor([252.0, 250.0, 244.0]))


def test_unknown_filter():
    with pytest.raises(UserError, match="no filter 'baroque'; expected one of posterize, cartoon, painting, sketch"):
        apply_filter(torch.zeros(1, 3, 16, 16), "baroque")
