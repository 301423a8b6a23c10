"""How common a picture is to a diffusion autoencoder: rare attributes get lost in a stochastic reconstruction."""

from functools import partial

import torch
from torch import Tensor

from lightning_styles.diffusion.ddim import decode
from lightning_styles.diffusion.respacing import Respaced, even_timesteps, linear_betas
from lightning_styles.models.diffae import DiffAE


@torch.no_grad()
def stochastic_reconstruction(autoencoder: DiffAE, images: Tensor, noise: Tensor, steps: int = 20) -> Tensor:
    """`images` (B, 3, S, S) from their codes alone: z = Enc(x) decoded from x_T = `noise` by DDIM, of the same shape.

    Its distance to the picture is large in regions of low density (OSASIS, arXiv 2402.17275, section 4; the paper
    gives neither the number of steps nor the trunk of LPIPS).
    """
    process = Respaced.of(linear_betas(), even_timesteps(steps))
    network = partial(autoencoder, z=autoencoder.encoder(images))
    return decode(network, noise, process, reversed(range(steps)))
