"""SceneImages: pure in (seed, i), right labels, one render call for each kind and style."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch

from datamodules import SceneImages, scenes
from datamodules.scene_data import Item, Painter
from lightning_styles.errors import UserError


def data(**changes):
    arguments = {"kinds": ["portrait"], "styles": ["photo", "cartoon"], "size": 16, "batch_size": 6}
    return SceneImages(**{**arguments, **changes})


def batches(module, fn="fit", steps=2, start=0, rank=0, world=1):
    module.trainer = SimpleNamespace(
        max_steps=steps, global_step=start, global_rank=rank, world_size=world, state=SimpleNamespace(fn=fn)
    )
    loader = module.train_dataloader() if fn == "fit" else module.test_dataloader()
    return [module.on_after_batch_transfer(batch, 0) for batch in loader]


def test_labels_say_what_is_drawn():
    batch = batches(data(start=100))[1]
    assert batch["identity"].tolist() == [106, 107, 108, 109, 110, 111]
    assert batch["index"].tolist() == [6, 7, 8, 9, 10, 11]
    assert set(batch["style"].tolist()) == {0, 1}
    for row in range(6):
        scene = scenes.sample_scenes(0, [int(batch["identity"][row])], kind="portrait")
        style = ["photo", "cartoon"][batch["style"][row]]
        torch.testing.assert_close(batch["image"][row], scenes.render(scene, style, 16)[0])
        assert batch["caption"][row] == scenes.captions(scene, style)[0]


def test_resume_and_workers_give_the_same_pictures():
    straight = batches(data())
    resumed = batches(data(), start=1)
    in_workers = batches(data(num_workers=2))
    assert len(resumed) == 1
    assert torch.equal(resumed[0]["image"], straight[1]["image"])
    for a, b in zip(straight, in_workers, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert a["caption"] == b["caption"]


def test_ranks_draw_different_scenes():
    seen = [torch.cat([b["identity"] for b in batches(data(), rank=r, world=2)]) for r in range(2)]
    assert sorted(torch.cat(seen).tolist()) == list(range(24))


def test_counted_scenes_come_in_shuffled_passes_with_new_views():
    first, second = batches(data(count=6, new_views=True, styles=["photo"], start=50))
    assert sorted(first["identity"].tolist()) == sorted(second["identity"].tolist()) == list(range(50, 56))
    assert first["identity"].tolist() != second["identity"].tolist()
    order = [first["identity"].tolist().index(i) for i in second["identity"].tolist()]
    assert (first["image"][order] - second["image"]).abs().flatten(1).mean(1).min() > 0.01


def test_one_render_call_for_each_kind_and_style(monkeypatch):
    calls = []
    monkeypatch.setattr(
        scenes, "render", lambda s, style, size: calls.append(style) or torch.zeros(len(s), 3, size, size)
    )
    items = [Item(0, i % 2, 0, i, None) for i in range(8)]
    Painter(("portrait",), ("photo", "cartoon"), 16).draw(items, torch.arange(8))
    assert sorted(calls) == ["cartoon", "photo"]


def test_held_out_scenes_have_another_seed_and_are_shared():
    whole = batches(data(held_out_count=9), fn="test")
    assert torch.cat([b["identity"] for b in whole]).tolist() == list(range(9))
    scene = scenes.sample_scenes(1, [0], kind="portrait")
    torch.testing.assert_close(whole[0]["image"][0], scenes.render(scene, "photo", 16)[0])
    halves = [batches(data(held_out_count=9), fn="test", rank=r, world=2) for r in range(2)]
    assert [torch.cat([b["identity"] for b in h]).tolist() for h in halves] == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]


class Watcher(L.LightningModule):
    """Trains nothing; keeps the batches it was given."""

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


def test_inside_the_trainer():
    trainer = L.Trainer(
        max_steps=2,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    model = Watcher()
    trainer.fit(model, data())
    for seen, expected in zip(model.seen, batches(data()), strict=True):
        assert torch.equal(seen["image"], expected["image"])
        assert torch.equal(seen["style"], expected["style"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kinds": ["teapot"]}, "no kind of scene 'teapot'"),
        ({"styles": ["baroque"]}, "no style 'baroque'"),
        ({"styles": []}, "at least one entry"),
        ({"seed": 1}, "both 1"),
        ({"count": 0}, "count is 0"),
        ({"new_views": True}, "new_views needs count"),
    ],
)
def test_mistakes(changes, message):
    with pytest.raises(UserError, match=message):
        data(**changes)
