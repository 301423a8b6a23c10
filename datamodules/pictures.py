"""Pictures: the photos that a method stylizes, from files, folders or the procedural world."""

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from datamodules.sampling import check_loading, eval_shard, train_loader
from datamodules.sources import Source, check_style, find_sources
from lightning_styles.batches import EVALUATION, PHOTOS
from lightning_styles.errors import UserError

# Its advice is followed: each worker takes its own share of the batches.
warnings.filterwarnings("ignore", message=".*`IterableDataset` has `__len__` defined.*")
log = logging.getLogger(__name__)
T = TypeVar("T")
SIDES = range(16, 8193)  # that pictures can be resized to, in px


class Pictures(L.LightningDataModule):
    """Pictures to stylize, each once; broken files of a folder are named and skipped.

    In `fit` the loader only counts: a batch is `{"iteration": int, "index": int}`, and a method that works
    on pictures takes them once from `pictures()`. In `validate`, `test` and `predict` a batch holds pictures
    of one size: `image` (B, 3, H, W) in [-1, 1], `name` and `caption` (lists of str), `index` (B,) int64,
    and, where the exact answer is known, `twin` (B, 3, H, W). Ranks share the pictures and none is repeated.

    Args:
        images: image files, folders, or scenes such as `scene:portrait/1000-1015?seed=1`; one or a list.
        resolution: shorter side in px, aspect ratio kept; null keeps the files' own size.
        batch_size: pictures of equal size that go through the method together.
        twin_style: style in which each scene's exact answer is drawn, e.g. cartoon; null for none.
        num_workers: processes that read files.
        captions: caption of every picture that has none in a `.txt` file beside it and is no scene.
    """

    gives = {"fit": ("iteration", "index"), **dict.fromkeys(EVALUATION, PHOTOS)}

    def __init__(
        self,
        *,
        images: str | list[str],
        resolution: int | None = 512,
        batch_size: int = 1,
        twin_style: str | None = None,
        num_workers: int = 0,
        captions: str = "",
    ) -> None:
        super().__init__()
        # Not logged: the method may have settings of the same name. How many at once changes no picture.
        self.save_hyperparameters(logger=False, ignore=["batch_size", "num_workers"])
        check_loading(batch_size, num_workers)
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.reader = Reader(find_sources(images), resolution, twin_style=twin_style, captions=captions)

    @property
    def sources(self) -> list[Source]:
        """What `predict` stylizes."""
        return self.reader.sources

    def pictures(self) -> list[dict[str, Any]]:
        """Every picture, loaded: dicts of `image` (3, H, W), `name`, `caption`, `index` and perhaps `twin`.

        Raises:
            UserError: a file that was named alone is broken, or no picture of a folder could be read.
        """
        count = len(self.reader.sources)
        whole = list(self.reader.read(range(count)))
        if not whole:
            raise UserError(f"none of the {count} pictures could be read; see the warnings above.")
        return whole

    def train_dataloader(self) -> DataLoader[Any]:
        """Counts the iterations that are left."""
        world = self.trainer.world_size  # type: ignore[union-attr]
        return train_loader(
            self.trainer,  # type: ignore[arg-type]
            lambda i: {"iteration": i // world, "index": i},
            batch_size=1,
            collate=lambda batch: batch[0],
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader()

    def test_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self._eval_loader()

    def _eval_loader(self) -> DataLoader[Any]:
        shard = eval_shard(self.trainer, len(self.reader.sources))
        groups = self.reader.groups(shard, self.batch_size)
        return DataLoader(_Batches(self.reader, groups), batch_size=None, num_workers=self.num_workers)


class Reader:
    """Reads sources, and names and skips the broken files of folders.

    Raises:
        UserError: settings that no source can follow, or a file named alone that is no picture by its header.
    """

    def __init__(
        self,
        sources: list[Source],
        resolution: int | None,
        *,
        style: str = "photo",
        twin_style: str | None = None,
        captions: str = "",
    ) -> None:
        if resolution is not None and resolution not in SIDES:
            raise UserError(f"resolution is {resolution}; expected {SIDES[0]} to {SIDES[-1]} px.")
        if resolution is None and any(source.path is None for source in sources):
            raise UserError("resolution is null, but scenes have no size of their own; set it in px.")
        if any(source.path is None for source in sources):
            check_style(style)
        if twin_style is not None:
            check_style(twin_style)
        self.sources = sources
        self.resolution = resolution
        self.style = style
        self.twin_style = twin_style
        self.captions = captions
        self.skipped: set[str] = set()
        for source in sources:
            if source.path is not None and not source.from_folder:
                source.size(resolution)

    def read(self, indices: Iterable[int]) -> Iterator[dict[str, Any]]:
        """The pictures of these sources that are whole."""
        for i in indices:
            image = self._attempt(i, lambda source: source.load(self.resolution, self.style))
            if image is not None:
                yield self._picture(i, image)

    def groups(self, indices: Iterable[int], batch_size: int) -> list[list[int]]:
        """Indices of pictures of one size, at most batch_size together, in the order of their first one."""
        if batch_size == 1:
            return [[i] for i in indices]
        alike: dict[tuple[tuple[int, int], bool], list[list[int]]] = {}
        for i in indices:
            size = self._attempt(i, lambda source: source.size(self.resolution))
            if size is None:
                continue
            groups = alike.setdefault((size, self.sources[i].path is None), [[]])
            if len(groups[-1]) == batch_size:
                groups.append([])
            groups[-1].append(i)
        return sorted((group for groups in alike.values() for group in groups), key=lambda group: group[0])

    def _picture(self, i: int, image: Tensor) -> dict[str, Any]:
        source = self.sources[i]
        caption = source.caption() or self.captions
        picture = {"image": image, "name": source.name, "caption": caption, "index": i}
        if self.twin_style is not None and source.path is None:
            picture["twin"] = source.load(self.resolution, self.twin_style)
        return picture

    def _attempt(self, i: int, action: Callable[[Source], T]) -> T | None:
        """Does something with source i; None, and one warning, if it is a broken file of a folder."""
        source = self.sources[i]
        if source.name in self.skipped:
            return None
        try:
            return action(source)
        except UserError as error:
            if not source.from_folder:
                raise
            self.skipped.add(source.name)
            log.warning("skipped: %s", error)
            return None


class _Batches(IterableDataset[dict[str, Any]]):
    """Whole batches, read as they are needed; an iterable may come out shorter where files are broken."""

    def __init__(self, reader: Reader, groups: list[list[int]]) -> None:
        self.reader = reader
        self.groups = groups

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        mine = self.groups if worker is None else self.groups[worker.id :: worker.num_workers]
        for group in mine:
            whole = list(self.reader.read(group))
            if whole:
                yield collate_pictures(whole)

    def __len__(self) -> int:
        return len(self.groups)


def collate_pictures(pictures: list[dict[str, Any]]) -> dict[str, Any]:
    """Dicts of one picture each, all of one size, to the batch that methods expect."""
    batch: dict[str, Any] = {
        "image": _stack(pictures, "image"),
        "name": [picture["name"] for picture in pictures],
        "caption": [picture["caption"] for picture in pictures],
        "index": torch.tensor([picture["index"] for picture in pictures], dtype=torch.int64),
    }
    if all("twin" in picture for picture in pictures):
        batch["twin"] = _stack(pictures, "twin")
    return batch


def _stack(pictures: list[dict[str, Any]], key: str) -> Tensor:
    return torch.stack([picture[key] for picture in pictures])
