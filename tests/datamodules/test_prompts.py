"""Prompts: where they come from, what their pictures are called, and who draws which."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch

from datamodules import Prompts, scenes
from datamodules.filters import apply_filter
from lightning_styles.errors import UserError


def batches(data, fn="predict", rank=0, world=1):
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), global_rank=rank, world_size=world)
    return list(getattr(data, f"{fn if fn != 'fit' else 'val'}_dataloader")())


def test_batches():
    data = Prompts(prompts=["A dog!", "two cats, caf\u00e9"], pictures_per_prompt=2, batch_size=3)
    first, second = batches(data)
    assert first["prompt"] == ["A dog!", "A dog!", "two cats, caf\u00e9"]
    assert first["name"] == ["000_a_dog_0", "000_a_dog_1", "001_two_cats_cafe_0"]
    assert first["group"].tolist() == [0, 0, 1]
    assert first["index"].tolist() == [0, 1, 2]
    assert first["group"].dtype == first["index"].dtype == torch.int64
    assert (second["name"], second["group"].tolist(), second["index"].tolist()) == (["001_two_cats_cafe_1"], [1], [3])


def test_names_are_unique_and_short():
    prompts = ["a dog", "A dog.", "\u732b", "../../etc/passwd\0", "word " * 40, "x" * 200]
    names = [name for batch in batches(Prompts(prompts=prompts)) for name in batch["name"]]
    assert names[:4] == ["000_a_dog", "001_a_dog", "002_prompt", "003_etc_passwd"]
    assert names[4:] == ["004_" + "_".join(["word"] * 12), "005_" + "x" * 60]


def test_file_with_comments(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeff# pets\r\na dog\r\n\r\n  a caf\u00e9 # at night\n#a cat\nscene:animal/2\n".encode())
    (batch,) = batches(Prompts(prompts=str(file), batch_size=8))
    scene = scenes.captions(scenes.sample_scenes(0, [2], kind="animal"), "photo")
    assert batch["prompt"] == ["a dog", "a caf\u00e9 # at night", *scene]


def test_shipped_file_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "prompts.txt").write_text("a dog\n")
    monkeypatch.setattr("lightning_styles.files.__file__", str(tmp_path / "lightning_styles" / "files.py"))
    assert Prompts(prompts="configs/prompts.txt").plan.prompts == (("", "a dog"),)


def test_scenes_stand_for_their_captions():
    expected = scenes.captions(scenes.sample_scenes(1, range(8), kind="portrait"), "photo")
    assert [text for _, text in Prompts(prompts="scene:portrait/0-7?seed=1").plan.prompts] == expected
    assert [text for _, text in Prompts(prompts=["a dog", "scene:portrait/0-7?seed=1"]).plan.prompts] == [
        "a dog",
        *expected,
    ]


@pytest.mark.parametrize("fn", ["validate", "test", "predict"])
def test_ranks_share_pictures(fn):
    data = Prompts(prompts=["a", "b", "c"], pictures_per_prompt=3, batch_size=2)
    shares = []
    for rank in range(2):
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), global_rank=rank, world_size=2)
        loader = data.val_dataloader() if fn == "validate" else getattr(data, f"{fn}_dataloader")()
        shares.append([i for batch in loader for i in batch["index"].tolist()])
    assert shares == [[0, 2, 4, 6, 8], [1, 3, 5, 7]]


def test_each_rank_validates_all_during_fit():
    data = Prompts(prompts=["a", "b", "c"])
    assert [len(batches(data, "fit", rank, 2)) for rank in range(2)] == [3, 3]


def test_twin():
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    assert torch.equal(Prompts(prompts=["a"], filter="posterize").twin(images), apply_filter(images, "posterize"))
    assert Prompts(prompts=["a"]).twin(images) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": "a photo of a dog"}, "no file 'a photo of a dog' with prompts; a prompt itself goes into a list"),
        ({"prompts": "dog " * 100}, "with prompts; a prompt itself goes into a list"),
        ({"prompts": "scene:teapot/1"}, "no kind 'teapot'"),
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": ["a dog", " "]}, "one of the prompts is empty"),
        ({"prompts": ["a"], "filter": "baroque"}, "no filter 'baroque'"),
        ({"prompts": ["a"], "pictures_per_prompt": 0}, "pictures_per_prompt is 0"),
        ({"prompts": ["a"], "batch_size": 0}, "batch_size is 0"),
    ],
)
def test_mistakes_are_told_at_once(arguments, message):
    with pytest.raises(UserError, match=message):
        Prompts(**arguments)


@pytest.mark.parametrize(
    ("content", "message"), [(b"\xff\xfe\x00", "is no UTF-8 text"), (b"# a\n\n", "holds no prompt")]
)
def test_files_without_prompts(tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Prompts(prompts=str(tmp_path / "prompts.txt"))


def test_inside_the_trainer():
    class Echo(L.LightningModule):
        def predict_step(self, batch, batch_idx):
            return batch

    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", enable_checkpointing=False, **quiet)
    seen = trainer.predict(Echo(), Prompts(prompts=["a dog", "a cat", "an owl"], batch_size=2))
    assert [batch["name"] for batch in seen] == [["000_a_dog", "001_a_cat"], ["002_an_owl"]]


def test_sets_are_drawn_one_after_the_other_and_keep_their_names() -> None:
    data = Prompts(prompts={"same": ["a dog"], "other": ["a lake", "a dog"]}, pictures_per_prompt=2)
    assert data.sets == ["same", "other"]
    drawn = [data.plan(i) for i in range(len(data.plan))]
    assert [one["set"] for one in drawn] == ["same"] * 2 + ["other"] * 4
    assert [one["prompt"] for one in drawn] == ["a dog"] * 2 + ["a lake"] * 2 + ["a dog"] * 2
    assert len({one["name"] for one in drawn}) == 6
