"""Official networks behind the metrics: ArcFace for identity, DINO for structure."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.models.arcface import ArcFace
from lightning_styles.models.self_similarity import DinoKeys
from lightning_styles.pretrained.weights import build, read_torch

HEAD = 64  # channels of an attention head, in every vision transformer of DINO


def load_arcface(path: Path) -> ArcFace:
    """The face recognition network of `model_ir_se50.pth`, frozen.

    Raises:
        UserError: damaged, of another architecture (the first keys that differ are named), or unsafe to open.
    """
    return build(ArcFace, with_counters(_state(path, "model_ir_se50.pth")), path.name)


def with_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`state` with the counters of batch norms, which old files lack and nothing but training reads."""
    norms = [key.removesuffix("running_mean") for key in state if key.endswith(".running_mean")]
    return {f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms} | dict(state)


def load_dino(path: Path) -> DinoKeys:
    """The keys of a vision transformer of DINO, of `dino_vitbase8_pretrain.pth` or another size, frozen.

    Raises:
        UserError: as `load_arcface`.
    """
    state = _state(path, "dino_vitbase8_pretrain.pth")
    vit = build(partial(_vit, state), state, path.name)
    return DinoKeys(vit).eval()


def _vit(state: Mapping[str, Tensor]) -> Any:
    """timm's vision transformer of the architecture that the shapes of `state` tell."""
    from timm.models.vision_transformer import VisionTransformer

    make = partial(VisionTransformer, num_classes=0, dynamic_img_size=True)
    try:
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        depth = len({key.split(".")[1] for key in state if key.startswith("blocks.")})
        side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch
        return make(img_size=side, patch_size=patch, embed_dim=width, depth=depth, num_heads=max(width // HEAD, 1))
    except (KeyError, ValueError, AssertionError):
        return make(patch_size=8)  # ViT-B/8: loading then names the keys that differ


def _state(path: Path, expected: str) -> dict[str, Tensor]:
    found = read_torch(path)
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        has = ", ".join(map(str, list(found)[:3])) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"{path.name} holds {has}; expected the weights alone, as in {expected}.")
    return dict(found)
