"""ScenePool: scenes drawn once in large groups, kept as 8-bit pictures, shown in shuffled passes."""

import hashlib
import os
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.sampling import Samples, draw, shuffled, train_loader
from datamodules.sources import check_style
from datamodules.textures import random_textures
from lightning_styles import noise
from lightning_styles.errors import UserError, at_least, within
from lightning_styles.imaging import replacing
from lightning_styles.reading import read_made, tensor

OTHERS = 1 << 32  # number of the first scene that is described only
LABEL_IGNORED = -1  # an attribute that this kind of scene does not have


class ScenePool(L.LightningDataModule):
    """A fixed set of drawn scenes for training on the CPU, where drawing anew would cost more than training.

    Picture i of the set and batch k of a run are pure functions of the seed. The set is drawn once and kept in
    `cache`. A batch holds `image` (B, 3, size, size) in [-1, 1], `caption` (list of str), `identity` (B,) int64,
    `attributes` (style and KIND_NAME -> (B,) int64, -1 where a scene has none) and `segmentation` (B, size, size),
    numbered through the parts of all kinds, `importance` (B, 1, size, size), 1 or the focus of a pixel's part, and
    `row` (B,) int64, the picture's place in the pool; with `described`, M, also
    `latents` (B + M, K) and `features` (B + M, F), see `datamodules.scenes`.

    Args:
        kinds: kind of scene -> number of scenes.
        styles: style -> share of the scenes drawn in it; shares add up to 1.
        size: height and width in px.
        batch_size: pictures per device and iteration.
        views: moments (pose, light, expression) in which every scene is drawn.
        texture_share: part of every batch that is replaced by random textures.
        focus: importance of the pixels of a part, `kind/part` -> factor: {portrait/eyes: 5}. Eyes are few pixels.
        described: bring the latents and features of the pictures' scenes and of this many more, ever new ones that are
            not drawn. For one kind of scene in one view; None brings none.
        seed: seed of the scenes and of the order; 1 is kept for measurements.
        cache: folder of the drawn sets.
    """

    gives = {
        "fit": ("image", "caption", "identity", "attributes", "segmentation", "importance", "row", "index"),
    }

    def __init__(
        self,
        *,
        kinds: dict[str, int],
        styles: dict[str, float],
        size: int,
        batch_size: int,
        views: int = 1,
        texture_share: float = 0.0,
        focus: dict[str, float] | None = None,
        described: int | None = None,
        seed: int = 0,
        cache: str = "runs/scenes",
    ) -> None:
        super().__init__()
        at_least(1, batch_size=batch_size, views=views, **{f"kinds.{kind}": count for kind, count in kinds.items()})
        at_least(0, described=described, **{f"styles.{style}": share for style, share in styles.items()})
        at_least(0, **{f"focus.{part}": factor for part, factor in (focus or {}).items()})
        within(0, 1, texture_share=texture_share)
        within(16, 8192, size=size)
        for style in styles:
            check_style(style)
        if abs(sum(styles.values()) - 1) > 1e-6:
            raise UserError(f"the shares of styles add up to {sum(styles.values()):g}, expected 1.")
        if described is not None and (len(kinds) > 1 or views > 1):
            raise UserError(f"data.described needs one kind of scene in one view; got {', '.join(kinds)} in {views}.")
        self.recipe = {"kinds": kinds, "styles": styles, "size": size, "views": views, "seed": seed}
        self.size, self.seed, self.views = size, seed, views
        self.batch_size = batch_size
        self.texture_share = texture_share
        self.described = described
        self.focus = {_part(name): factor for name, factor in (focus or {}).items()}
        self.cache = Path(cache)

    def setup(self, stage: str) -> None:
        if hasattr(self, "pool"):
            return
        name = hashlib.sha256(repr(sorted(self.recipe.items())).encode()).hexdigest()[:16]
        path = self.cache / f"{name}.pt"
        if not path.exists():
            with replacing(path) as temporary:
                torch.save(self._draw_pool(), temporary)
        self.pool = read_made(path, self._content())

    def _content(self) -> dict[str, Any]:
        """What the file of the pool holds."""
        count = sum(self.recipe["kinds"].values()) * self.views
        labels = tensor(count, whole=True)
        return {
            "image": tensor(count, 3, self.size, self.size, whole=True),
            "segmentation": tensor(count, self.size, self.size, whole=True),
            "style": labels,
            "identity": labels,
            "caption": (str,) * count,
            "attributes": {str: labels},
        }

    def corpus(self) -> list[str]:
        """All captions, from which a tokenizer may learn its words."""
        self.setup("fit")
        return self.pool["caption"]

    def train_dataloader(self) -> DataLoader[Any]:
        return train_loader(
            self.trainer,  # type: ignore[arg-type]
            lambda i: i,
            batch_size=self.batch_size,
            collate=self.collate,
        )

    def collate(self, indices: list[int]) -> dict[str, Any]:
        """The batch of samples `indices`: rows of the pool in shuffled passes, some replaced by textures."""
        rows = torch.tensor([shuffled(self.seed, i, len(self.pool["image"])) for i in indices])
        image = self.pool["image"][rows].float() / 127.5 - 1
        segmentation = self.pool["segmentation"][rows].long()
        importance = self._importance(segmentation)
        if count := round(self.texture_share * len(rows)):
            image[:count] = random_textures(count, self.size, noise.generator(self.seed, indices[0], "textures"))
            importance[:count] = 1.0
        return {
            "image": image,
            "caption": [self.pool["caption"][row] for row in rows],
            "identity": self.pool["identity"][rows],
            "attributes": {
                "style": self.pool["style"][rows],
                **{name: labels[rows].long() for name, labels in self.pool["attributes"].items()},
            },
            "segmentation": segmentation,
            "importance": importance,
            "row": rows,
            "index": torch.tensor(indices),
            **({} if self.described is None else self._describe(rows, indices)),
        }

    def _describe(self, rows: Tensor, indices: list[int]) -> dict[str, Tensor]:
        """Latents and features of the scenes of `rows`, and of others that no pool and no batch but this one has."""
        from datamodules import scenes

        (kind,) = self.recipe["kinds"]
        others = range(indices[0] * self.described, (indices[0] + 1) * self.described)
        described = self.pool["identity"][rows].tolist() + [OTHERS + k for k in others]
        drawn = scenes.sample_scenes(self.seed, described, kind=kind)
        return {"latents": scenes.latents(drawn), "features": scenes.features(drawn)}

    def _importance(self, segmentation: Tensor) -> Tensor:
        """Weight of each pixel of `segmentation` (B, H, W), as (B, 1, H, W)."""
        importance = torch.ones_like(segmentation, dtype=torch.float32)
        for part, factor in self.focus.items():
            importance[segmentation == part] = factor
        return importance[:, None]

    # ---- drawing

    def _draw_pool(self) -> dict[str, Any]:
        from rich.progress import track

        styles, shares = list(self.recipe["styles"]), torch.tensor(list(self.recipe["styles"].values()))
        groups = []
        for kind, count in self.recipe["kinds"].items():
            position = torch.tensor([draw(self.seed, i, f"style/{kind}").random() for i in range(count * self.views)])
            label = torch.bucketize(position, shares.cumsum(0)).clamp(max=len(styles) - 1)
            for view in range(self.views):
                mine = label[view * count : (view + 1) * count]
                for style in range(len(styles)):
                    scenes = torch.nonzero(mine == style).flatten().tolist()
                    groups += [(kind, style, view, scenes[k : k + 64]) for k in range(0, len(scenes), 64)]
        # Workers draw on one thread each, which suits many small operations better than one process on all cores.
        drawing = DataLoader(
            Samples(lambda i: self._draw_group(*groups[i]), len(groups)),
            batch_size=None,
            num_workers=os.cpu_count() or 1,
        )
        parts = list(track(drawing, "drawing scenes", total=len(groups)))
        names = sorted({name for part in parts for name in part["attributes"]})
        return {
            **{key: torch.cat([part[key] for part in parts]) for key in ("image", "segmentation", "style", "identity")},
            "caption": [caption for part in parts for caption in part["caption"]],
            "attributes": {name: torch.cat([_label(part, name) for part in parts]) for name in names},
        }

    def _draw_group(self, kind: str, style: int, view: int, indices: list[int]) -> dict[str, Any]:
        """Scenes of one kind, style and view, in one call of the renderer."""
        from datamodules import scenes

        name = list(self.recipe["styles"])[style]
        drawn = scenes.sample_scenes(self.seed, indices, kind=kind, view=view if self.views > 1 else None)
        return {
            "image": ((scenes.render(drawn, name, self.size) + 1) * 127.5).round().to(torch.uint8),
            "segmentation": (scenes.segmentation(drawn, self.size, name) + _first_part(kind)).to(torch.uint8),
            "style": torch.full((len(indices),), style),
            "identity": torch.tensor(indices),
            "caption": scenes.captions(drawn, name),
            "attributes": {f"{kind}_{k}": v.to(torch.int16) for k, v in scenes.attributes(drawn).items()},
        }


def _label(part: dict[str, Any], name: str) -> Tensor:
    """Labels of one attribute, `LABEL_IGNORED` where this part's kind of scene does not have it."""
    ignored = torch.full((len(part["style"]),), LABEL_IGNORED, dtype=torch.int16)
    return part["attributes"].get(name, ignored)


def _part(name: str) -> int:
    """Number of the part `kind/part` among the parts of all kinds."""
    from datamodules.scenes import LABELS

    kind, _, part = name.partition("/")
    if part not in LABELS.get(kind, ()):
        known = ", ".join(f"{kind}/{part}" for kind, parts in LABELS.items() for part in parts)
        raise UserError(f"the scenes have no part {name!r} to focus on; the parts are {known}.")
    return _first_part(kind) + LABELS[kind].index(part)


def _first_part(kind: str) -> int:
    """Number of a kind's first part: the parts of all kinds count through."""
    from datamodules.scenes import KINDS, LABELS

    return sum(len(LABELS[before]) for before in KINDS[: KINDS.index(kind)])
