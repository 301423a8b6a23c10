"""Names of pictures that no two share, in linear time; captions of a sensible size."""

import time
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from datamodules.sources import Names, check_apart, find_sources
from lightning_styles.errors import UserError


def test_no_two_names_are_alike_on_any_disk() -> None:
    composed, split = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    paths = ["a.jpg", "A.png", "a.png", "b/a.png", "c/a.png", "a_2.png", f"{composed}.png", f"{split}.jpg"]
    names = Names()
    found = [names.of(Path(path)) for path in paths]
    assert found == ["a", "A_png", "a_2", "a_3", "a_4", "a_2_png", composed, f"{split}_jpg"]


def test_a_scene_that_is_named_twice_is_taken_once() -> None:
    names = [source.name for source in find_sources(["scene:portrait/0-3", "scene:portrait/2-5"])]
    assert names == [f"portrait_{i}" for i in range(6)]


def test_twenty_thousand_names_take_no_time(tmp_path: Path) -> None:
    start = time.process_time()
    names = Names()
    assert len({names.of(Path(f"{i}/same.png")) for i in range(20_000)}) == 20_000
    entries = [f"scene:portrait/{i}" for i in range(5_000)]
    assert len(find_sources(entries)) == 5_000
    assert time.process_time() - start < 5


def test_results_do_not_lie_among_the_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="among the pictures themselves; write to another folder"):
        check_apart(find_sources(str(tmp_path)), tmp_path / "." / ".." / tmp_path.name)
    check_apart(find_sources(str(tmp_path)), tmp_path / "out")
    check_apart(find_sources(str(tmp_path / "a.png")), tmp_path)


def test_a_caption_of_any_size_is_read_or_refused(tmp_path: Path) -> None:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    (source,) = find_sources(str(tmp_path))
    assert source.caption() == ""
    (tmp_path / "a.txt").write_text(" a cat \n")
    assert source.caption() == "a cat"
    (tmp_path / "a.txt").write_bytes(b"x" * 10_000_000)
    with pytest.raises(UserError, match=r"the caption .*a.txt has 10,000,000 bytes; expected at most 10,000"):
        source.caption()
    name = "\u6f22" * 83 + "ab.png"  # .txt and .json beside it would be as long or longer
    Image.new("RGB", (16, 16)).save(tmp_path / name)
    (source,) = find_sources(str(tmp_path / name))
    assert source.caption() == ""
