"""Which photo belongs to which stylised twin: files, folders matched by name, filters, the procedural world."""

import logging
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from datamodules.filters import apply_filter, check_filter
from datamodules.sources import Source, check_style, find_sources
from lightning_styles.errors import UserError
from lightning_styles.files import places

log = logging.getLogger(__name__)

ASPECT = 0.01  # by which the aspect ratios of a pair may differ: rounding to whole px, no other crop

Size = tuple[int, int]


@dataclass(frozen=True)
class Pair:
    """A photo and where its twin comes from.

    Attributes:
        content: the photo.
        style: the twin's file; None where it is made.
        filter: the filter that makes it; "" for none.
        scene_style: the style that it is drawn in; "" for none.
    """

    content: Source
    style: Source | None = None
    filter: str = ""
    scene_style: str = ""

    def sizes(self, resolution: int) -> tuple[Size, Size]:
        """(H, W) of the photo and of the twin as they lie on disk; scenes are drawn as large as they are needed."""
        content = self.content.size(resolution if self.content.path is None else None)
        return content, self.style.size(None) if self.style else content

    def check(self, resolution: int) -> None:
        """Warns of pictures that are far too small.

        Raises:
            UserError: a picture cannot be read, or the two do not show the same section.
        """
        sizes = self.sizes(resolution)
        (height, width), (style_height, style_width) = sizes
        if abs(width * style_height / (height * style_width) - 1) > ASPECT:
            raise UserError(
                f"the pictures of the pair '{self.content.name}' differ in shape: {width} x {height} px (content) and "
                f"{style_width} x {style_height} px (style); crop one of them to the section that the other shows."
            )
        for source, size in zip((self.content, self.style), sizes, strict=True):
            if source is not None and 2 * min(size) < resolution:
                log.warning(
                    "'%s' is %d x %d px and is enlarged to %d px: expect a blurred result.",
                    source.path, size[1], size[0], resolution,
                )  # fmt: skip

    def load(self, resolution: int) -> tuple[Tensor, Tensor]:
        """Photo and twin, (3, H, W) in [-1, 1] each, of one size with `resolution` px on the shorter side."""
        if self.content.path is None:
            content = self.content.load(resolution)
        else:
            content = self.content.load(None)
            content = _resized(content, working_size((content.shape[-2], content.shape[-1]), resolution))
        if self.style is not None:
            return content, _resized(self.style.load(None), (content.shape[-2], content.shape[-1]))
        if self.filter:
            return content, apply_filter(content[None], self.filter)[0]
        return content, self.content.load(resolution, self.scene_style)


def find_pairs(
    content: str, *, style: str | None = None, filter: str | None = None, scene_style: str | None = None
) -> list[Pair]:
    """Lists the pairs; arguments as those of `Pairs`.

    Raises:
        UserError: not exactly one of the last three is given, or a picture has no partner.
    """
    given = {"style": style, "filter": filter, "scene_style": scene_style}
    chosen = [name for name, value in given.items() if value]
    if len(chosen) != 1:
        raise UserError(
            f"{' and '.join(chosen) or 'none of style, filter and scene_style'} given for the twins of {content}; "
            "expected exactly one of style (a file or folder), filter and scene_style."
        )
    photos = _sources(content, "content")
    if filter:
        check_filter(filter)
        return [Pair(photo, filter=filter) for photo in photos]
    if scene_style:
        check_style(scene_style)
        if not content.startswith("scene:"):
            raise UserError(f"scene_style needs scenes, and content is {content}; give style or filter for files.")
        return [Pair(photo, scene_style=scene_style) for photo in photos]
    assert style
    if style.startswith("scene:") or content.startswith("scene:"):
        raise UserError("style pairs files with files; for scenes give filter or scene_style instead.")
    return _matched(content, photos, style, _sources(style, "style"))


def _matched(content: str, photos: list[Source], style: str, twins: list[Source]) -> list[Pair]:
    """Two files, whatever their names are, or the files of two folders by stem."""
    in_folder = photos[0].from_folder, twins[0].from_folder
    if in_folder == (False, False):
        return [Pair(photos[0], twins[0])]
    if in_folder != (True, True):
        file, folder = (style, content) if in_folder[0] else (content, style)
        raise UserError(f"{file} is one picture and {folder} is a folder; give two files or two folders.")
    by_name = {twin.name: twin for twin in twins}
    names = {photo.name for photo in photos}
    left_over = [
        f"{folder} has no partner for {', '.join(lonely[:3])}{f' and {len(lonely) - 3} more' * (len(lonely) > 3)}"
        for folder, lonely in (
            (style, [photo.name for photo in photos if photo.name not in by_name]),
            (content, [twin.name for twin in twins if twin.name not in names]),
        )
        if lonely
    ]
    if left_over:
        raise UserError(f"{'; '.join(left_over)}: both pictures of a pair need the same file name.")
    return [Pair(photo, by_name[photo.name]) for photo in photos]


def _sources(entry: str, key: str) -> list[Source]:
    """The pictures of an entry, also among the files that ship beside the package."""
    if not entry:
        raise UserError(f"{key} is empty; a pair needs two pictures: name a file or a folder.")
    if entry.startswith("scene:"):
        return find_sources(entry)
    found = next((place for place in places(entry) if place.exists()), None)
    if found is None:
        raise UserError(f"a pair needs two pictures, and {key} '{entry}' does not exist; name a file or a folder.")
    return find_sources(str(found))


def working_size(size: Size, resolution: int) -> Size:
    """(H, W) of a picture once its shorter side is `resolution` px."""
    height, width = (round(resolution * side / min(size)) for side in size)
    return height, width


def _resized(picture: Tensor, size: Size) -> Tensor:
    return F.interpolate(picture[None], size=size, mode="bilinear", antialias=True, align_corners=False)[0]
