"""RunRecord: with what, from what and for how long a run was made."""

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from callbacks.completion import Unfinished
from callbacks.throughput import Throughput, batch_size, peak_memory_mb
from lightning_styles.imaging import replacing
from lightning_styles.optional_files import optional
from lightning_styles.progress import finished

PACKAGES = (
    "lightning-styles", "torch", "torchvision", "lightning", "diffusers", "transformers", "peft",
    "open_clip_torch", "lpips", "torchmetrics", "safetensors", "numpy", "pillow",
)  # fmt: skip


class RunRecord(L.Callback):
    """Keeps `run.json` in the run's folder: one entry for each launch of `fit`, a resumed run has several.

    An entry holds versions, platform, git commit, sha256 of the base models, world size, global batch size,
    iterations, peak memory, start, end and how the launch ended. The resolved configuration lies beside it,
    in config.yaml.
    """

    def __init__(self) -> None:
        self.path = Path("run.json")
        self._launches: list[dict[str, Any]] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Finding the folder is a broadcast: every rank takes part, here and not later.
        self.path = Path(trainer.log_dir or trainer.default_root_dir) / "run.json"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._launches = [*_earlier(self.path), self._begin(trainer, pl_module)]
            self._write()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Takes the batch size from the first batch."""
        if self._launches and "batch" not in self._launches[-1]:
            size, world = batch_size(batch), trainer.world_size
            self._launches[-1]["batch"] = {"per_device": size, "global": size and size * world}
            self._write()
            if size:
                rank_zero_info(f"global batch = {world} devices x {size} = {world * size} pictures")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._end(trainer, pl_module, "finished" if finished(trainer) else "stopped")

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        state = f"failed: {type(exception).__name__}"
        if isinstance(exception, (KeyboardInterrupt, SystemExit)):
            state = "interrupted"
        elif isinstance(exception, Unfinished):
            state = "stopped"
        self._end(trainer, pl_module, state)

    def _begin(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        config = self.path.with_name("config.yaml")
        return {
            "config": config.name if config.is_file() else None,
            "command": sys.argv,
            "model": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
            "base_models": dict(getattr(pl_module, "base_models", {})),
            "packages": _versions(),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": _device_name(pl_module),
            "git": _git_state(),
            "world_size": trainer.world_size,
            "precision": str(trainer.precision),
            "max_iterations": trainer.max_steps,
            "first_iteration": trainer.global_step,
            "started": _now(),
            "state": "running",
        }

    def _end(self, trainer: L.Trainer, pl_module: L.LightningModule, state: str) -> None:
        if not self._launches or self._launches[-1]["state"] != "running":
            return
        # Throughput resets the device's peak at each of its reports, and remembers the highest.
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        reported = [c.peak_mb for c in callbacks if isinstance(c, Throughput)]
        peaks = [peak_memory_mb(pl_module.device), *reported]
        self._launches[-1].update(
            last_iteration=trainer.global_step,
            peak_memory_mb=max((round(peak) for peak in peaks if peak is not None), default=None),
            ended=_now(),
            state=state,
        )
        self._write()

    def _write(self) -> None:
        with optional(self.path), replacing(self.path) as path:
            path.write_text(json.dumps({"launches": self._launches}, indent=2) + "\n", encoding="utf-8")


def _earlier(path: Path) -> list[dict[str, Any]]:
    """Earlier launches in the same folder; none if the file is missing or not ours.

    Those that still count as running were killed: this one could not write here while they ran.
    """
    try:
        launches = list(json.loads(path.read_text(encoding="utf-8"))["launches"])
        return [launch | ({"state": "killed"} if launch.get("state") == "running" else {}) for launch in launches]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this code runs from, and whether files differ; None if installed."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None

    def git(*words: str) -> str:
        answer = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )  # fmt: skip
        return answer.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _device_name(pl_module: L.LightningModule) -> str:
    if pl_module.device.type != "cuda":
        return pl_module.device.type
    import torch

    return torch.cuda.get_device_name(pl_module.device)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
