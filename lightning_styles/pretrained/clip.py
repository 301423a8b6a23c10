"""CLIP through open_clip: frozen image and text embeddings by name, folder or file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.losses.clip_direction import ClipPreprocess, clip_input
from lightning_styles.pretrained import locate
from lightning_styles.pretrained.weights import check_finite, check_fit, read_safetensors, read_torch

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")  # the first that a folder has


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
        name: a folder in open_clip's layout (open_clip_config.json and weights), a file of weights beside such a
            config, or a name of the registry.

    Raises:
        UserError: it is missing, damaged, not of the architecture in its config, or without one.
    """
    import open_clip

    path = locate(name, "clip")
    weights = clip_weights(path)
    source = f"local-dir:{weights.parent}"
    logging.disable(logging.WARNING)  # it warns of random weights, which are then replaced
    try:
        model: Any = open_clip.create_model(source, load_weights=False)
        tokenizer = open_clip.get_tokenizer(source)
    except Exception as error:  # whatever a damaged config leads to
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{weights.parent / CONFIG} describes no CLIP that open_clip can build: {cause}") from error
    finally:
        logging.disable(logging.NOTSET)
    state = _state(weights)
    check_fit(model, state, weights.name)
    check_finite(state, weights.name)
    model.load_state_dict(state)
    side = model.visual.image_size
    size = side if isinstance(side, int) else side[0]
    config = model.visual.preprocess_cfg
    model.eval().requires_grad_(False)
    return Clip(model, tokenizer, size, tuple(config["mean"]), tuple(config["std"]))


def clip_weights(path: Path) -> Path:
    """The file with the weights of the CLIP at `path`, which lies beside its config.

    Weights do not tell an activation: read with another than they were trained with, they give other embeddings
    without any error. OpenAI's models and some of LAION's have quickgelu, most of LAION's GELU.

    Raises:
        UserError: one of the two is missing.
    """
    folder, place = (path, "in it") if path.is_dir() else (path.parent, "beside it")
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{path} does not say which architecture and activation (quick_gelu) its CLIP has; expected the "
            f"{CONFIG} of this model {place}."
        )
    if path.is_file():
        return path
    found = [file for suffix in SUFFIXES for file in sorted(path.glob(f"*{suffix}"))]
    if not found:
        raise UserError(f"{path} has no weights; expected {WEIGHTS} beside {CONFIG}.")
    return next((file for file in found if file.name == WEIGHTS), found[0])


def _state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    content = read_torch(path)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(state, Mapping):
        raise UserError(f"{path.name} holds a {type(content).__name__}; expected the weights of a CLIP.")
    return dict(state)
