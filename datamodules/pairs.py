"""Pairs: crops of a photo and of its stylised twin, for methods that learn a style from the difference of the two."""

import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.pair_sources import Pair, Size, find_pairs, working_size
from datamodules.pictures import SIDES, Pictures
from datamodules.prompts import Prompts
from datamodules.sampling import check_loading, draw, shuffled, train_loader
from datamodules.sources import Source
from lightning_styles.batches import EVALUATION, PHOTOS, PROMPTS
from lightning_styles.errors import UserError, at_least
from lightning_styles.metrics.geometry import DISPLACED, displacement

log = logging.getLogger(__name__)
LOOKED_AT = 32  # pairs whose twins are compared with their photos before training
PLACES = 16  # that a random crop of one picture can have, so that what is made of crops can be kept
NO_SUBJECT = re.compile(r"\W*((an?|the|one|photo|photograph|picture|image|of|in|with)\b\W*)*", re.I)


class Pairs(L.LightningDataModule):
    """Square crops of photos and of their stylised twins; sample i is a pure function of (seed, i).

    A pair is two files, two files of one stem in two folders, or a photo and what a filter or the procedural world
    makes of it. Pairs come in shuffled passes. Both pictures are resized to `resolution` px on the photo's shorter
    side (bilinear, antialiased) and get the same crop and the same mirroring. A batch holds

    - `content`, `style`: (B, 3, resolution, resolution) in [-1, 1];
    - `prompt`: list of str, of the photo;
    - `content_size`, `style_size`: (B, 2) int64, (height, width) of the files in px, of scenes that of the drawing;
    - `crop`: (B, 2) int64, (top, left) of the crop in px of the resized picture; of a mirrored sample, in the mirrored
      picture;
    - `name`: list of str; `row`: list of str, the same for two samples only if all of their pixels are.

    Args:
        content: the photos: an image file, a folder, or scenes such as `scene:portrait/0-3?seed=1`.
        prompt: what the photo shows, e.g. "A photo of a sbu dog"; of several one is drawn for each sample.
            `{caption}` in it stands for a scene's own caption, or for the text of the `.txt` file beside a photo.
        style: the twins: a file, or a folder with the same stems as the photos' folder.
        filter: makes the twins from the photos: posterize, cartoon, painting or sketch.
        scene_style: style that the scenes' exact twins are drawn in, e.g. cartoon.
        resolution: height and width in px.
        crop: in the middle, or at one of 16 places along the longer side at random.
        flip: mirror every sample (as the official code of PairCustomization does), none, or every other at random.
        prompts: what `validate`, `test` and `predict` draw: a text file with one prompt in a line, a list, or sets; see
            `Prompts`. The pair's filter makes the exact twins for `test`.
        pictures_per_prompt: pictures drawn for each of them.
        photos: what they stylize instead: image files, folders or scenes; see `Pictures`. The pair's `scene_style`
            makes the exact twins of scenes.
        photo_caption: what photos show, such as "a dog", that have no `.txt` file beside them and are no scenes.
        eval_batch_size: of prompts or photos.
        batch_size: samples per device and iteration.
        seed: seed of order, prompts, crops and mirroring.
        num_workers: processes that read and crop.
    """

    gives = {
        "fit": ("content", "style", "prompt", "content_size", "style_size", "crop", "name", "row"),
        **dict.fromkeys(EVALUATION, (*PHOTOS, *PROMPTS)),  # the ones or the others, as is set
    }

    def __init__(
        self,
        *,
        content: str,
        prompt: str | list[str],
        style: str | None = None,
        filter: str | None = None,
        scene_style: str | None = None,
        resolution: int = 512,
        crop: Literal["center", "random"] = "center",
        flip: Literal["never", "always", "random"] = "always",
        prompts: str | list[str] | dict[str, list[str]] | None = None,
        pictures_per_prompt: int = 1,
        photos: str | list[str] | None = None,
        photo_caption: str = "",
        eval_batch_size: int = 1,
        batch_size: int = 1,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        unlogged = ["batch_size", "num_workers", "eval_batch_size", "prompts", "pictures_per_prompt", "photos"]
        self.save_hyperparameters(logger=False, ignore=[*unlogged, "photo_caption"])
        check_loading(batch_size, num_workers)
        at_least(1, eval_batch_size=eval_batch_size, pictures_per_prompt=pictures_per_prompt)
        if resolution not in SIDES:
            raise UserError(f"resolution is {resolution}; expected {SIDES[0]} to {SIDES[-1]} px.")
        prompt_list = [prompt] if isinstance(prompt, str) else list(prompt)
        _check_prompts(prompt_list)
        self.batch_size = batch_size
        self.num_workers = num_workers
        pairs = find_pairs(content, style=style, filter=filter, scene_style=scene_style)
        for pair in pairs:
            pair.check(resolution)
        if any("{caption}" in text for text in prompt_list):
            _check_captions(pairs)
        self.crops = PairCrops(tuple(pairs), tuple(prompt_list), resolution, seed, crop == "random", flip)
        self.new: Prompts | Pictures | None = None
        if prompts is not None and photos is not None:
            raise UserError("data.prompts and data.photos are both set; name what is to be drawn by one of them.")
        if prompts is not None:
            self.new = Prompts(
                prompts=prompts, pictures_per_prompt=pictures_per_prompt, batch_size=eval_batch_size, filter=filter
            )
        elif photos is not None:
            self.new = Pictures(
                images=photos, resolution=resolution, batch_size=eval_batch_size, twin_style=scene_style,
                captions=photo_caption,
            )  # fmt: skip

        if self.new is not None:
            self.gives = self.gives | dict.fromkeys(EVALUATION, self.new.gives["predict"])

    @property
    def views(self) -> int:
        """How many different values `row` can have."""
        mirrors = 2 if self.crops.flip == "random" else 1
        return mirrors * sum(self.crops.places(pair.sizes(self.crops.resolution)[0]) for pair in self.crops.pairs)

    def setup(self, stage: str) -> None:
        """Looks, before networks are built, whether twins show things where their photos do, and new pictures exist."""
        if stage == "fit":
            warn_of_displaced(self.crops.pairs, self.crops.resolution)
        else:
            self._new()

    def train_dataloader(self) -> DataLoader[Any]:
        return train_loader(
            self.trainer,  # type: ignore[arg-type]
            self.crops,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )

    def val_dataloader(self) -> Any:
        return [] if self.new is None else self._new().val_dataloader()

    def test_dataloader(self) -> Any:
        return self._new().test_dataloader()

    def predict_dataloader(self) -> Any:
        return self._new().predict_dataloader()

    @property
    def sources(self) -> list[Source]:
        """What `predict` draws."""
        return [] if self.new is None else self.new.sources

    @property
    def sets(self) -> list[str]:
        """Names of the sets of what is drawn, which are measured apart; [""] for a single one."""
        return getattr(self.new, "sets", [""])

    def twin(self, images: Tensor) -> Tensor | None:
        """The exact twins of pictures (B, 3, H, W) drawn from prompts; None where no filter makes them."""
        return self.new.twin(images) if isinstance(self.new, Prompts) else None

    def _new(self) -> Prompts | Pictures:
        if self.new is None:
            raise UserError("There is nothing new to draw: set data.prompts or data.photos.")
        self.new.trainer = self.trainer
        return self.new


@dataclass(frozen=True)
class PairCrops:
    """Sample i: the next pair of a shuffled pass, both pictures cropped and perhaps mirrored alike.

    Attributes:
        pairs: the pairs.
        prompts: of which each sample draws one.
        resolution: side of the crop in px.
        seed: seed of order, prompts, crops and mirroring.
        random_crop: at a random place instead of the middle.
        flip: "never", "always" or "random".
    """

    pairs: tuple[Pair, ...]
    prompts: tuple[str, ...]
    resolution: int
    seed: int
    random_crop: bool
    flip: str

    def places(self, size: Size) -> int:
        """Number of crops that a picture of this (H, W) can give."""
        free = max(working_size(size, self.resolution)) - self.resolution
        return min(PLACES, free + 1) if self.random_crop else 1

    def __call__(self, i: int) -> dict[str, Any]:
        pair = self.pairs[shuffled(self.seed, i, len(self.pairs))]
        content, style, content_size, style_size = loaded(pair, self.resolution)
        top, left = self._corner(i, content_size)
        mirrored = self.flip == "always" or (self.flip == "random" and draw(self.seed, i, "flip").random() < 0.5)
        rows, columns = slice(top, top + self.resolution), slice(left, left + self.resolution)
        crops = [picture[:, rows, columns].float() / 127.5 - 1 for picture in (content, style)]
        if mirrored:
            crops = [crop.flip(-1) for crop in crops]
            left = content.shape[-1] - self.resolution - left
        prompt = draw(self.seed, i, "prompt").choice(self.prompts)
        if "{caption}" in prompt:
            prompt = prompt.replace("{caption}", pair.content.caption())
        return {
            "content": crops[0],
            "style": crops[1],
            "prompt": prompt,
            "content_size": torch.tensor(content_size),
            "style_size": torch.tensor(style_size),
            "crop": torch.tensor([top, left]),
            "name": pair.content.name,
            "row": f"{pair.content.name}/{top},{left}{'/mirrored' if mirrored else ''}",
        }

    def _corner(self, i: int, size: Size) -> tuple[int, int]:
        """(top, left) of the crop before mirroring; the places of a random one are evenly spaced, ends included."""
        free = [side - self.resolution for side in working_size(size, self.resolution)]
        if not self.random_crop:
            return free[0] // 2, free[1] // 2
        count = self.places(size)
        place = draw(self.seed, i, "crop").randrange(count)
        top, left = (round(place * n / max(1, count - 1)) for n in free)
        return top, left


class Loaded(NamedTuple):
    """Both pictures of a pair, (3, H, W) uint8, and the (height, width) of their files."""

    content: Tensor
    style: Tensor
    content_size: Size
    style_size: Size


@lru_cache(maxsize=32)
def loaded(pair: Pair, resolution: int) -> Loaded:
    """What `pair` holds, the last ones kept: 8 bits hold what the files held in a quarter of the memory."""
    content, style = (((x + 1) * 127.5).round().to(torch.uint8) for x in pair.load(resolution))
    return Loaded(content, style, *pair.sizes(resolution))


def warn_of_displaced(pairs: tuple[Pair, ...], resolution: int) -> None:
    """One warning for the twins, of the first 32, that are files and whose lines lie elsewhere than their photos'."""
    found = {}
    for pair in [pair for pair in pairs if pair.style is not None][:LOOKED_AT]:
        content, style = (x[None].float() / 127.5 - 1 for x in loaded(pair, resolution)[:2])
        found[pair.content.name] = displacement(content, style).item()
    displaced = [name for name, share in found.items() if share > DISPLACED]
    if displaced:
        worst = max(displaced, key=lambda name: found[name])
        log.warning(
            "the twins of %d of %d photos have their lines elsewhere, that of '%s' by %.1f %% of its side: the style "
            "will change shapes too, or stay weak. Align them, or give several pairs.",
            len(displaced), len(found), worst, 100 * found[worst],
        )  # fmt: skip


def _check_prompts(prompts: list[str]) -> None:
    """Refuse prompts that name no subject: training would tie the photo to no words."""
    if not prompts:
        raise UserError('prompt is an empty list; say what the photo shows, e.g. "A photo of a dog".')
    for prompt in prompts:
        if NO_SUBJECT.fullmatch(prompt):
            raise UserError(f'prompt "{prompt}" names no subject; say what the photo shows, e.g. "A photo of a dog".')


def _check_captions(pairs: list[Pair]) -> None:
    for source in (pair.content for pair in pairs):
        if source.path is not None and not source.caption():
            raise UserError(
                f"the prompt quotes {{caption}}, and {source.path} has none; write it into "
                f"{source.path.with_suffix('.txt').name} beside the picture, or name the subject in the prompt."
            )
