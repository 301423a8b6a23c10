"""The small networks, prompts and latents that all SMS parity cases share."""

from typing import Any

from torch import Tensor, nn

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


def text(config: dict[str, Any], name: str) -> Tensor:
    """The embedding (1, L, D) of the prompt "tgt", "edit", "null" or "src"."""
    shape = (1, config["text_len"], config["unet"]["cross_attention_dim"])
    return values(f"text.{name}", shape, config["seed"])


def latents(config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """z_src and z_tgt, (1, 4, h, w)."""
    z_src = 0.8 * values("src_x0", config["latent"], config["seed"])
    return z_src, z_src + 0.3 * values("tgt_delta", config["latent"], config["seed"])


def noise(config: dict[str, Any], name: str) -> Tensor:
    """Noise of the given name, shaped like the latents."""
    return values(name, config["latent"], config["seed"])
