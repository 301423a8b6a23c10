"""Networks of random weights, in the official layouts, behind the metrics of identity and structure."""

from typing import Any

import torch


def micro_vit(**options: Any) -> Any:
    """A vision transformer in the manner of DINO: 3 layers of 2 heads, 16 patches of 8 px."""
    from timm.models.vision_transformer import VisionTransformer

    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 0}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vit = VisionTransformer(**shape, **options)
        for parameter in vit.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return vit.eval().requires_grad_(False)
