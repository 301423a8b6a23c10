"""SceneImages: endless drawn pictures with captions and labels, for training base models and style LoRAs."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import lightning as L
import torch
from torch.utils.data import DataLoader

from datamodules.sampling import Samples, ShardSampler, check_loading, draw, shuffled, train_loader
from datamodules.sources import check_style
from lightning_styles.errors import UserError, at_least, within


class Item(NamedTuple):
    """What one picture shows: positions in the lists of kinds and styles, and the scene's arguments."""

    kind: int
    style: int
    seed: int
    scene: int
    view: int | None


class SceneImages(L.LightningDataModule):
    """Scenes of the procedural world; sample i of a run is a pure function of (seed, i).

    A batch holds `image` (B, 3, size, size) in [-1, 1], `caption` (list of str) and, each (B,) int64, `style`
    and `kind` (positions in the lists below), `identity` (the scene's index) and `index` (i). Without workers
    the pictures are drawn on the training device; workers draw them on the CPU.

    Validation and test show held-out scenes, which come from another seed: by convention runs train on seed 0
    and every measurement uses seed 1.

    Args:
        kinds: kinds of scene, e.g. [portrait, animal, landscape].
        styles: styles to draw in, e.g. [photo, cartoon]; the order gives the labels.
        size: height and width in px.
        batch_size: pictures per device and iteration.
        seed: seed of the scenes and of the order.
        start: first scene.
        count: number of different scenes, shown in shuffled passes; null shows each scene once, without end.
        new_views: show each scene in another moment (pose, light, expression) on every pass; needs count.
        held_out_seed: seed of the scenes of validation and test.
        held_out_count: number of scenes of validation and test.
        num_workers: processes that draw.
    """

    gives = dict.fromkeys(("fit", "validate", "test"), ("image", "caption", "kind", "style", "identity", "index"))

    def __init__(
        self,
        *,
        kinds: list[str],
        styles: list[str],
        size: int,
        batch_size: int,
        seed: int = 0,
        start: int = 0,
        count: int | None = None,
        new_views: bool = False,
        held_out_seed: int = 1,
        held_out_count: int = 64,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        _check(kinds, styles)
        check_loading(batch_size, num_workers)
        at_least(1, held_out_count=held_out_count, count=count)
        at_least(0, start=start)
        within(16, 8192, size=size)
        if seed == held_out_seed:
            raise UserError(f"seed and held_out_seed are both {seed}; held-out scenes need another seed.")
        if new_views and count is None:
            raise UserError("new_views needs count: without it no scene is ever shown twice.")
        self.save_hyperparameters(logger=False, ignore=["batch_size", "num_workers"])
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.held_out_count = held_out_count
        self.plan = TrainingPlan(len(kinds), len(styles), seed, start, count, new_views)
        self.held_out_plan = HeldOutPlan(len(kinds), len(styles), held_out_seed)
        self.painter = Painter(tuple(kinds), tuple(styles), size, drawn_by_workers=num_workers > 0)

    def train_dataloader(self) -> DataLoader[Any]:
        return train_loader(
            self.trainer,  # type: ignore[arg-type]
            self.plan,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate=self.painter.collate,
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._held_out_loader()

    def test_dataloader(self) -> DataLoader[Any]:
        return self._held_out_loader()

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Draws what the workers have not drawn, on the device of the batch."""
        return batch if "image" in batch else self.painter.draw(batch["items"], batch["index"])

    def _held_out_loader(self) -> DataLoader[Any]:
        return DataLoader(
            Samples(self.held_out_plan, self.held_out_count),
            batch_size=self.batch_size,
            sampler=ShardSampler(self.trainer, self.held_out_count),
            num_workers=self.num_workers,
            collate_fn=self.painter.collate,
        )


@dataclass(frozen=True)
class TrainingPlan:
    """Sample i of a training run: random kind and style, the next scene."""

    kinds: int
    styles: int
    seed: int
    start: int = 0
    count: int | None = None
    new_views: bool = False

    def __call__(self, i: int) -> tuple[int, Item]:
        rng = draw(self.seed, i, "scene")
        kind, style = rng.randrange(self.kinds), rng.randrange(self.styles)
        scene = self.start + (i if self.count is None else shuffled(self.seed, i, self.count))
        view = i // self.count if self.new_views and self.count is not None else None
        return i, Item(kind, style, self.seed, scene, view)


@dataclass(frozen=True)
class HeldOutPlan:
    """Sample i of an evaluation: kinds in turn, then styles in turn, scene i."""

    kinds: int
    styles: int
    seed: int

    def __call__(self, i: int) -> tuple[int, Item]:
        return i, Item(i % self.kinds, i // self.kinds % self.styles, self.seed, i, None)


@dataclass(frozen=True)
class Painter:
    """Items to batches, with one call of the renderer for all pictures of one kind and style."""

    kinds: tuple[str, ...]
    styles: tuple[str, ...]
    size: int
    drawn_by_workers: bool = False

    def collate(self, samples: list[tuple[int, Item]]) -> dict[str, Any]:
        """A list of (i, item) to a batch, drawn here if workers draw, else with `items` still to be drawn."""
        index = torch.tensor([i for i, _ in samples])
        items = [item for _, item in samples]
        # Items stay Python numbers: on a GPU, reading them from tensors would wait for the device.
        return self.draw(items, index) if self.drawn_by_workers else {"items": items, "index": index}

    @torch.no_grad()
    def draw(self, items: list[Item], index: torch.Tensor) -> dict[str, Any]:
        """The batch of these items on the device of `index`."""
        from datamodules import scenes

        device = index.device
        image = torch.empty(len(items), 3, self.size, self.size, device=device)
        captions = [""] * len(items)
        for key, rows in _alike(items).items():
            kind, style, seed, view = key
            numbers = [items[row].scene for row in rows]
            drawn = scenes.sample_scenes(seed, numbers, kind=self.kinds[kind], view=view)
            image[rows] = scenes.render(drawn.to(device), self.styles[style], self.size)
            for row, caption in zip(rows, scenes.captions(drawn, self.styles[style]), strict=True):
                captions[row] = caption
        labels = torch.tensor([(item.kind, item.style, item.scene) for item in items]).to(device)
        kind, style, identity = labels.unbind(1)
        return {
            "image": image,
            "caption": captions,
            "kind": kind,
            "style": style,
            "identity": identity,
            "index": index,
        }


def _alike(items: list[Item]) -> dict[tuple[int, int, int, int | None], list[int]]:
    """Rows of the batch by (kind, style, seed, view): what one call can draw."""
    groups: dict[tuple[int, int, int, int | None], list[int]] = {}
    for row, item in enumerate(items):
        groups.setdefault((item.kind, item.style, item.seed, item.view), []).append(row)
    return groups


def _check(kinds: list[str], styles: list[str]) -> None:
    from datamodules.scenes import KINDS

    if not kinds or not styles:
        raise UserError("kinds and styles need at least one entry each.")
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"there is no kind of scene '{kind}'; expected some of {', '.join(KINDS)}.")
    for style in styles:
        check_style(style)
