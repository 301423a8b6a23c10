"""Pictures: names, captions, sizes, skipped files, shards, twins."""

import logging
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from datamodules import Pictures, scenes
from lightning_styles.errors import UserError


def picture(path, width=32, height=32, value=0):
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(folder / "a.jpg", 64, 32)
    picture(folder / "a.png", 32, 64)
    picture(folder / "b.png", 64, 32)
    picture(folder / "c.png", 128, 64, value=255)
    (folder / "b.txt").write_text("a b\u00e9e\n", encoding="utf-8")
    return folder


def names_on_rank(folder, rank, world):
    data = on_rank(Pictures(images=str(folder)), "predict", rank, world)
    return [name for batch in data.predict_dataloader() for name in batch["name"]]


def on_rank(data, fn, rank=0, world=1):
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), global_rank=rank, world_size=world)
    return data


def test_names_captions_and_sizes(folder):
    data = Pictures(images=str(folder), resolution=48, captions="a thing")
    loaded = data.pictures()
    assert [p["name"] for p in loaded] == ["a", "a_png", "b", "c"]
    assert [p["caption"] for p in loaded] == ["a thing", "a thing", "a b\u00e9e", "a thing"]
    assert [tuple(p["image"].shape[1:]) for p in loaded] == [(48, 96), (96, 48), (48, 96), (48, 96)]
    assert [p["index"] for p in loaded] == [0, 1, 2, 3]
    assert loaded[3]["image"].min() > 0.9999


def test_own_size_is_kept(folder):
    loaded = Pictures(images=[str(folder / "c.png"), str(folder / "a.png")], resolution=None).pictures()
    assert [tuple(p["image"].shape[1:]) for p in loaded] == [(64, 128), (64, 32)]


def test_same_stem_in_two_folders(folder, tmp_path):
    picture(tmp_path / "b.png")
    (tmp_path / "more").mkdir()
    picture(tmp_path / "more" / "b.png")
    data = Pictures(images=[str(folder / "b.png"), str(tmp_path / "b.png"), str(tmp_path / "more")])
    assert [s.name for s in data.reader.sources] == ["b", "b_png", "b_2"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_group_equal_sizes(folder, num_workers):
    data = Pictures(images=str(folder), resolution=32, batch_size=2, num_workers=num_workers)
    batches = list(on_rank(data, "predict").predict_dataloader())
    assert sorted(b["name"] for b in batches) == [["a", "b"], ["a_png"], ["c"]]
    first = next(b for b in batches if len(b["name"]) == 2)
    assert first["image"].shape == (2, 3, 32, 64)
    assert first["index"].tolist() == [0, 2]
    assert first["index"].dtype == torch.int64
    assert "twin" not in first


@pytest.mark.parametrize("batch_size", [1, 2])
def test_broken_file_in_folder_is_named_once_and_skipped(folder, caplog, batch_size):
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[:60])
    (folder / "d.png").write_text("no image")
    data = Pictures(images=str(folder), resolution=None, batch_size=batch_size)
    on_rank(data, "predict")
    with caplog.at_level(logging.WARNING):
        names = [n for _ in range(2) for b in data.predict_dataloader() for n in b["name"]]
    assert sorted(names) == sorted(2 * ["a", "a_png", "c"])
    warned = [r.getMessage() for r in caplog.records]
    assert len(warned) == 2
    assert sum("b.png" in w for w in warned) == sum("d.png" in w for w in warned) == 1
    with pytest.raises(UserError, match=r"d\.png"):
        Pictures(images=str(folder / "d.png")).pictures()


def test_folder_without_a_whole_picture(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(UserError, match="none of the 1 pictures"):
        Pictures(images=str(tmp_path)).pictures()


def test_ranks_share_pictures(folder):
    assert [names_on_rank(folder, rank, 3) for rank in range(3)] == [["a", "c"], ["a_png"], ["b"]]


def test_scenes_have_exact_twins():
    entry = "scene:portrait/1000-1002?seed=1"
    data = Pictures(images=entry, resolution=32, batch_size=2, twin_style="cartoon")
    batches = list(on_rank(data, "test").test_dataloader())
    names = [f"portrait_{i}_seed1" for i in (1000, 1001, 1002)]
    assert [b["name"] for b in batches] == [names[:2], names[2:]]
    drawn = scenes.sample_scenes(1, [1000, 1001], kind="portrait")
    assert torch.equal(batches[0]["image"], scenes.render(drawn, "photo", 32))
    assert torch.equal(batches[0]["twin"], scenes.render(drawn, "cartoon", 32))
    assert [f"a photo of {c}" for c in batches[0]["caption"]] == scenes.captions(drawn, "photo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": "nowhere"}, "'nowhere' does not exist"),
        ({"images": []}, "list of images is empty"),
        ({"images": "scene:portrait"}, "is no scene"),
        ({"images": "scene:teapot/1"}, "no kind 'teapot'"),
        ({"images": "scene:portrait/5-4"}, "empty range"),
        ({"images": "scene:portrait/1", "resolution": None}, "resolution is null"),
        ({"images": "scene:portrait/1", "twin_style": "baroque"}, "no style 'baroque'"),
    ],
)
def test_mistakes_are_told_at_once(arguments, message):
    with pytest.raises(UserError, match=message):
        Pictures(**arguments)


class Stylizer(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        self.manual_backward(self.weight.sum())
        self.optimizers().step()

    def predict_step(self, batch, batch_idx):
        return {"image": list(-batch["image"]), "name": batch["name"]}


def test_inside_the_trainer(folder):
    trainer = L.Trainer(
        max_steps=3,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model, data = Stylizer(), Pictures(images=str(folder), resolution=32, batch_size=2)
    trainer.fit(model, data)
    assert model.seen == [{"iteration": i, "index": i} for i in range(3)]
    results = trainer.predict(model, data)
    assert sorted(n for r in results for n in r["name"]) == ["a", "a_png", "b", "c"]
    assert results[-1]["image"][0].max() == -1
