"""Pairs: both pictures show the same crop, mirrored alike, recorded right; bad pairs are told before training."""

import logging
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Pairs, scenes
from datamodules.filters import apply_filter
from lightning_styles.errors import UserError
from lightning_styles.imaging import save_png

SIDE = 16


def paint(path, width=40, height=SIDE, blue=0, scale=1):
    """Each pixel tells its column in red and its row in green; the pair's picture is another blue."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x, y, np.full_like(x, blue)], -1).astype(np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels.repeat(scale, 0).repeat(scale, 1)).save(path)


@pytest.fixture
def folders(tmp_path):
    """Three pairs: wide, upright and square."""
    for k, (width, height) in enumerate([(40, SIDE), (SIDE, 40), (SIDE, SIDE)]):
        paint(tmp_path / "photos" / f"{k}.png", width, height, blue=10 * k)
        paint(tmp_path / "art" / f"{k}.jpg.png", width, height, blue=200 + k)
        (tmp_path / "art" / f"{k}.jpg.png").rename(tmp_path / "art" / f"{k}.bmp")
    return tmp_path


def pairs(root, **changes):
    arguments = {"content": str(root / "photos"), "style": str(root / "art"), "prompt": "a map", "resolution": SIDE}
    return Pairs(**{**arguments, **changes})


def batches(data, steps=20, start=0, rank=0, world=1):
    data.trainer = SimpleNamespace(max_steps=steps, global_step=start, global_rank=rank, world_size=world)
    return list(data.train_dataloader())


def levels(images):
    return ((images + 1) * 127.5).round().int()


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("flip", ["never", "always", "random"])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_same_crop_and_mirror_recorded_right(folders, crop, flip):
    data = pairs(folders, crop=crop, flip=flip, batch_size=3)
    rows = {}
    for batch in batches(data, steps=400):  # every place comes up
        content, style = levels(batch["content"]), levels(batch["style"])
        assert torch.equal(content[:, :2], style[:, :2])
        for k, (column, row, blue) in enumerate(content):
            which = int(blue[0, 0]) // 10
            assert batch["name"][k] == str(which)
            assert int(style[k, 2, 0, 0]) == 200 + which
            height, width = [(SIDE, 40), (40, SIDE), (SIDE, SIDE)][which]
            assert batch["content_size"][k].tolist() == batch["style_size"][k].tolist() == [height, width]
            top, left = batch["crop"][k].tolist()
            mirrored = bool(column[0, 0] > column[0, 1])
            # The recorded corner is one of the whole picture, mirrored where the sample is.
            columns = torch.arange(width).flip(0) if mirrored else torch.arange(width)
            assert column[0].tolist() == columns[left : left + SIDE].tolist()
            assert row[:, 0].tolist() == list(range(top, top + SIDE))
            rows.setdefault(batch["row"][k], content[k])
            assert torch.equal(rows[batch["row"][k]], content[k])
            assert mirrored == {"never": False, "always": True}.get(flip, mirrored)
            assert crop == "random" or (top, left) == ((height - SIDE) // 2, (width - SIDE) // 2)
    assert len(rows) == data.views == (2 if flip == "random" else 1) * (3 if crop == "center" else 2 * 16 + 1)
    assert len({tuple(x.flatten().tolist()) for x in rows.values()}) == len(rows)
    if crop == "random":
        places = {int(x[0].min()) for x in rows.values() if x[2, 0, 0] == 0}
        assert {0, 24} <= places <= set(range(25))


def test_batch_has_what_methods_expect(folders):
    (batch,) = batches(pairs(folders, batch_size=2), steps=1)
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in batch.items() if torch.is_tensor(value)}
    assert kinds == {
        "content": (torch.float32, (2, 3, SIDE, SIDE)),
        "style": (torch.float32, (2, 3, SIDE, SIDE)),
        "content_size": (torch.int64, (2, 2)),
        "style_size": (torch.int64, (2, 2)),
        "crop": (torch.int64, (2, 2)),
    }
    assert batch["prompt"] == ["a map"] * 2
    assert all(isinstance(batch[name], list) and len(batch[name]) == 2 for name in ("prompt", "name", "row"))


def test_sizes_of_a_pair_may_differ(tmp_path):
    paint(tmp_path / "man.png", 32, 32)
    paint(tmp_path / "painted.png", 16, 16, scale=4)
    data = Pairs(
        content=str(tmp_path / "man.png"), style=str(tmp_path / "painted.png"), prompt="a man", resolution=16
    )  # fmt: skip
    (batch,) = batches(data, steps=1)
    assert batch["content_size"].tolist() == [[32, 32]]
    assert batch["style_size"].tolist() == [[64, 64]]
    assert batch["name"] == ["man"]
    assert data.views == 1
    ramp = torch.arange(16.0).flip(0)
    torch.testing.assert_close(levels(batch["content"])[0, 0, 0, 1:-1].float(), 2 * ramp[1:-1] + 0.5, atol=0.5, rtol=0)
    torch.testing.assert_close(levels(batch["style"])[0, 0, 0].float(), ramp, atol=1.01, rtol=0)


def test_orientation_tag_counts(tmp_path):
    paint(tmp_path / "a.png", 32, 16)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "a.png").save(tmp_path / "a.png", exif=exif)
    paint(tmp_path / "b.png", 16, 32)
    data = Pairs(content=str(tmp_path / "a.png"), style=str(tmp_path / "b.png"), prompt="a map", resolution=16)
    (batch,) = batches(data, steps=1)
    assert batch["content_size"].tolist() == batch["style_size"].tolist() == [[32, 16]]
    assert batch["crop"].tolist() == [[8, 0]]


@pytest.mark.parametrize("name", ["posterize", "sketch"])
def test_filter_makes_the_twin_of_the_whole_picture(folders, name):
    """The crop of the filtered picture, not the filtered crop: all crops share their lines and colours."""
    photo = folders / "photos" / "0.png"
    data = pairs(folders, content=str(photo), style=None, filter=name, crop="random", flip="never")
    pixels = torch.from_numpy(np.asarray(Image.open(photo)).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    twin = apply_filter(pixels.float(), name)
    for batch in batches(data, steps=4):
        left = int(batch["crop"][0, 1])
        assert torch.equal(levels(batch["style"]), levels(twin[..., left : left + SIDE]))
        assert torch.equal(batch["style_size"], batch["content_size"])


def test_scenes_come_with_their_exact_twins():
    data = Pairs(
        content="scene:animal/4-5?seed=1", scene_style="cartoon", prompt="Photo: {caption}", resolution=32, batch_size=2
    )
    (batch,) = batches(data, steps=1)
    order = [int(name.split("_")[1]) for name in batch["name"]]
    assert sorted(order) == [4, 5]
    drawn = scenes.sample_scenes(1, order, kind="animal")
    for key, style in (("content", "photo"), ("style", "cartoon")):
        expected = scenes.render(drawn, style, 32).flip(-1)
        torch.testing.assert_close(batch[key], expected, atol=1.01 / 255, rtol=0)
    assert [p.removeprefix("Photo: ") for p in batch["prompt"]] == [
        c.removeprefix("a photo of ") for c in scenes.captions(drawn, "photo")
    ]
    assert batch["content_size"].tolist() == [[32, 32]] * 2
    assert data.views == 2


def test_sample_is_a_function_of_seed_and_number(folders):
    settings = {"crop": "random", "flip": "random", "prompt": ["a map", "a chart", "a plan"]}
    straight = batches(pairs(folders, batch_size=2, **settings), steps=6)
    resumed = batches(pairs(folders, batch_size=2, **settings), steps=6, start=4)
    assert all(equal(a, b) for a, b in zip(straight[4:], resumed, strict=True))
    shares = [batches(pairs(folders, **settings), steps=6, rank=rank, world=2) for rank in range(2)]
    for step, batch in enumerate(straight):
        assert [shares[rank][step]["row"][0] for rank in range(2)] == batch["row"]
        assert [shares[rank][step]["prompt"][0] for rank in range(2)] == batch["prompt"]
    other = batches(pairs(folders, batch_size=2, seed=1, **settings), steps=6)
    assert [b["row"] for b in other] != [b["row"] for b in straight]
    assert {prompt for b in straight for prompt in b["prompt"]} == {"a map", "a chart", "a plan"}
    for epoch in range(4):
        shown = [name for b in straight for name in b["name"]][3 * epoch : 3 * epoch + 3]
        assert sorted(shown) == ["0", "1", "2"]


def test_workers_change_nothing(folders):
    alone = batches(pairs(folders, crop="random"), steps=4)
    helped = batches(pairs(folders, crop="random", num_workers=1), steps=4)
    assert all(equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_captions_beside_files(folders):
    for k in range(3):
        (folders / "photos" / f"{k}.txt").write_text(f"map {k}\n")
    (batch,) = batches(pairs(folders, prompt="A photo of {caption}", batch_size=3), steps=1)
    assert batch["prompt"] == [f"A photo of map {name}" for name in batch["name"]]


def test_far_too_small_pictures_are_warned_of(folders, caplog):
    with caplog.at_level(logging.WARNING):
        pairs(folders, content=str(folders / "photos" / "2.png"), style=str(folders / "art" / "2.bmp"), resolution=32)
        assert caplog.records == []
        pairs(folders, content=str(folders / "photos" / "2.png"), style=str(folders / "art" / "2.bmp"), resolution=64)
    assert [r.getMessage().split("' ")[1] for r in caplog.records] == [
        "is 16 x 16 px and is enlarged to 64 px: expect a blurred result."
    ] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"style": "art/nowhere.png"}, r"a pair needs two pictures, and style '.*nowhere\.png' does not exist"),
        ({"content": "photos/nowhere.png"}, r"two pictures, and content '.*nowhere\.png' does not exist"),
        ({"content": ""}, "content is empty; a pair needs two pictures"),
        ({"style": None}, "none of style, filter and scene_style given"),
        ({"filter": "sketch"}, "style and filter given .*; expected exactly one"),
        ({"style": "art/1.bmp"}, r"1\.bmp is one picture and .*photos is a folder"),
        (
            {"content": "photos/0.png", "style": "art/1.bmp"},
            r"'0' differ in shape: 40 x 16 px .* 16 x 40 px .*crop one",
        ),
        ({"style": None, "filter": "baroque"}, "no filter 'baroque'; expected one of posterize"),
        ({"style": None, "scene_style": "cartoon"}, "scene_style needs scenes, and content is"),
        ({"content": "scene:portrait/1"}, "style pairs files with files"),
        ({"content": "scene:portrait/1", "style": None, "scene_style": "baroque"}, "no style 'baroque'"),
        ({"prompt": "  "}, 'prompt "  " names no subject'),
        ({"prompt": ["a map", "A photo of a "]}, 'prompt "A photo of a " names no subject'),
        ({"prompt": []}, "prompt is an empty list"),
        ({"prompt": "a {caption}"}, r"photos/0\.png has none; write it into 0\.txt"),
        ({"resolution": 8}, "resolution is 8; expected 16 to 8192 px"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_mistakes_are_told_at_once(folders, changes, message):
    for key in ("content", "style"):
        if changes.get(key) and not changes[key].startswith("scene:"):
            changes = changes | {key: str(folders / changes[key])}
    with pytest.raises(UserError, match=message) as told:
        pairs(folders, **changes)
    assert "\n" not in str(told.value)


def test_folders_that_do_not_match(folders):
    paint(folders / "photos" / "a.png")
    for name in "bcdef":
        paint(folders / "art" / f"{name}.png")
    with pytest.raises(UserError, match=r"art has no partner for a; .*photos has no partner for b, c, d and 2 more: "):
        pairs(folders)


def test_inside_the_trainer(folders):
    class Watcher(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def training_step(self, batch, batch_idx):
            self.seen += batch["row"]
            return self.weight.sum()

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_steps=5, max_epochs=-1, accelerator="cpu", enable_checkpointing=False, **quiet)
    model = Watcher()
    trainer.fit(model, pairs(folders, flip="random"))
    assert model.seen == [row for batch in batches(pairs(folders, flip="random"), steps=5) for row in batch["row"]]


@pytest.mark.parametrize(("shift", "found"), [(0, []), (4, ["the twins of 2 of 2 photos"])])
def test_twins_whose_lines_lie_elsewhere_are_told_once(tmp_path, caplog, shift, found):
    drawn = scenes.sample_scenes(1, range(2))
    for style, folder in (("photo", "photos"), ("cartoon", "art")):
        for k, image in enumerate(scenes.render(drawn, style, 96)):
            save_png(tmp_path / folder / f"{k}.png", image.roll(shift if folder == "art" else 0, -1))
    data = pairs(tmp_path, resolution=96)
    data.setup("fit")
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(" have")[0] for message in messages] == found
    for message in messages:
        assert "of its side: the style will change shapes too, or stay weak. Align them, or" in message
    caplog.clear()
    pairs(tmp_path, style=None, filter="sketch").setup("fit")
    assert caplog.records == [], "filters and scenes make exact twins"
