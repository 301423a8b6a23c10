"""The procedural world: purity, known attributes, twins."""

from dataclasses import replace

import pytest
import torch

from datamodules.scenes import (
    KINDS,
    LABELS,
    STYLES,
    Scenes,
    attributes,
    captions,
    features,
    latents,
    palette,
    render,
    sample_scenes,
    sdf,
    segmentation,
)
from datamodules.scenes.sampling import mix, reordered, unit

PLAIN = {"hat": 0, "glasses": 0, "beard": 0, "mask": 0, "hand": 0, "microphone": 0, "expression": 0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", STYLES)
def test_a_picture_does_not_depend_on_its_batch(kind: str, style: str) -> None:
    together = render(sample_scenes(7, [5, 1, 900, 2, 44, 13], kind), style)
    alone = torch.cat([render(sample_scenes(7, [index], kind), style) for index in (44, 5)])
    assert together.shape == (6, 3, 64, 64)
    assert together.dtype == torch.float32
    assert together.min() >= -1
    assert together.max() <= 1
    torch.testing.assert_close(together[[4, 0]], alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(render(sample_scenes(7, [44], kind), style), alone[:1], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_scenes_differ_between_indices_and_seeds(kind: str) -> None:
    pictures = render(sample_scenes(0, range(6), kind), "photo").flatten(1)
    distances = torch.cdist(pictures, pictures)[~torch.eye(6, dtype=torch.bool)]
    assert distances.min() > 5
    other = render(sample_scenes(1, [0], kind), "photo").flatten()
    assert (other - pictures[0]).norm() > 5


def test_styles_and_sizes_show_the_same_scene_differently() -> None:
    scenes = sample_scenes(3, [8])
    pictures = [render(scenes, style).flatten() for style in STYLES]
    for number, picture in enumerate(pictures):
        for other in pictures[:number]:
            assert (picture - other).norm() > 5
    coarse = torch.nn.functional.avg_pool2d(render(scenes, "cartoon", 256), 4)
    assert (coarse - render(scenes, "cartoon", 64)).abs().mean() < 0.05
    sketch = render(scenes, "sketch")
    torch.testing.assert_close(sketch[:, 0], sketch[:, 2])


def test_hash_is_splitmix64() -> None:
    # First outputs of the reference splitmix64 from state 0 and 1234567.
    assert mix(torch.tensor(0)).item() & (2**64 - 1) == 0xE220A8397B1DCDAF
    assert mix(torch.tensor(1234567)).item() & (2**64 - 1) == 6457827717110365317
    values = unit(mix(torch.arange(20000)))
    assert values.min() >= 0
    assert values.max() < 1
    assert abs(values.mean().item() - 0.5) < 0.01


def test_a_view_keeps_the_person_and_changes_the_moment() -> None:
    lasting = (
        "gender",
        "skin",
        "face",
        "hair",
        "hair_colour",
        "eye_colour",
        "beard",
        "glasses",
        "jaw",
        "hair_rgb",
    )
    views = [sample_scenes(2, range(40), view=view) for view in (None, 0, 1)]
    for scenes in views[1:]:
        assert torch.equal(scenes.identity, torch.arange(40))
        for name in lasting:
            assert torch.equal(scenes.values[name], views[0].values[name]), name
    for name in ("yaw", "light_x", "shift_x", "clothes_rgb", "backdrop_rgb"):
        assert not torch.equal(views[1].values[name], views[2].values[name]), name


def test_attributes_follow_their_distribution() -> None:
    classes = attributes(sample_scenes(0, range(4000)))
    assert all(value.dtype == torch.int64 and value.shape == (4000,) for value in classes.values())
    for name in ("hand", "microphone", "mask"):
        assert abs(classes[name].float().mean().item() - 0.05) < 0.012
    assert abs(classes["gender"].float().mean().item() - 0.5) < 0.03
    assert classes["beard"][classes["gender"] == 0].max() == 0
    assert classes["hair"].unique().tolist() == list(range(len(palette.HAIR_STYLES)))


def test_captions_say_what_the_attributes_are() -> None:
    hair = {"hair": palette.HAIR_STYLES.index("long"), "hair_colour": list(palette.HAIR_COLOURS).index("red")}
    scenes = sample_scenes(0, [3], gender=0, backdrop_named=0, **{**PLAIN, **hair, "glasses": 1})
    assert captions(scenes, "photo") == ["a photo of a woman with long red hair and glasses"]
    assert captions(scenes, "cartoon") == ["a woman with long red hair and glasses, cartoon style"]
    blue = palette.COLOUR_NAMES.index("blue")
    busy = {
        "hat": 2,
        "hat_colour": blue,
        "expression": 1,
        "hand": 1,
        "backdrop_named": 1,
        "backdrop_colour": blue,
    }
    scenes = sample_scenes(0, [3], gender=1, hair=0, **{**PLAIN, **busy})
    expected = "a photo of a smiling man with a bald head, a blue beanie and a raised hand on a blue background"
    assert captions(scenes, "photo") == [expected]


def test_captions_of_animals_and_places() -> None:
    cat = sample_scenes(
        0,
        [1],
        "animal",
        species=0,
        fur_colour=0,
        pattern=0,
        eye_colour=0,
        collar=0,
        tongue=0,
        backdrop_named=0,
    )
    assert captions(cat, "photo") == ["a photo of an orange cat with green eyes"]
    lake = sample_scenes(0, [1], "landscape", place=0, mountains=1, trees=0, house=0, boat=0, time=1)
    assert captions(lake, "photo") == ["a photo of a lake with mountains at sunset"]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_stay_short(kind: str) -> None:
    texts = captions(sample_scenes(4, range(500), kind), "watercolor")
    everything = {
        "hat": 1,
        "glasses": 1,
        "beard": 4,
        "hand": 1,
        "microphone": 1,
        "hair": 6,
        "backdrop_named": 1,
    }
    if kind == "portrait":
        texts += captions(sample_scenes(4, range(20), **{**PLAIN, **everything}), "watercolor")
        texts += captions(sample_scenes(4, range(20), **{**PLAIN, **everything, "mask": 1}), "photo")
    assert max(len(text.split()) for text in texts) <= 24


@pytest.mark.parametrize(
    ("attribute", "value", "label"),
    [("glasses", 1, "glasses"), ("hat", 2, "hat"), ("mask", 1, "mask"), ("hand", 1, "hand"),
     ("microphone", 1, "microphone"), ("beard", 4, "beard"), ("hair", 7, "hair")],
)  # fmt: skip
def test_segmentation_has_what_the_scene_has(attribute: str, value: int, label: str) -> None:
    number = LABELS["portrait"].index(label)
    base = {**PLAIN, "hair": 0, "gender": 1}
    without = segmentation(sample_scenes(9, range(4), **base), 64)
    assert not (without == number).any()
    present = segmentation(sample_scenes(9, range(4), **{**base, attribute: value}), 64)
    assert (present == number).flatten(1).sum(1).min() > 10


@pytest.mark.parametrize("kind", KINDS)
def test_segmentation_labels(kind: str) -> None:
    labels = segmentation(sample_scenes(9, range(6), kind), 96)
    assert labels.shape == (6, 96, 96)
    assert labels.dtype == torch.int64
    assert labels.min() == 0
    assert labels.max() < len(LABELS[kind])
    assert all(picture.unique().numel() >= 3 for picture in labels)


def test_twins_share_the_layout_but_not_the_geometry() -> None:
    scenes = sample_scenes(5, range(8), **PLAIN)
    photo, cartoon = (segmentation(scenes, 96, style) for style in ("photo", "cartoon"))
    for label, low, high in (("skin", 0.7, 1.0), ("eyes", 0.35, 0.9)):
        number = LABELS["portrait"].index(label)
        both = ((photo == number) & (cartoon == number)).sum()
        either = ((photo == number) | (cartoon == number)).sum()
        assert low < (both / either).item() < high
    eyes = LABELS["portrait"].index("eyes")
    assert (cartoon == eyes).sum() > 1.3 * (photo == eyes).sum()


def test_eyes_and_hair_have_their_colours() -> None:
    hair = list(palette.HAIR_COLOURS).index("blue")
    scenes = sample_scenes(1, range(4), **{**PLAIN, "hair": 7, "hair_colour": hair, "gender": 0})
    inside = segmentation(scenes, 64) == LABELS["portrait"].index("hair")
    picture = render(scenes, "photo").permute(0, 2, 3, 1)[inside].mean(0)
    assert picture[2] > picture[1] > picture[0]


def test_scenes_can_be_indexed() -> None:
    scenes = sample_scenes(0, range(5))
    part = scenes[[3, 1]]
    assert len(part) == 2
    assert part.identity.tolist() == [3, 1]
    assert torch.equal(render(part, "cartoon"), render(sample_scenes(0, [3, 1]), "cartoon"))


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="moustache"):
        sample_scenes(0, [0], moustache=1)
    with pytest.raises(ValueError, match="robot"):
        sample_scenes(0, [0], "robot")
    with pytest.raises(ValueError, match="oil"):
        render(sample_scenes(0, [0]), "oil")


def test_distances_of_known_points() -> None:
    x, y = torch.tensor([0.0, 3.0, 0.0]), torch.tensor([0.0, 4.0, 2.0])
    torch.testing.assert_close(sdf.circle(x, y, 1.0), torch.tensor([-1.0, 4.0, 1.0]))
    torch.testing.assert_close(sdf.box(x, y, 1.0, 1.0), torch.tensor([-1.0, 13.0**0.5, 1.0]))
    torch.testing.assert_close(sdf.segment(x, y, (0.0, 0.0), (0.0, 2.0), 0.5)[[0, 2]], torch.tensor([-0.5, -0.5]))
    torch.testing.assert_close(sdf.egg(x, y, 1.0, 0.5, 1.5)[2], torch.tensor(0.0))
    assert abs(sdf.ellipse(torch.tensor(2.0), torch.tensor(0.0), 2.0, 1.0).item()) < 1e-4


@pytest.mark.parametrize(("kind", "count"), [("portrait", 81), ("animal", 43), ("landscape", 55)])
def test_latents_are_independent_standard_normal_numbers(kind: str, count: int) -> None:
    z = latents(sample_scenes(0, range(4000), kind))
    assert z.shape == (4000, count)
    assert z.mean(0).abs().max() < 0.08
    torch.testing.assert_close(z.T.cov(), torch.eye(count), rtol=0, atol=0.1)


def test_attributes_are_monotonous_in_their_latents() -> None:
    scenes = sample_scenes(0, range(500))
    z = latents(scenes)
    assert torch.equal(latents(scenes[[7, 3]]), z[[7, 3]])
    (found,) = [k for k in range(z.shape[1]) if torch.equal(z[:, k].argsort(), scenes.values["jaw"].argsort())]
    torch.testing.assert_close(torch.special.ndtr(z[:, found]) * 2 - 1, scenes.values["jaw"], rtol=0, atol=1e-5)
    assert (z[:, 0] > 0).eq(scenes.values["gender"] == 1).all()
    ends = replace(scenes[:2], uniforms=torch.tensor([[0.0], [1 - 2**-24]]))
    torch.testing.assert_close(latents(ends), torch.tensor([[-5.42], [5.42]]), rtol=0, atol=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_features_tell_what_a_picture_depends_on(kind: str) -> None:
    scenes = sample_scenes(0, range(200), kind)
    described, classes = features(scenes), attributes(scenes)
    shown = [value for name, value in classes.items() if not name.endswith("_colour") and name != "skin"]
    one_hot = described[:, : 12 * len(shown)].unflatten(1, (-1, 12))
    assert torch.equal(one_hot.argmax(2), torch.stack(shown, 1))
    others = described[:, 12 * len(shown) :]
    colours = [value for value in scenes.values.values() if value.ndim == 2]
    torch.testing.assert_close(others[:, : 3 * len(colours)], torch.cat(colours, 1) * 2 - 1)
    torch.testing.assert_close(others[:, 3 * len(colours) :], scenes.uniforms * 2 - 1)


def test_latents_of_colours_are_in_an_order_of_likeness() -> None:
    """A step along the latent of a colour changes it little; where classes meet, they are neighbours."""
    scenes = sample_scenes(0, range(4000))
    place = next(k for k in range(81) if hue_by(scenes, k))
    order = scenes.uniforms[:, place].argsort()
    classes = scenes.values["clothes_colour"][order]
    met = [palette.COLOUR_NAMES[k] for k in classes.unique_consecutive().tolist()]
    assert met == [palette.COLOUR_NAMES[k] for k in palette.COLOUR_ORDER]
    assert met[:2] == ["black", "brown"]


def hue_by(scenes: Scenes, place: int) -> bool:
    """Whether this uniform is the one of the clothes' colour: it has one run of each class."""
    classes = scenes.values["clothes_colour"][scenes.uniforms[:, place].argsort()]
    return len(classes.unique_consecutive()) == len(palette.COLOURS)


def test_reordered_uniforms_stay_uniform_and_keep_their_depth() -> None:
    edges = torch.tensor([[0.2, 0.5, 1.0], [0.5, 0.5, 1.0]])
    for u, row, value, expected in ((0.1, 0, 0, 0.9), (0.3, 0, 1, 0.1), (0.75, 0, 2, 0.55), (0.6, 1, 2, 0.1)):
        found = reordered(torch.tensor([u]), torch.tensor([value]), edges[row : row + 1], [1, 2, 0])
        assert found.item() == pytest.approx(expected)
