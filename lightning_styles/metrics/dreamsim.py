"""DreamSim (arXiv 2306.09344), the perceptual distance of the package `dreamsim`, from files that are given."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from lightning_styles.errors import UserError
from lightning_styles.metrics.pictures import check_pictures
from lightning_styles.pretrained import locate
from lightning_styles.pretrained.weights import check_fit, read_torch

SIZE = 224  # px, of the pictures that its networks see
DINO = "checkpoints/dino_vitbase16_pretrain.pth"
FILES = (
    "dino_vitb16_pretrain.pth",
    "clip_vitb16_pretrain.pth.tar",
    "open_clip_vitb16_pretrain.pth.tar",
    "ensemble_lora/adapter_config.json",
    DINO,
)
ADAPTER = ("ensemble_lora/adapter_model.safetensors", "ensemble_lora/adapter_model.bin")


class DreamSim(nn.Module):
    """1 - cosine similarity of two pictures in the embeddings of DreamSim's ensemble.

    Args:
        network: has `embed`, from pictures (B, 3, 224, 224) in [0, 1] to (B, D).
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance (B,) of `x` and `y`, each (B, 3, H, W) in [-1, 1]."""
        return 1 - cosine_similarity(self.embed(x), self.embed(y), dim=-1)

    def embed(self, images: Tensor) -> Tensor:
        """Embeddings (B, D) of `images` (B, 3, H, W) in [-1, 1]."""
        check_pictures("dreamsim", images)
        for extractor in getattr(self.network, "extractor_list", ()):
            extractor.device = images.device  # where it sends its projection, which is no parameter
        return self.network.embed(prepared(images))


def prepared(images: Tensor) -> Tensor:
    """What the package makes of saved pictures: in [0, 1], 224 x 224 whatever their aspect, bicubic, 8 bits."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round()
    for size in ((images.shape[-2], SIZE), (SIZE, SIZE)):  # Pillow resizes, and rounds, each way by itself
        pixels = interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, 255)
    return pixels / 255


def load_dreamsim(name: str) -> DreamSim:
    """The frozen ensemble in the folder `name`: the package's own checkpoint, unpacked, and DINO's ViT-B/16.

    Raises:
        UserError: files or the package are missing. Nothing is downloaded or written.
    """
    folder = locate(name, "dreamsim")
    missing = [file for file in FILES if not (folder / file).is_file()]
    if not any((folder / file).is_file() for file in ADAPTER):
        missing.append(ADAPTER[0])
    if missing:
        raise UserError(
            f"DreamSim in {folder} lacks {', '.join(missing)}; unpack dreamsim_ensemble_checkpoint.zip of "
            f"https://github.com/ssundaram21/dreamsim/releases there and save DINO's ViT-B/16 as {DINO}."
        )
    try:
        package = import_module("dreamsim")
    except ModuleNotFoundError as error:
        raise UserError("DreamSim needs its package: pip install 'lightning-styles[metrics]'.") from error
    try:
        with _dino_from(folder / DINO), _quiet(), torch.random.fork_rng(devices=[]):
            network, _ = package.dreamsim(pretrained=True, device="cpu", cache_dir=str(folder))
    except UserError:
        raise
    except Exception as error:  # torch and peft raise almost anything on files of another kind
        cause = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"The files in {folder} are not those of DreamSim's ensemble ({cause}).") from error
    return DreamSim(network)


@contextmanager
def _quiet() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _dino_from(path: Path) -> Iterator[None]:
    """Have the package read DINO's weights at `path`; left alone it fetches them, and code, by torch.hub."""

    def load(*args: Any, **kwargs: Any) -> nn.Module:
        network = import_module("dreamsim.feature_extraction.vision_transformer").vit_base(patch_size=16)
        state = read_torch(path)
        check_fit(network, state, path.name)
        network.load_state_dict(state)
        return network

    before = torch.hub.load, torch.hub.set_dir
    torch.hub.load, torch.hub.set_dir = load, lambda folder: None  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.hub.load, torch.hub.set_dir = before
