"""A method whose checkpoints take long to write, and the digest of all that it trains."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from datamodules.sampling import draw, train_loader
from lightning_styles.module import StyleModule


class Heavy(StyleModule):
    """A small linear map, trained on noise towards noise, beside a large buffer that is carried along.

    The iterations that rank 0 begins are written into the file that HEAVY_TRACE names.

    Args:
        megabytes: size of the buffer.
        pause: seconds that an iteration takes at least.
        spoiled: iterations in which the loss of rank 1 is NaN.
    """

    def __init__(
        self,
        iterations: int,
        seed: int = 0,
        megabytes: float = 0.01,
        pause: float = 0.0,
        spoiled: list[int] | None = None,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed)
        self.save_hyperparameters()
        self.pause, self.spoiled = pause, spoiled or []
        self.layer = nn.Linear(8, 8)
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            nn.init.normal_(self.layer.weight)
            nn.init.zeros_(self.layer.bias)
        self.register_buffer("ballast", torch.zeros(round(megabytes * 250_000)))

    def named_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.layer.parameters(), lr=0.01)
        return {"layer": (optimizer, LambdaLR(optimizer, lambda step: 1 / (1 + 0.01 * step)))}

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        if (trace := os.environ.get("HEAVY_TRACE")) and self.global_rank == 0:
            with Path(trace).open("a") as file:
                file.write(f"{self.iteration}\n")
        time.sleep(self.pause)
        target = self.randn_like(batch, "target")
        self.ballast[self.iteration % len(self.ballast)] += 1
        loss = (self.layer(batch) - target).square().mean()
        if self.global_rank == 1 and self.iteration in self.spoiled:
            loss = loss * float("nan")
        self.log_losses({"noise": loss})
        self.optimize("layer", loss)


class HeavyData(L.LightningDataModule):
    """Batches of noise, a pure function of the seed and the position.

    Args:
        batch_size: samples per device and iteration.
        num_workers: processes that make them.
        seed: seed of the samples.
    """

    def __init__(self, batch_size: int = 2, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, seed

    def sample(self, i: int) -> Tensor:
        generator = draw(self.seed, i, "sample")
        return torch.tensor([generator.gauss(0, 1) for _ in range(8)])

    def train_dataloader(self) -> DataLoader[Any]:
        assert self.trainer is not None
        return train_loader(self.trainer, self.sample, batch_size=self.batch_size, num_workers=self.num_workers)


def digest(path: Path | str) -> str:
    """Hash of parameters, buffers, optimizers, schedulers, averages and iterations of a checkpoint."""
    content = torch.load(path, map_location="cpu", weights_only=True)
    kept = {key: content[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step")}
    averages = {key: state for key, state in content["callbacks"].items() if key.startswith("EMA")}
    total = hashlib.sha256()
    for line in _lines(kept | averages):
        total.update(line)
    return total.hexdigest()[:16]


def _lines(tree: Any, name: str = "") -> list[bytes]:
    if isinstance(tree, dict):
        return [line for key in sorted(tree, key=str) for line in _lines(tree[key], f"{name}.{key}")]
    if isinstance(tree, (list, tuple)):
        return [line for i, branch in enumerate(tree) for line in _lines(branch, f"{name}.{i}")]
    if isinstance(tree, Tensor):
        return [name.encode(), str((tree.dtype, tuple(tree.shape))).encode(), tree.contiguous().numpy().tobytes()]
    return [f"{name}={tree!r}".encode()]
