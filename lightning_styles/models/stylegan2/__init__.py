"""StyleGAN2 (arXiv 1912.04958) in plain PyTorch, under the names of the rosinality checkpoints."""

from lightning_styles.models.stylegan2.discriminator import Discriminator
from lightning_styles.models.stylegan2.generator import Generator

__all__ = ["Discriminator", "Generator"]
