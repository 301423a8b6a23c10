"""ImageWriter: full-size files, settings inside, finished pictures are skipped and others made again."""

import pytest
import torch

from callbacks import ImageWriter
from lightning_styles.errors import UserError
from lightning_styles.imaging import read_image, read_settings
from tests.callbacks.toy import Toy, trainer


def batches():
    values = {"a": -0.5, "b": 0.0, "c": 0.25}
    pictures = {name: torch.full((3, 20, 30), value) for name, value in values.items()}
    names = [["a", "b"], ["c"]]
    ready = [{"image": torch.stack([pictures[n] for n in group]), "name": group} for group in names]
    return torch.utils.data.DataLoader(ready, batch_size=None)


def predict(folder, shift=0.0, **arguments):
    model = Toy(shift=shift)
    run = trainer(folder, [ImageWriter(str(folder / "out"), **arguments)])
    run.predict(model, batches(), return_predictions=False)
    return model.seen


def test_each_picture_alone_with_its_settings(tmp_path, capsys):
    assert predict(tmp_path, shift=0.5) == ["a", "b", "c"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.png", "b.png", "c.png"]
    image = read_image(tmp_path / "out" / "c.png")
    torch.testing.assert_close(image, torch.full((3, 20, 30), 0.75), atol=0.5 / 127, rtol=0)
    settings = read_settings(tmp_path / "out" / "c.png")
    assert settings["method"] == "Toy"
    assert len(settings["run"]) == 16
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-2].startswith("3 pictures in ")
    assert "batch 2, 32-true, 1 x cpu" in lines[-2]
    assert lines[-1] == f"results: {tmp_path / 'out'}"


def test_finished_are_skipped_and_half_written_made_again(tmp_path, capsys):
    predict(tmp_path)
    whole = (tmp_path / "out" / "b.png").read_bytes()
    (tmp_path / "out" / "b.png").write_bytes(whole[:-60])
    (tmp_path / "out" / "c.png").unlink()
    assert predict(tmp_path) == ["b", "c"]
    assert (tmp_path / "out" / "b.png").read_bytes() == whole
    assert "1 were there already" in capsys.readouterr().out
    assert predict(tmp_path) == []


def test_other_settings_are_made_again(tmp_path):
    predict(tmp_path)
    assert predict(tmp_path, shift=0.5) == ["a", "b", "c"]
    assert predict(tmp_path, shift=0.5) == []
    assert predict(tmp_path, shift=0.5, overwrite=True) == ["a", "b", "c"]


def test_foreign_files_stay(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_text("something else")
    with pytest.raises(UserError, match=r"out/a\.png' is there already and was not written by lightning_styles"):
        predict(tmp_path)
    assert (tmp_path / "out" / "a.png").read_text() == "something else"
    assert predict(tmp_path, overwrite=True) == ["a", "b", "c"]


def test_retrained_checkpoint_is_noticed(tmp_path):
    def run(weight):
        model = Toy()
        with torch.no_grad():
            model.weight.fill_(weight)
        saver = trainer(tmp_path, [])
        saver.strategy.connect(model)
        saver.save_checkpoint(tmp_path / "last.ckpt")

    def again():
        model = Toy()
        runner = trainer(tmp_path, [ImageWriter(str(tmp_path / "out"))])
        runner.predict(model, batches(), return_predictions=False, ckpt_path=str(tmp_path / "last.ckpt"))
        return model.seen

    run(1.0)
    assert again() == ["a", "b", "c"]
    assert again() == []
    run(2.0)
    assert again() == ["a", "b", "c"]


def test_nan_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="result for 'a' holds NaN"):
        predict(tmp_path, shift=float("nan"))
    assert not (tmp_path / "out" / "a.png").exists()
