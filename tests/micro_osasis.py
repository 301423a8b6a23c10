"""Networks of random weights, in real files, that OSASIS runs on in milliseconds (32 px)."""

import json
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from datamodules import DiffAESamples
from lightning_styles.imaging import save_png
from lightning_styles.methods.osasis import OSASIS
from lightning_styles.models.diffae import DiffAE, DiffAEConfig, LatentConfig
from lightning_styles.models.guided_unet import GuidedConfig, GuidedUNet
from lightning_styles.pretrained.diffae import CodeStatistics, save_diffae, save_guided_unet

SIZE = 32
VISION = {"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}


class MicroOSASIS:
    """Paths of the files.

    Attributes:
        diffae: autoencoder with prior and statistics.
        other: another one of the same shape.
        guided: P2 network.
        clip: folder in open_clip's layout.
        style: a picture that is not square.
    """

    def __init__(self, folder: Path) -> None:
        """Refer to the files in `folder`, after writing them unless they are there; several processes may try."""
        if not folder.exists():
            written = folder.with_name(uuid.uuid4().hex)
            self._refer(written)
            with torch.random.fork_rng(devices=[]):
                self._write()
            with suppress(OSError):  # another process was faster
                os.rename(written, folder)
        self._refer(folder)

    def _refer(self, folder: Path) -> None:
        self.folder = folder
        self.diffae, self.other = str(folder / "diffae.safetensors"), str(folder / "other.safetensors")
        self.guided, self.clip, self.style = (str(folder / name) for name in ("p2.safetensors", "clip", "style.png"))

    def _write(self) -> None:
        torch.manual_seed(0)
        for path in (self.diffae, self.other):
            latent = LatentConfig(24, 3, (1, 2), 8)
            config = DiffAEConfig(32, (1, 2), 1, (1,), (1, 2), 1, (1,), 2, 16, 0.1, latent=latent)
            statistics = CodeStatistics(torch.zeros(1, 16), torch.ones(1, 16))
            save_diffae(Path(path), shaken(DiffAE(config)), statistics, torch.float32)
        save_guided_unet(Path(self.guided), shaken(GuidedUNet(GuidedConfig(32, (1, 2), 1, (1,), 32))), torch.float32)
        self._write_clip()
        save_png(self.style, torch.rand(3, 40, 56) * 2 - 1)

    def _write_clip(self) -> None:
        from open_clip.model import CLIP
        from safetensors.torch import save_file

        folder = Path(self.clip)
        folder.mkdir(parents=True)
        save_file(
            {k: v.contiguous() for k, v in CLIP(16, VISION, TEXT).state_dict().items()},
            folder / "open_clip_model.safetensors",
        )
        config = {"model_cfg": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": {}}
        (folder / "open_clip_config.json").write_text(json.dumps(config))


def shaken(network: nn.Module) -> nn.Module:
    """`network` with no parameter at zero, so that every branch counts."""
    for p in network.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return network


def make_osasis(micro: MicroOSASIS, **changes: Any) -> OSASIS:
    """The method on the micro networks; keywords override its settings."""
    settings: dict[str, Any] = {
        "diffae": micro.diffae, "style_image": micro.style, "domain_model": micro.guided, "clip": micro.clip,
        "perceptual": "tiny/perceptual", "iterations": 2, "resolution": SIZE, "candidates": 3, "lr": 1e-3,
        "steps": {"encode": 10, "decode": 4}, "predict_steps": {"encode": 10, "decode": 5}, "weights": {}, "f_ch": 32,
        "cache": str(micro.folder / "twins"),
    }  # fmt: skip
    return OSASIS(**(settings | changes))


def samples(micro: MicroOSASIS, **changes: Any) -> DiffAESamples:
    """Photos of the micro autoencoder; keywords override the settings."""
    settings: dict[str, Any] = {"diffae": micro.diffae, "size": SIZE, "batch_size": 2, "steps": 4, "latent_steps": 4}
    return DiffAESamples(**(settings | changes))


@pytest.fixture(scope="session")
def micro_osasis(tmp_path_factory: pytest.TempPathFactory) -> MicroOSASIS:
    return MicroOSASIS(tmp_path_factory.mktemp("osasis") / "micro")
