"""StyleImages: crops lie inside the picture, are pure in (seed, i), and carry their prompt."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Pictures, StyleImages, scenes
from lightning_styles.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """Each pixel tells its column in red, its row in green and its picture in blue."""
    for k, (height, width) in enumerate([(16, 40), (40, 16), (16, 16)]):
        y, x = np.mgrid[0:height, 0:width]
        Image.fromarray(np.stack([x, y, np.full_like(x, k)], -1).astype(np.uint8)).save(tmp_path / f"{k}.png")
    (tmp_path / "1.txt").write_text("a boat")
    return tmp_path


def batches(folder, steps=20, start=0, **changes):
    arguments = {"images": str(folder), "prompt": "sks style", "resolution": 16, "batch_size": 3}
    data = StyleImages(**{**arguments, **changes})
    data.trainer = SimpleNamespace(max_steps=steps, global_step=start, global_rank=0, world_size=1)
    data.setup("fit")
    return list(data.train_dataloader())


def levels(batch):
    return ((batch["image"] + 1) * 127.5).round().int()


def test_crops_are_squares_of_the_picture(folder):
    flips, places = set(), set()
    for batch in batches(folder):
        assert batch["caption"] == ["sks style"] * 3
        assert sorted(levels(batch)[:, 2, 0, 0].tolist()) == [0, 1, 2]
        for column, row, which in levels(batch):
            step = int(column[0, 1] - column[0, 0])
            flips.add(step)
            places.add((int(which[0, 0]), int(column.min()), int(row.min())))
            assert torch.equal(row[:, 0].diff(), torch.ones(15, dtype=torch.int32))
            assert torch.equal(column[0].diff(), torch.full((15,), step, dtype=torch.int32))
    assert flips == {1, -1}
    assert {p[1] for p in places if p[0] == 0} <= set(range(25))
    assert len([p for p in places if p[0] == 0]) > 8
    assert [p for p in places if p[0] == 2] == [(2, 0, 0)]


def test_middle_crop_without_mirror(folder):
    (batch,) = batches(folder, steps=1, random_crop=False, flip=False)
    by_picture = {int(x[2, 0, 0]): x for x in levels(batch)}
    assert by_picture[0][0, 0].tolist() == list(range(12, 28))
    assert by_picture[1][1, :, 0].tolist() == list(range(12, 28))


def test_resume_and_seed(folder):
    straight = batches(folder, steps=4)
    resumed = batches(folder, steps=4, start=2)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(straight[2:], resumed, strict=True))
    other = batches(folder, steps=4, seed=1)
    assert not all(torch.equal(a["image"], b["image"]) for a, b in zip(straight, other, strict=True))


def test_prompt_may_quote_captions(folder):
    (batch,) = batches(folder, steps=1, prompt="{caption}, sks style")
    assert sorted(batch["caption"]) == [", sks style", ", sks style", "a boat, sks style"]


def test_scenes_in_a_style():
    (batch,) = batches("scene:portrait/5", steps=1, style="cartoon", prompt="{caption}", flip=False)
    scene = scenes.sample_scenes(0, [5], kind="portrait")
    assert [f"{c}, cartoon style" for c in batch["caption"]] == scenes.captions(scene, "cartoon") * 3
    expected = scenes.render(scene, "cartoon", 16)[0]
    torch.testing.assert_close(batch["image"][0], expected, atol=1 / 255, rtol=0)


def test_photos_are_stylized_and_the_style_pictures_are_not(folder):
    arguments = {"images": str(folder), "prompt": "", "resolution": 16, "batch_size": 2}
    data = StyleImages(**arguments, photos="scene:portrait/3-5", twin_style="cartoon")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, state=SimpleNamespace(fn="test"))
    data.setup("test")
    batches = list(data.test_dataloader())
    expected = Pictures(images="scene:portrait/3-5", resolution=16, twin_style="cartoon").pictures()
    for key in ("image", "twin"):
        assert torch.equal(torch.cat([batch[key] for batch in batches]), torch.stack([x[key] for x in expected]))
    without = StyleImages(**arguments)
    without.trainer = data.trainer
    with pytest.raises(UserError, match=r"data\.photos"):
        without.setup("test")
    assert without.val_dataloader() == []
