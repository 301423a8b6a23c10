"""StyleImages: a handful of pictures in one style and a prompt, for training a style LoRA."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.photos import WithPhotos
from datamodules.pictures import Reader
from datamodules.sampling import check_loading, draw, shuffled, train_loader
from datamodules.sources import find_sources
from lightning_styles.errors import UserError


class StyleImages(WithPhotos):
    """Square crops of style pictures; sample i is a pure function of (seed, i).

    A batch holds `image` (B, 3, resolution, resolution) in [-1, 1], `caption` (list of str) and `index` (B,)
    int64. Pictures come in shuffled passes, are resized to `resolution` px on the shorter side and cropped
    along the longer one. Broken files of a folder are named and skipped. `validate`, `test` and `predict` take photos.

    Args:
        images: image files, folders, or scenes such as `scene:portrait/0-15`; one or a list.
        prompt: caption of every picture; `{caption}` in it stands for the text of the `.txt` file beside a
            picture, or for a scene's own caption.
        resolution: height and width in px.
        batch_size: pictures per device and iteration.
        style: style that scenes are drawn in.
        random_crop: crop at a random place; false crops in the middle.
        flip: mirror every other picture at random.
        photos: what `validate`, `test` and `predict` stylize: files, folders or scenes, see `Pictures`.
        twin_style: style in which each scene's exact answer is drawn; null for none.
        seed: seed of order, crops and mirroring.
        num_workers: processes that crop.
    """

    gives = WithPhotos.gives | {"fit": ("image", "caption", "index")}

    def __init__(
        self,
        *,
        images: str | list[str],
        prompt: str,
        resolution: int,
        batch_size: int = 1,
        style: str = "photo",
        random_crop: bool = True,
        flip: bool = True,
        photos: str | list[str] | None = None,
        twin_style: str | None = None,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["batch_size", "num_workers"])
        check_loading(batch_size, num_workers)
        self.prompt = prompt
        self.resolution = resolution
        self.batch_size = batch_size
        self.random_crop = random_crop
        self.flip = flip
        self.seed = seed
        self.num_workers = num_workers
        self.reader = Reader(find_sources(images), resolution, style=style)
        self._crops: Crops | None = None

    def setup(self, stage: str) -> None:
        """Reads all pictures once."""
        super().setup(stage)
        if stage != "fit" or self._crops is not None:
            return
        pictures = list(self.reader.read(range(len(self.reader.sources))))
        if not pictures:
            raise UserError("none of the style images could be read; see the warnings above.")
        self._crops = Crops(
            # 8 bits hold what the files held, in a quarter of the memory.
            pictures=[((p["image"] + 1) * 127.5).round().to(torch.uint8) for p in pictures],
            captions=[self.prompt.replace("{caption}", p["caption"]) for p in pictures],
            resolution=self.resolution,
            seed=self.seed,
            random_crop=self.random_crop,
            flip=self.flip,
        )

    def squares(self) -> dict[str, Tensor]:
        """Name of each picture -> its middle square (3, resolution, resolution), not mirrored."""
        middle = {}
        for picture in self.reader.read(range(len(self.reader.sources))):
            image, n = picture["image"], self.resolution
            top, left = [(side - n) // 2 for side in image.shape[-2:]]
            middle[picture["name"]] = image[:, top : top + n, left : left + n]
        return middle

    def train_dataloader(self) -> DataLoader[Any]:
        assert self._crops is not None, "setup comes first"
        return train_loader(
            self.trainer,  # type: ignore[arg-type]
            self._crops,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
        )


@dataclass(frozen=True)
class Crops:
    """Sample i: the next picture of a shuffled pass, cropped and perhaps mirrored.

    Attributes:
        pictures: (3, H, W) uint8 each, the shorter side `resolution` px.
        captions: one for each picture.
        resolution: side of the crop in px.
        seed: seed of order, crops and mirroring.
        random_crop: at a random place instead of the middle.
        flip: mirror with probability 1/2.
    """

    pictures: list[Tensor]
    captions: list[str]
    resolution: int
    seed: int
    random_crop: bool
    flip: bool

    def __call__(self, i: int) -> dict[str, Any]:
        which = shuffled(self.seed, i, len(self.pictures))
        picture = self.pictures[which]
        free = [side - self.resolution for side in picture.shape[-2:]]
        rng = draw(self.seed, i, "crop")
        top, left = [rng.randrange(n + 1) if self.random_crop else n // 2 for n in free]
        crop = picture[:, top : top + self.resolution, left : left + self.resolution].float() / 127.5 - 1
        if self.flip and draw(self.seed, i, "flip").random() < 0.5:
            crop = crop.flip(-1)
        return {"image": crop, "caption": self.captions[which], "index": i}
