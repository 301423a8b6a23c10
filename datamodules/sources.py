"""Where a picture comes from: an image file, a file of a folder, or a scene of the procedural world."""

import os
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.files import read_text, same_file
from lightning_styles.imaging import find_images, image_size, read_image
from lightning_styles.prompts import MOST_LETTERS

MOST_SCENES = 1_000_000
_SCENE = re.compile(r"scene:(?P<kind>[a-z_]+)/(?P<first>\d+)(-(?P<last>\d+))?(\?seed=(?P<seed>\d+))?")


@dataclass(frozen=True)
class Source:
    """One picture that can be loaded.

    Attributes:
        name: unique in its list, without suffix.
        path: image file; None for a scene.
        from_folder: a broken file is then skipped with a warning instead of ending the run.
        kind: kind of scene; "" for a file.
        seed: seed of the scene.
        index: index of the scene.
    """

    name: str
    path: Path | None = None
    from_folder: bool = False
    kind: str = ""
    seed: int = 0
    index: int = 0

    def size(self, resolution: int | None) -> tuple[int, int]:
        """(H, W) of the picture that `load` returns, without decoding it."""
        if self.path is not None:
            return image_size(self.path, short_side=resolution)
        return _needed(resolution), _needed(resolution)

    def load(self, resolution: int | None, style: str = "photo") -> Tensor:
        """(3, H, W) in [-1, 1] with `resolution` px on the shorter side; None keeps a file's own size.

        `style` is the style that a scene is drawn in; files have their own.
        """
        if self.path is not None:
            return read_image(self.path, short_side=resolution)
        from datamodules import scenes

        drawn = scenes.sample_scenes(self.seed, [self.index], kind=self.kind)
        with torch.no_grad():
            return scenes.render(drawn, style, _needed(resolution))[0]

    def caption(self) -> str:
        """Text of the `.txt` file beside the picture, or what the scene shows (not its style), or ""."""
        if self.path is None:
            from datamodules import scenes

            (caption,) = scenes.captions(scenes.sample_scenes(self.seed, [self.index], kind=self.kind), "photo")
            return caption.removeprefix("a photo of ")
        beside = self.path.with_suffix(".txt")
        return read_text(beside, MOST_LETTERS, "the caption").strip() if os.path.isfile(beside) else ""


def find_sources(entries: str | list[str]) -> list[Source]:
    """Lists the pictures behind entries, each an image file, a folder or `scene:KIND/FIRST[-LAST][?seed=N]`.

    Names are file stems; where a stem is taken, the suffix is appended (`a.jpg` is "a", `a.png` after it
    "a_png"), and then a number. Scenes are `portrait_1000`, with `_seed1` for another seed than 0.

    Raises:
        UserError: an entry is missing, empty or malformed.
    """
    sources: list[Source] = []
    names = Names()
    for entry in [entries] if isinstance(entries, str) else entries:
        if entry.startswith("scene:"):
            sources += [scene for scene in _scenes(entry) if names.take(scene.name)]
        else:
            folder = Path(entry).is_dir()
            sources += [Source(names.of(path), path, from_folder=folder) for path in find_images(Path(entry))]
    if not sources:
        raise UserError("the list of images is empty; name at least one image file, folder or scene.")
    return sources


class Names:
    """Names of pictures, no two alike: not even where a disk takes small and capital letters for the same."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._numbers: Counter[str] = Counter()

    def take(self, name: str) -> bool:
        """Reserve a name; False if it is taken."""
        key = unicodedata.normalize("NFC", name).casefold()
        new = key not in self._taken
        self._taken.add(key)
        return new

    def of(self, path: Path) -> str:
        """A name for a file: its stem, or that with its suffix or a number."""
        for name in (path.stem, f"{path.stem}_{path.suffix[1:].lower()}"):
            if self.take(name):
                return name
        while True:
            self._numbers[path.stem] += 1
            name = f"{path.stem}_{self._numbers[path.stem] + 1}"
            if self.take(name):
                return name


def check_apart(sources: list[Source], folder: Path) -> None:
    """Raises UserError where results in `folder` would lie among the pictures of a folder, and be taken for such."""
    if any(same_file(parent, folder) for parent in {s.path.parent for s in sources if s.path and s.from_folder}):
        raise UserError(f"The results would lie in {folder} among the pictures themselves; write to another folder.")


def check_style(style: str) -> None:
    """Raises UserError unless the procedural world has this style."""
    from datamodules.scenes import STYLES

    if style not in STYLES:
        raise UserError(f"there is no style '{style}'; expected one of {', '.join(STYLES)}.")


def _scenes(entry: str) -> list[Source]:
    match = _SCENE.fullmatch(entry)
    if match is None:
        raise UserError(f"'{entry}' is no scene; expected scene:portrait/7 or scene:portrait/7-15?seed=1.")
    from datamodules import scenes

    kind, seed = match["kind"], int(match["seed"] or 0)
    if kind not in scenes.KINDS:
        raise UserError(f"'{entry}': there is no kind '{kind}'; expected one of {', '.join(scenes.KINDS)}.")
    first, last = int(match["first"]), int(match["last"] or match["first"])
    if last < first:
        raise UserError(f"'{entry}' is an empty range; the second number must not be smaller than the first.")
    if last - first >= MOST_SCENES:
        raise UserError(f"'{entry}' asks for {last - first + 1} scenes; expected at most {MOST_SCENES} at once.")
    suffix = f"_seed{seed}" if seed else ""
    return [Source(f"{kind}_{i}{suffix}", kind=kind, seed=seed, index=i) for i in range(first, last + 1)]


def _needed(resolution: int | None) -> int:
    if resolution is None:
        raise UserError("scenes have no size of their own; set resolution to a number of px.")
    return resolution
