"""Pictures to latents and back through a VAE of diffusers, with whatever normalisation and precision it asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def to_latents(vae: Any, images: Tensor) -> Tensor:
    """Scaled means (B, 4, h, w), float32, of the posteriors of pictures (B, 3, H, W) in [-1, 1]."""
    return posterior(vae, images)[0]


@torch.no_grad()
def posterior(vae: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Means and deviations (B, 4, h, w), float32, of the scaled latents of pictures (B, 3, H, W) in [-1, 1]."""
    with _precise(vae), torch.autocast(images.device.type, enabled=False):
        found = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
    mean = found.mean.float()
    shift, std = _statistics(vae, mean)
    return (mean - shift) / std * vae.config.scaling_factor, found.std.float() / std * vae.config.scaling_factor


@torch.no_grad()
def to_pixels(vae: Any, latents: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), about in [-1, 1], of scaled latents (B, 4, h, w)."""
    shift, std = _statistics(vae, latents)
    with _precise(vae):
        z = latents * std / vae.config.scaling_factor + shift
        return vae.decode(z.to(vae.device, vae.dtype), return_dict=False)[0]


def _statistics(vae: Any, z: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """Mean and deviation of the channels (of SDXL's descendants), 0 and 1 where the VAE has none."""
    mean, std = (getattr(vae.config, key, None) for key in ("latents_mean", "latents_std"))
    if mean is None or std is None:
        return 0.0, 1.0
    return z.new_tensor(mean).view(1, -1, 1, 1), z.new_tensor(std).view(1, -1, 1, 1)


@contextmanager
def _precise(vae: Any) -> Iterator[None]:
    """Float32 for a float16 VAE that would overflow, as the original one of SDXL does."""
    upcast = vae.dtype == torch.float16 and vae.config.force_upcast
    if upcast:
        vae.float()
    try:
        yield
    finally:
        if upcast:
            vae.half()
