"""Previews: what the run looks like, from before its first iteration to its last."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import STEP_OUTPUT
from PIL import Image, ImageDraw
from torch import Tensor

from callbacks.ema import averaged
from lightning_styles.errors import at_least
from lightning_styles.image_files import opened
from lightning_styles.imaging import from_uint8, read_settings, replacing, save_png, to_uint8
from lightning_styles.optional_files import optional

log = logging.getLogger(__name__)
HEADER = 14  # px of the line of text above the pictures


class Previews(L.Callback):
    """Shows `pl_module.preview()` before training and every n iterations; randomness stays as it is.

    Each row is one picture with the columns that the method names; where there are a source and a result of
    the same size, the amplified absolute difference follows. Strips go to TensorBoard and, as
    `previews/000100.png`, into the run's folder; at the end `previews/progress.webp` animates the results.

    Args:
        every_n_iterations: distance of two previews.
        max_size: longest side of a picture in the strip in px.
        max_rows: pictures shown at most.
        amplify: factor on the absolute difference, so that small changes can be seen.
        animation: format of the animation; none makes no animation.
        frame_ms: time that each frame of the animation stands, in ms.
    """

    def __init__(
        self,
        every_n_iterations: int = 100,
        max_size: int = 512,
        max_rows: int = 4,
        amplify: float = 4.0,
        animation: Literal["webp", "gif", "none"] = "webp",
        frame_ms: int = 120,
    ) -> None:
        at_least(1, every_n_iterations=every_n_iterations, max_size=max_size, max_rows=max_rows, frame_ms=frame_ms)
        at_least(0, amplify=amplify)
        self.every_n_iterations = every_n_iterations
        self.max_size = max_size
        self.max_rows = max_rows
        self.amplify = amplify
        self.animation = animation
        self.frame_ms = frame_ms
        self.folder = Path("previews")
        self._shown_at = -1

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Finding the folder is a broadcast: every rank takes part, here and not later.
        self.folder = Path(trainer.log_dir or trainer.default_root_dir) / "previews"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step == 0:
            self._show(trainer, pl_module)
        self._shown_at = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Any,
        batch_idx: int,
    ) -> None:
        due = trainer.global_step % self.every_n_iterations == 0 or trainer.global_step == trainer.max_steps
        if due and trainer.global_step != self._shown_at:
            self._shown_at = trainer.global_step
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.animation != "none":
            self._animate(trainer.global_step)

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        with isolate_rng(), averaged(trainer, pl_module), _evaluating(pl_module), torch.no_grad():
            columns = pl_module.preview()  # type: ignore[operator]
        if not columns:
            return
        strip, boxes = self._strip(columns)
        settings = {"iteration": trainer.global_step, "columns": list(columns), "result": boxes}
        file = self.folder / f"{trainer.global_step:06d}.png"
        with optional(file):
            save_png(file, strip, settings)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and logger.experiment is not None:
                picture = to_uint8(strip)
                with optional(f"The preview in {logger.log_dir}"):
                    logger.experiment.add_image("preview", picture, trainer.global_step, dataformats="HWC")

    def _strip(self, columns: dict[str, Tensor]) -> tuple[Tensor, list[list[int]]]:
        """(3, H, W) with a header and rows of pictures, and the boxes [x0, y0, x1, y1] of the results."""
        named = {name: images[: self.max_rows].float().cpu() for name, images in columns.items()}
        source, result = named.get("source"), named.get("result")
        if source is not None and result is not None and source.shape == result.shape:
            # 0 is black; a difference of the full range (2), divided by `amplify`, is white.
            named[f"{self.amplify:g} x |difference|"] = self.amplify * (result - source).abs() - 1
        shown = {name: self._fit(_finite(name, images)) for name, images in named.items()}
        rows = max(len(images) for images in shown.values())
        height = max(images.shape[2] for images in shown.values())
        width = sum(images.shape[3] for images in shown.values())
        strip = torch.ones(3, HEADER + rows * height, width)
        boxes, left = [], 0
        for name, images in shown.items():
            h, w = images.shape[2:]
            strip[:, :HEADER, left : left + w] = _label(name, w)
            for row, image in enumerate(images):
                top = HEADER + row * height
                strip[:, top : top + h, left : left + w] = image
                if name == "result":
                    boxes.append([left, top, left + w, top + h])
            left += w
        return strip, boxes

    def _fit(self, images: Tensor) -> Tensor:
        """Shrinks to max_size on the longest side; never enlarges."""
        height, width = images.shape[-2:]
        scale = self.max_size / max(height, width)
        if scale >= 1:
            return images
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp_(-1, 1)

    def _animate(self, last_iteration: int, most: int = 120) -> None:
        """Cuts the results out of the strips on disk, so that a resumed run shows its whole past."""
        numbered = [p for p in self.folder.glob("*.png") if p.stem.isdigit()]
        strips = sorted((p for p in numbered if int(p.stem) <= last_iteration), key=lambda p: int(p.stem))
        step = -(-len(strips) // most) or 1
        frames = [frame for p in strips[::-1][::step][::-1] if (frame := _result(p)) is not None]
        frames = [frame for frame in frames if frame.size == frames[-1].size]
        if len(frames) < 2:
            return
        file = self.folder / f"progress.{self.animation}"
        with optional(file), replacing(file) as path:
            frames[0].save(
                path,
                format=self.animation,
                quality=90,
                save_all=True,
                append_images=frames[1:],
                duration=[self.frame_ms] * (len(frames) - 1) + [2000],
                loop=0,
            )


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode within the block; afterwards each submodule is in the mode that it was in."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True


def _finite(name: str, images: Tensor) -> Tensor:
    if not torch.isfinite(images).all():
        log.warning("the preview's column '%s' holds NaN or infinite values; they are shown black.", name)
    return torch.nan_to_num(images, nan=-1.0, posinf=-1.0, neginf=-1.0).clamp(-1, 1)


def _label(text: str, width: int) -> Tensor:
    """A line of black text on white, (3, HEADER, width)."""
    line = Image.new("RGB", (width, HEADER), "white")
    ImageDraw.Draw(line).text((2, 1), text, fill="black")
    return from_uint8(np.asarray(line))


def _result(strip: Path) -> Image.Image | None:
    """The results of a strip, side by side; None if it has none or is not whole."""
    settings = read_settings(strip)
    if not settings or not settings.get("result"):
        return None
    with opened(strip) as image:
        cuts = [image.crop(tuple(box)).convert("RGB") for box in settings["result"]]
    frame = Image.new("RGB", (sum(cut.width for cut in cuts), cuts[0].height))
    left = 0
    for cut in cuts:
        frame.paste(cut, (left, 0))
        left += cut.width
    return frame
