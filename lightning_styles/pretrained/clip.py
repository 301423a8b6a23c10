"""CLIP through open_clip: frozen image and text embeddings by name, folder or file."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.losses.clip_direction import ClipPreprocess, clip_input
from lightning_styles.pretrained import locate

# A single file holds no architecture: it is taken for OpenAI's ViT-B/32, the CLIP of OSASIS.
SINGLE_FILE = "ViT-B-32-quickgelu"


class Clip(NamedTuple):
    """A frozen CLIP and what its pictures look like.

    Attributes:
        model: open_clip's model; `encode_image` takes (B, 3, size, size), not normalised in length.
        tokenizer: list of texts -> (B, L) tokens.
        size: side of its pictures in px.
        mean: of the pictures in [0, 1], by channel.
        std: of the pictures in [0, 1], by channel.
    """

    model: Any
    tokenizer: Any
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def to(self, device: torch.device) -> "Clip":
        """Itself, with the model on `device`."""
        self.model.to(device)
        return self

    def image(self, images: Tensor, preprocess: ClipPreprocess = "clip") -> Tensor:
        """Embeddings (B, D) of `images` (B, 3, H, W) in [-1, 1], differentiable, in the precision of the weights.

        Never under autocast, as small differences of embeddings count.
        """
        with torch.autocast(images.device.type, enabled=False):
            shown = clip_input(images.float(), preprocess, self.size, self.mean, self.std)
            return self.model.encode_image(shown).float()

    @torch.no_grad()
    def text(self, texts: list[str]) -> Tensor:
        """Embeddings (B, D) of `texts`; as `image`, never under autocast."""
        device = self.model.logit_scale.device
        with torch.autocast(device.type, enabled=False):
            return self.model.encode_text(self.tokenizer(texts).to(device)).float()


def load_clip(name: str) -> Clip:
    """Load a CLIP.

    Args:
        name: a folder in open_clip's layout (open_clip_config.json and weights), a file with the weights of
            ViT-B/32, or a name of the registry.

    Raises:
        UserError: it is missing, or open_clip cannot read it.
    """
    import open_clip

    path = locate(name, "clip")
    if path.is_dir() and not any(file.suffix in (".safetensors", ".bin", ".pth") for file in path.iterdir()):
        raise UserError(f"{path} has no weights; expected open_clip_model.safetensors beside open_clip_config.json.")
    source = f"local-dir:{path}" if path.is_dir() else SINGLE_FILE
    try:
        model: Any = open_clip.create_model(source, pretrained=None if path.is_dir() else str(path))
        tokenizer = open_clip.get_tokenizer(source)
    except Exception as error:
        expected = "a folder with open_clip_config.json and weights, or the weights of ViT-B/32"
        raise UserError(f"{path} is not a CLIP that open_clip can read; expected {expected}: {error}") from error
    side = model.visual.image_size
    size = side if isinstance(side, int) else side[0]
    config = model.visual.preprocess_cfg
    model.eval().requires_grad_(False)
    return Clip(model, tokenizer, size, tuple(config["mean"]), tuple(config["std"]))
