"""Precision of what is frozen, and `trainer.precision: bf16-true` for methods that train little on top of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from torch import nn

# Factor on a loss whose gradient goes back through float16 networks: what is smaller than 6e-8 there is lost. It is a
# power of two, and Adam's eps takes it too, so that the steps are those of the loss itself (arXiv 1710.03740, 3.2).
LOSS_SCALE = 2.0**14


class FrozenHalfPrecision(MixedPrecision):
    """Frozen weights in half precision; what is trained, its optimizer, noise and losses in float32.

    Lightning's own plugin for `bf16-true` casts every parameter, so that small steps of a LoRA round away, and makes
    half precision the default dtype, so that noise is drawn from other numbers. Here the frozen weights alone are
    cast - which is where the memory is - and what is computed with them runs under autocast, as in `bf16-mixed`.
    """

    def __init__(self, precision: Literal["bf16-true", "16-true"], device: str) -> None:
        super().__init__("bf16-mixed" if precision == "bf16-true" else "16-mixed", device)
        self.precision = precision  # pyright: ignore[reportAttributeAccessIssue]
        self.dtype = torch.bfloat16 if precision == "bf16-true" else torch.float16

    def convert_module(self, module: nn.Module) -> nn.Module:
        """Cast what `module.kept` does not claim."""
        for name, tensor in chain(module.named_parameters(), module.named_buffers()):
            if tensor.is_floating_point() and not module.kept(name):  # type: ignore[operator]
                tensor.data = tensor.data.to(self.dtype)
        return module

    @contextmanager
    def forward_context(self) -> Iterator[None]:  # type: ignore[override]
        """Autocast to the precision of the frozen weights."""
        with torch.autocast(self.device, dtype=self.dtype, cache_enabled=False):
            yield


def keep_trained_in_float32(trainer: L.Trainer) -> None:
    """Put `FrozenHalfPrecision` in the place of Lightning's plugin, before networks are built."""
    plugin = trainer.strategy.precision_plugin
    if isinstance(plugin, HalfPrecision):
        device = trainer.strategy.root_device.type
        trainer.strategy.precision_plugin = FrozenHalfPrecision(plugin.precision, device)


def frozen_dtype(precision: str, trainer: L.Trainer | None, half: torch.dtype = torch.bfloat16) -> torch.dtype:
    """Precision of frozen weights by name; "auto" is `half` on a GPU and float32 elsewhere.

    `half` is float16 for networks whose predictions are compared, which it rounds an eighth as much as bfloat16; it is
    bfloat16, which has the range of float32, for those whose gradients are not kept in range by `LOSS_SCALE`.

    Under `bf16-true` and `16-true` all frozen weights are cast, so it is theirs whatever the name: networks that runs
    share are then loaded in that precision, not cast where others use them.
    """
    if trainer is not None and isinstance(plugin := trainer.strategy.precision_plugin, FrozenHalfPrecision):
        return plugin.dtype
    if precision == "auto":
        on_gpu = trainer is not None and trainer.strategy.root_device.type == "cuda"
        return half if on_gpu else torch.float32
    return getattr(torch, precision)
