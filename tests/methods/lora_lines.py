"""Training and drawing with LoRAs in plain lines: merged weights and the formulas of the papers."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from lightning_styles.models.adapters import lora_layers
from lightning_styles.pretrained.stable_diffusion import StableDiffusion, load_stable_diffusion

# scaled_linear from 0.00085 to 0.012 in 1000 steps
ALPHA_BAR = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square().neg().add(1).cumprod(0)


def factors(unet: Any, name: str) -> dict[str, tuple[Tensor, Tensor]]:
    """(B, A) of every layer of an adapter, as leaves."""
    found = {}
    for path, layer in lora_layers(unet):
        B, A = (getattr(layer, part)[name].weight.detach().clone().requires_grad_() for part in ("lora_B", "lora_A"))
        found[path] = B, A
    return found


class Plain:
    """A base as it was before any method touched it."""

    def __init__(self, path: str) -> None:
        self.base: StableDiffusion = load_stable_diffusion(path)
        self.pipeline = self.base.pipeline()

    def told(self, words: Sequence[str], time_ids: Tensor | None = None) -> dict[str, Any]:
        """What the UNet is told, as the pipelines of diffusers encode it; "" is the empty prompt of training."""
        if not self.base.is_xl:
            states = self.pipeline.encode_prompt(list(words), "cpu", 1, False)[0]
            return {"encoder_hidden_states": states}
        states, _, pooled, _ = self.pipeline.encode_prompt(list(words), do_classifier_free_guidance=False)
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": time_ids}}

    def eps(
        self, z_t: Tensor, t: Tensor, told: dict[str, Any], loras: dict[str, tuple[Tensor, Tensor]], strength: float
    ) -> Tensor:
        """The prediction with W + strength B A in every layer of `loras`."""
        weights = dict(self.base.unet.named_parameters())
        merged = {f"{layer}.weight": weights[f"{layer}.weight"] + strength * B @ A for layer, (B, A) in loras.items()}
        return functional_call(self.base.unet, merged, (z_t, t), told).sample

    def noised(self, z: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """sqrt(a_t) z + sqrt(1 - a_t) eps."""
        a = ALPHA_BAR[t].float().view(-1, 1, 1, 1)
        return a.sqrt() * z + (1 - a).sqrt() * eps

    def times(self, steps: int) -> list[tuple[int, float, float]]:
        """(t, a_t, a_p) of DDIM with `steps` steps from noise to picture."""
        step = 1000 // steps
        times = [1 + step * i for i in reversed(range(steps))]
        return [(t, float(ALPHA_BAR[t]), float(ALPHA_BAR[max(t - step, 0)])) for t in times]

    def down(self, x: Tensor, steps: int, predict: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Pictures in [-1, 1] that DDIM makes of noise."""
        for t, a_t, a_p in self.times(steps):
            eps = predict(x, t)
            x = a_p**0.5 * (x - (1 - a_t) ** 0.5 * eps) / a_t**0.5 + (1 - a_p) ** 0.5 * eps
        return self.base.vae.decode(x / self.base.vae.config.scaling_factor).sample

    def up(self, picture: Tensor, steps: int, predict: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The noise from which DDIM comes back to pictures in [-1, 1], by its steps taken backwards."""
        x = self.base.vae.encode(picture).latent_dist.mean * self.base.vae.config.scaling_factor
        for t, a_t, a_p in reversed(self.times(steps)):
            eps = predict(x, t)
            x = (a_t / a_p) ** 0.5 * (x - (1 - a_p) ** 0.5 * eps) + (1 - a_t) ** 0.5 * eps
        return x
