"""Network, text and latents that the PairCustomization parity cases share."""

from typing import Any

import torch
from torch import Tensor

from lightning_styles.models.adapters import adapter_parameters, add_lora
from lightning_styles.pretrained.stable_diffusion import Text
from tests.golden.fill import fill_, values
from tests.golden.sms_world import make_unet

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


class World:
    """The UNet of a case and its inputs."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.seed = config, config["seed"]
        self.unet = make_unet(config, self.seed + 1)

    def add_style(self, name: str, seed: int) -> None:
        """Add a style adapter with the weights of `seed`."""
        rank = self.config["style_rank"]
        add_lora(self.unet, name, rank, rank, ATTENTION)
        fill_(dict(adapter_parameters(self.unet, name)), self.seed + seed, scale=self.config["lora_scale"])

    def text(self, name: str) -> Text:
        """Embedding of the prompt "neg", "base", "style0" or "style1"."""
        width = self.config["unet"]["cross_attention_dim"]
        states = values(f"embed.{name}", (1, self.config["text_len"], width), self.seed)
        return Text(states, values(f"pooled.{name}", (1, self.config["pooled"]), self.seed))

    def latents(self, name: str) -> Tensor:
        """Values shaped like the latents."""
        return values(name, self.config["latent"], self.seed)

    @property
    def time_ids(self) -> Tensor:
        """Sizes and crop of a picture as large as the latents say, with an autoencoder of factor 8."""
        height, width = (8 * side for side in self.config["latent"][2:])
        return torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
