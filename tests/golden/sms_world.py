"""The small networks, prompts and latents that all SMS parity cases share."""

from typing import Any

import torch
from torch import Tensor, nn

from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.models.adapters import adapter_parameters, add_lora
from tests.golden.fill import fill_, values

SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
SCHEDULER |= {"set_alpha_to_one": False, "steps_offset": 1}


def make_unet(config: dict[str, Any], seed: int) -> nn.Module:
    """A frozen small UNet with the weights of the given seed."""
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel(**config["unet"]).eval().requires_grad_(False)
    fill_(unet.state_dict(), seed)
    return unet


class World:
    """Style model, real model with the adapter "fake", text embeddings and latents of a parity case."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config, self.seed = config, config["seed"]
        self.schedule = NoiseSchedule.from_config(SCHEDULER)
        self.grid = self.schedule.grid(config["steps"])
        self.style = make_unet(config, self.seed + 1)
        self.real = make_unet(config, self.seed + 2)
        add_lora(self.real, "fake", config["rank"], config["alpha"])
        fill_(self.lora, self.seed + 3, scale=config["lora_scale"])
        self.z_src = 0.8 * values("src_x0", config["latent"], self.seed)
        self.z_tgt = self.z_src + 0.3 * values("tgt_delta", config["latent"], self.seed)

    @property
    def lora(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters."""
        return adapter_parameters(self.real, "fake")

    def text(self, *names: str) -> Tensor:
        """Embeddings of the prompts "tgt", "edit", "null" or "src", stacked."""
        shape = (1, self.config["text_len"], self.config["unet"]["cross_attention_dim"])
        return torch.cat([values(f"text.{name}", shape, self.seed) for name in names])

    def noise(self, name: str) -> Tensor:
        """Noise of the given name, shaped like the latents."""
        return values(name, self.config["latent"], self.seed)

    def eps(self, unet: nn.Module, z_t: Tensor, t: Tensor, *prompts: str) -> Tensor:
        """Predictions of `unet` for z_t (B, ...) and t (B,), one block of B rows for each prompt."""
        text = torch.cat([self.text(p).expand(len(z_t), -1, -1) for p in prompts])
        return unet(torch.cat([z_t] * len(prompts)), torch.cat([t] * len(prompts)), text).sample
