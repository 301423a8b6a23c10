"""Where batches come from: pictures to stylize, the procedural world, style images, samples of DiffAE."""

from datamodules.diffae_samples import DiffAESamples
from datamodules.pictures import Pictures
from datamodules.scene_data import SceneImages
from datamodules.style_images import StyleImages

__all__ = ["DiffAESamples", "Pictures", "SceneImages", "StyleImages"]
