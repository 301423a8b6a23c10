"""What data modules share that train on something else than the photos to stylize."""

from functools import cached_property
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from datamodules.pictures import Pictures
from datamodules.sources import Source
from lightning_styles.batches import EVALUATION, PHOTOS
from lightning_styles.errors import UserError


class WithPhotos(L.LightningDataModule):
    """`validate`, `test` and `predict` take photos, which `fit` does not need; so they may be missing there.

    Subclasses have the settings photos, resolution and twin_style, see `Pictures`, and the attribute `batch_size`.
    """

    gives = dict.fromkeys(EVALUATION, PHOTOS)
    batch_size: int

    def setup(self, stage: str) -> None:
        if stage != "fit":
            self.photos.trainer = self.trainer  # opened now, so that what is missing is said before networks are built

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.hparams.photos is None:
            return []
        self.photos.trainer = self.trainer
        return self.photos.val_dataloader()

    def test_dataloader(self) -> DataLoader[Any]:
        return self.photos.test_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.photos.predict_dataloader()

    @property
    def sources(self) -> list[Source]:
        """What `predict` stylizes."""
        return self.photos.sources

    @cached_property
    def photos(self) -> Pictures:
        """The photos to stylize.

        Raises:
            UserError: none are named.
        """
        h = self.hparams
        if h.photos is None:
            raise UserError("there is nothing to stylize; name files, folders or scenes as data.photos.")
        return Pictures(images=h.photos, resolution=h.resolution, batch_size=self.batch_size, twin_style=h.twin_style)
