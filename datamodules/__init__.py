"""Where batches come from: pictures to stylize, the procedural world, style images."""

from datamodules.pictures import Pictures

__all__ = ["Pictures"]
