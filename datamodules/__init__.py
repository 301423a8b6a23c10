"""Where batches come from: pictures to stylize, the procedural world, style images."""

from datamodules.pictures import Pictures
from datamodules.scene_data import SceneImages
from datamodules.style_images import StyleImages

__all__ = ["Pictures", "SceneImages", "StyleImages"]
