"""ScenePool: drawn once, shown in shuffled passes, a pure function of its seed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from datamodules import scenes
from datamodules.scene_pool import ScenePool
from datamodules.textures import random_textures
from lightning_styles import noise
from lightning_styles.errors import UserError


def make(folder: Path, **settings: Any) -> ScenePool:
    recipe = {"kinds": {"portrait": 4, "animal": 2}, "styles": {"photo": 0.5, "cartoon": 0.5}, "size": 64}
    pool = ScenePool(**(recipe | {"batch_size": 6, "cache": str(folder)} | settings))
    pool.setup("fit")
    return pool


def test_a_pass_shows_every_picture_once_with_its_own_labels(tmp_path: Path) -> None:
    batch = make(tmp_path).collate(list(range(6)))
    assert sorted(batch["row"].tolist()) == list(range(6))
    for i, caption in enumerate(batch["caption"]):
        style = ("photo", "cartoon")[int(batch["attributes"]["style"][i])]
        animal = batch["attributes"]["animal_species"][i] >= 0
        drawn = scenes.sample_scenes(0, [int(batch["identity"][i])], kind="animal" if animal else "portrait")
        assert scenes.captions(drawn, style) == [caption]
        assert (batch["image"][i] - scenes.render(drawn, style, 64)[0]).abs().max() <= 1 / 255 + 1e-6
        assert (batch["segmentation"][i].max() >= 14) == bool(animal)  # the portraits have parts 0 to 13


def test_scenes_are_described_and_new_ones_with_them(tmp_path: Path) -> None:
    pool = make(tmp_path, kinds={"portrait": 5}, described=3)
    first, second = pool.collate([0, 1]), pool.collate([2, 3])
    drawn = scenes.sample_scenes(0, first["identity"].tolist())
    assert first["latents"].shape == (5, 81)
    assert torch.equal(first["latents"][:2], scenes.latents(drawn))
    assert torch.equal(first["features"][:2], scenes.features(drawn))
    described = torch.cat([first["latents"], second["latents"]])
    assert len(described.unique(dim=0)) == 10
    for settings in ({}, {"kinds": {"portrait": 5}, "views": 2}):
        with pytest.raises(UserError, match=r"data\.described needs one kind"):
            make(tmp_path, described=0, **settings)


def test_the_file_is_reused_and_another_recipe_has_another_file(tmp_path: Path) -> None:
    first = make(tmp_path)
    (file,) = tmp_path.iterdir()
    written = file.stat().st_mtime_ns
    again = make(tmp_path)
    assert file.stat().st_mtime_ns == written
    assert torch.equal(first.pool["image"], again.pool["image"])
    make(tmp_path, seed=1)
    assert len(list(tmp_path.iterdir())) == 2


def test_textures_replace_a_share_of_the_batch(tmp_path: Path) -> None:
    plain, textured = make(tmp_path).collate(list(range(6))), make(tmp_path, texture_share=0.5).collate(list(range(6)))
    assert torch.equal(plain["image"][3:], textured["image"][3:])
    assert not torch.equal(plain["image"][:3], textured["image"][:3])


def test_focus_weighs_the_pixels_of_a_part_and_no_texture(tmp_path: Path) -> None:
    pool = make(tmp_path, texture_share=0.5, focus={"portrait/eyes": 5.0, "animal/background": 2.0})
    batch = pool.collate(list(range(6)))
    eyes = scenes.LABELS["portrait"].index("eyes")
    background = len(scenes.LABELS["portrait"]) + scenes.LABELS["animal"].index("background")
    segmentation, importance = batch["segmentation"][3:], batch["importance"][3:, 0]
    assert (importance[segmentation == eyes] == 5).all()
    assert (importance[segmentation == background] == 2).all()
    assert (importance[(segmentation != eyes) & (segmentation != background)] == 1).all()
    assert (batch["importance"][:3] == 1).all()
    assert importance.max() > 1
    with pytest.raises(UserError, match="no part 'portrait/teeth'"):
        make(tmp_path, focus={"portrait/teeth": 5.0})


def test_random_textures_have_the_range_and_follow_their_generator() -> None:
    first, again = (random_textures(8, 32, noise.generator(0, "t")) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == (8, 3, 32, 32)
    assert first.abs().max() <= 1
    assert first.std((1, 2, 3)).min() > 0.01


def test_shares_must_add_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"add up to 0.9, expected 1"):
        make(tmp_path, styles={"photo": 0.9})
