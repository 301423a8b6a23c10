"""Throughput: iterations and pictures per second, and the peak of the memory."""

import sys
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_styles.errors import at_least


class Throughput(L.Callback):
    """Logs `perf/iterations_per_second`, `perf/images_per_second` and `perf/peak_memory_mb`.

    Values cover the iterations since the last report; validation is left out, everything else between two
    iterations counts. Pictures are counted over all devices, where batches hold them. Memory is in MB (10^6
    bytes): on a GPU the peak of the interval on this rank, on a CPU the largest resident size so far.

    Args:
        every_n_iterations: distance of two reports; the device is waited for only there.
    """

    def __init__(self, every_n_iterations: int = 50) -> None:
        at_least(1, every_n_iterations=every_n_iterations)
        self.every_n_iterations = every_n_iterations
        self.peak_mb: float | None = None
        self._since = 0.0
        self._first = 0
        self._images = 0
        self._paused_at = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._restart(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused_at = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since += time.perf_counter() - self._paused_at

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self._images += batch_size(batch) or 0
        done = trainer.global_step - self._first
        if done == 0 or trainer.global_step % self.every_n_iterations:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        seconds = max(time.perf_counter() - self._since, 1e-9)
        values = {"perf/iterations_per_second": done / seconds}
        if self._images:
            values["perf/images_per_second"] = self._images * trainer.world_size / seconds
        if (peak := peak_memory_mb(pl_module.device)) is not None:
            values["perf/peak_memory_mb"] = peak
            self.peak_mb = max(peak, self.peak_mb or 0.0)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
        self._restart(trainer, pl_module)

    def _restart(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()
        self._first = trainer.global_step
        self._images = 0
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)


def batch_size(batch: Any) -> int | None:
    """Pictures in a batch: the length of its `image`, if it has one."""
    image = batch.get("image") if isinstance(batch, dict) else None
    return None if image is None else len(image)


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak memory in MB: allocated on a CUDA device since the last reset, else resident in this process.

    None where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6  # bytes there, KiB elsewhere
