"""Where batches come from: pictures, pairs and prompts of the user, the procedural world, samples of DiffAE."""

from datamodules.diffae_samples import DiffAESamples
from datamodules.pairs import Pairs
from datamodules.pictures import Pictures
from datamodules.prompts import Prompts
from datamodules.scene_data import SceneImages
from datamodules.style_images import StyleImages

__all__ = ["DiffAESamples", "Pairs", "Pictures", "Prompts", "SceneImages", "StyleImages"]
