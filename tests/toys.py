"""A method, its data and a callback that train in milliseconds; the tests of the command line run on them."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_styles.errors import UserError


class Noise(Dataset):
    """Sample i is a pure function of (seed, i)."""

    def __init__(self, seed: int, length: int) -> None:
        self.seed, self.length = seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        return torch.randn(3, generator=torch.Generator().manual_seed(self.seed * 1000 + index))


class ToyData(L.LightningDataModule):
    """Vectors of noise.

    Args:
        batch_size: samples per device and step.
        length: samples per epoch.
        seed: seed of the samples.
    """

    def __init__(self, batch_size: int = 2, length: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.length, self.seed = batch_size, length, seed

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Noise(self.seed, self.length), batch_size=self.batch_size)

    test_dataloader = predict_dataloader = train_dataloader


class ToyStyle(L.LightningModule):
    """A linear map, trained towards zero.

    Args:
        learning_rate: step size.
        size: width of the layer.
        base: name of a pretrained file.
        weights: loss weights by name.
        fail: raise a UserError in the first step.
    """

    def __init__(
        self,
        learning_rate: float = 0.1,
        size: int = 3,
        base: str | None = None,
        weights: dict[str, float] | None = None,
        fail: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(size, 1)
        self.weights = weights or {}
        self.learning_rate, self.fail = learning_rate, fail

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        return [(init_args["base"], "lora")] if init_args.get("base") else []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.fail:
            raise UserError("the toy was told to fail; set model.init_args.fail to false.")
        return self.layer(batch).square().mean()

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test/loss", self.layer(batch).square().mean())

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["lightning_styles"] = {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": dict(self.hparams),
            "base_models": {},
            "iterations": 4,
            "world_size": 1,
            "batch_size": 2,
        }

    def closing_lines(self) -> list[str]:
        return ["Toy: nothing else to see."]


class Preparing(ToyStyle):
    """A toy that has something to prepare."""

    def prepare(self, datamodule: L.LightningDataModule | None) -> None:
        print(f"prepared with {type(datamodule).__name__}")


class Greeter(L.Callback):
    """Says something.

    Args:
        message: what to say.
        every: how often, in iterations.
    """

    def __init__(self, message: str = "hello", every: int = 1) -> None:
        self.message, self.every = message, every


class Interrupt(L.Callback):
    """Presses Ctrl-C in the first iteration."""

    def on_train_batch_end(self, *args: Any) -> None:
        raise KeyboardInterrupt


class ToyPainter(ToyStyle):
    """Brightens pictures, and can be exported.

    Args:
        shift: what is added to every pixel.
        base: name of a pretrained file.
    """

    formats = {"kohya": "toy.pt"}

    def __init__(self, shift: float = 0.0, base: str | None = None) -> None:
        super().__init__(base=base)
        self.save_hyperparameters()
        self.finished: set[str] = set()
        self.base_models: dict[str, str] = {}

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any] | None:  # type: ignore[override]
        if self.finished.issuperset(batch["name"]):
            return None
        images = batch["image"] + self.hparams["shift"]
        return {"image": list(images), "name": batch["name"], "settings": {}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        init_args = {"shift": self.hparams["shift"], "base": self.hparams["base"]}
        checkpoint["lightning_styles"] |= {"class_path": "tests.toys.ToyPainter", "init_args": init_args}

    def export(self, path: Path, layout: str) -> None:
        torch.save({"format": layout, "weight": self.layer.weight.detach()}, path)
