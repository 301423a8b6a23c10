"""Previews: when, what is on the strip, and that the run does not notice."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import EMA, Previews
from callbacks.previews import HEADER
from lightning_styles.imaging import read_image, read_settings
from tests.callbacks.toy import Toy, loader, trainer


def fit(folder, callbacks, steps=4, **changes):
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    model = Toy()
    trainer(folder, callbacks, steps, **changes).fit(model, loader())
    return model


def test_run_does_not_notice(tmp_path):
    plain = fit(tmp_path, [])
    after = np.random.rand(), random.random()
    watched = fit(tmp_path, [Previews(every_n_iterations=1)])
    assert watched.noise == plain.noise
    assert (np.random.rand(), random.random()) == after
    assert watched.modes == [True] * 4


def test_times_and_files(tmp_path):
    model = fit(tmp_path, [Previews(every_n_iterations=2)], steps=5)
    assert model.seen == [0, 2, 4, 5]
    names = [f"{i:06d}.png" for i in (0, 2, 4, 5)] + ["progress.webp"]
    assert sorted(p.name for p in (tmp_path / "previews").iterdir()) == names
    with Image.open(tmp_path / "previews" / "progress.webp") as animation:
        assert animation.n_frames == 4
        assert animation.size == (60, 20)


def test_strip_holds_source_result_and_amplified_difference(tmp_path):
    fit(tmp_path, [Previews(every_n_iterations=4, amplify=4.0)])
    path = tmp_path / "previews" / "000004.png"
    strip = read_image(path)
    assert strip.shape == (3, HEADER + 40, 90)
    for left, value in ((0, 0.0), (30, 0.4), (60, 4 * 0.4 - 1)):
        part = strip[:, HEADER:, left : left + 30]
        torch.testing.assert_close(part, torch.full_like(part, value), atol=0.5 / 127, rtol=0)
    settings = read_settings(path)
    assert settings["iteration"] == 4
    assert settings["result"] == [[30, HEADER, 60, HEADER + 20], [30, HEADER + 20, 60, HEADER + 40]]
    assert strip[:, :HEADER].min() < 0


def test_large_previews_shrink_and_keep_their_ratio(tmp_path, monkeypatch):
    monkeypatch.setattr(Toy, "preview", lambda self: {"result": torch.ones(1, 3, 100, 200)})
    fit(tmp_path, [Previews(every_n_iterations=4, max_size=50)])
    assert read_image(tmp_path / "previews" / "000004.png").shape == (3, HEADER + 25, 50)


def test_nan_is_reported_and_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Toy, "preview", lambda self: {"result": torch.full((1, 3, 20, 20), float("nan"))})
    fit(tmp_path, [Previews(every_n_iterations=4)])
    assert "holds NaN" in caplog.text
    assert (read_image(tmp_path / "previews" / "000004.png")[:, HEADER:] == -1).all()


def test_averaged_weights_are_shown(tmp_path):
    model = fit(tmp_path, [EMA(0.5), Previews(every_n_iterations=2)], steps=2)
    assert model.seen == pytest.approx([0, 0.5 * 0.5 + 0.5 * 2])
    assert float(model.weight) == 2


def test_resumed_run_continues_the_animation(tmp_path):
    first = trainer(tmp_path, [Previews(every_n_iterations=1)], steps=2)
    first.fit(Toy(), loader())
    first.save_checkpoint(tmp_path / "k.ckpt")
    model = Toy()
    second = trainer(tmp_path, [Previews(every_n_iterations=1, animation="gif")], steps=4)
    second.fit(model, loader(), ckpt_path=str(tmp_path / "k.ckpt"))
    assert model.seen == [3, 4]
    with Image.open(tmp_path / "previews" / "progress.gif") as animation:
        assert animation.n_frames == 5


def test_tensorboard(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    fit(tmp_path, [Previews(every_n_iterations=4)], logger=logger)
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [e.step for e in events.Images("preview")] == [0, 4]
    assert (tmp_path / "run" / "previews" / "000004.png").is_file()
