"""StyleLoRA: DreamBooth-LoRA, a low-rank adapter of the UNet learned from style pictures and a prompt.

DreamBooth is arXiv 2208.12242 (equation 1 without the class prior), LoRA arXiv 2106.09685.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles import noise
from lightning_styles.diffusion.schedules import NoiseSchedule
from lightning_styles.errors import at_least
from lightning_styles.files import replacing
from lightning_styles.models.adapters import (
    adapter_parameters,
    add_lora,
    enable_gradient_checkpointing,
    routed,
)
from lightning_styles.module import StyleModule

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
NAME = "style"


class StyleLoRA(StyleModule):
    """Learn a style LoRA on the attention layers; the file that it exports loads in every Stable Diffusion tool.

    Args:
        base: Stable Diffusion base: folder, single file or name.
        iterations: optimizer steps.
        rank: of the LoRA.
        alpha: of the LoRA, which is scaled by alpha / rank.
        targets: names, or ends of names, of the layers that get one.
        lr: learning rate of AdamW, constant.
        weight_decay: of AdamW.
        caption_dropout: probability of an empty caption.
        frozen_precision: of the frozen weights; "auto" is bfloat16 on a GPU and float32 elsewhere.
        gradient_checkpointing: recompute the UNet's activations in the backward: less memory, slower.
        preview_prompts: prompts of the preview pictures.
        preview_size: height and width of the preview pictures in px.
        seed: key of all randomness.
    """

    base: Any
    vae: Any
    unet: Any
    formats = {"kohya": "style_lora.safetensors", "diffusers": "pytorch_lora_weights.safetensors"}

    def __init__(
        self,
        *,
        base: str,
        iterations: int = 1000,
        rank: int = 16,
        alpha: float = 16.0,
        targets: list[str] = ATTENTION,
        lr: float = 1e-4,
        weight_decay: float = 1e-2,
        caption_dropout: float = 0.0,
        frozen_precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        gradient_checkpointing: bool = False,
        preview_prompts: list[str],
        preview_size: int = 512,
        seed: int = 0,
    ) -> None:
        super().__init__(iterations=iterations, seed=seed, clip_norm=1.0)
        at_least(1, rank=rank)
        at_least(0, lr=lr, weight_decay=weight_decay, caption_dropout=caption_dropout)
        self.save_hyperparameters()

    @classmethod
    def required_models(cls, init_args: dict[str, Any]) -> list[tuple[str, str]]:
        return [(init_args["base"], "stable-diffusion")]

    def kept(self, name: str) -> bool:
        return ".lora_" in name

    def configure_model(self) -> None:
        if hasattr(self, "unet"):
            return
        from lightning_styles.pretrained.stable_diffusion import load_stable_diffusion

        h = self.hparams
        base = load_stable_diffusion(h.base)
        self.base_models = {h.base: base.sha256}
        self.__dict__["base"] = base  # not a submodule: its text encoder stays on the CPU
        self.vae, self.unet = base.vae, base.unet
        self.schedule = NoiseSchedule.from_config(base.scheduler).to(self.run_device)
        self.unet.to(self.frozen_dtype(h.frozen_precision))
        generator = noise.generator(self.seed, "lora")
        add_lora(self.unet, NAME, h.rank, h.alpha, h.targets, generator)
        if h.gradient_checkpointing:
            enable_gradient_checkpointing(self.unet)
        self.text: dict[str, Tensor] = {}

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        trained = list(adapter_parameters(self.unet, NAME).values())
        return {"lora": (AdamW(trained, lr=self.hparams.lr, weight_decay=self.hparams.weight_decay), None)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        z = self.encode(batch["image"])
        generator = self.generator("timestep")
        t = torch.randint(self.schedule.T, (len(z),), generator=generator).to(z.device)
        kept = torch.rand(len(z), generator=generator) >= self.hparams.caption_dropout
        captions = [c if keep else "" for c, keep in zip(batch["caption"], kept.tolist(), strict=True)]
        eps = self.randn_like(z, "noise")
        z_t, text = self.schedule.add_noise(z, eps, t), self.embed(captions)
        dtype = self.unet.conv_in.weight.dtype
        with routed(self.unet, NAME):
            eps_hat = self.unet(z_t.to(dtype), t, text.to(dtype)).sample
            self.optimize("lora", self.total_loss({"noise": F.mse_loss(eps_hat.float(), eps)}, {}))

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Scaled samples (B, 4, h, w) of the posterior of pictures (B, 3, H, W)."""
        posterior = self.vae.encode(x.to(self.vae.dtype)).latent_dist
        z = posterior.mean.float()
        z = z + posterior.std.float() * self.randn_like(z, "posterior")
        return z * self.vae.config.scaling_factor

    @torch.no_grad()
    def embed(self, captions: list[str]) -> Tensor:
        """Embeddings (B, L, D) of captions; each different one goes through the text encoder once a run."""
        from lightning_styles.pretrained.stable_diffusion import encode_prompts

        new = sorted(set(captions) - self.text.keys())
        if new:
            self.text |= zip(new, encode_prompts(self.base.text_encoder, self.base.tokenizer, new), strict=True)
        return torch.stack([self.text[caption] for caption in captions]).to(self.device)

    def preview(self) -> dict[str, Tensor]:
        prompts, size = list(self.hparams.preview_prompts), self.hparams.preview_size
        text = self.embed([*prompts, ""])
        generator = torch.Generator().manual_seed(self.seed)
        latent = size // 2 ** (len(self.vae.config.block_out_channels) - 1)
        z = torch.randn(len(prompts), self.vae.config.latent_channels, latent, latent, generator=generator)
        with routed(self.unet, NAME):
            z = self.sample(z.to(self.device), text[:-1], text[-1:].expand_as(text[:-1]))
        images = self.vae.decode(z.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return {"result": images.float().clamp(-1, 1)}

    def sample(self, z: Tensor, text: Tensor, empty: Tensor, steps: int = 25, guidance: float = 4.5) -> Tensor:
        """DDIM from noise `z` (B, 4, h, w) under `text` (B, L, D) with classifier-free guidance."""
        dtype, both = self.unet.conv_in.weight.dtype, torch.cat([text, empty])
        for t, t_prev in self.schedule.ddim_timesteps(steps):
            now, before = (torch.full((len(z),), time, device=z.device) for time in (t, t_prev))
            eps = self.unet(torch.cat([z, z]).to(dtype), t, both.to(dtype)).sample.float()
            eps_cond, eps_uncond = eps.chunk(2)
            z = self.schedule.ddim_step(z, eps_uncond + guidance * (eps_cond - eps_uncond), now, before)
        return z

    def closing_lines(self) -> list[str]:
        return [f"Next: python -m lightning_styles convert {self.trainer.log_dir} style_lora.safetensors --to kohya"]

    def export(self, path: Path, layout: str) -> None:
        save_lora(self.unet, path, layout)


def save_lora(unet: Any, path: Path, layout: str) -> None:
    """Write the adapter "style" of `unet` as one safetensors file in "kohya" or "diffusers" layout."""
    from diffusers.utils import convert_state_dict_to_kohya
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    config = unet.peft_config[NAME]
    state = {f"unet.{k}": v for k, v in get_peft_model_state_dict(unet, adapter_name=NAME).items()}
    metadata = {"format": "pt", "ss_network_dim": str(config.r), "ss_network_alpha": f"{config.lora_alpha:g}"}
    if layout == "kohya":
        state = convert_state_dict_to_kohya(state)
        alpha = torch.tensor(float(config.lora_alpha))
        state = {k: alpha.clone() if k.endswith(".alpha") else v for k, v in state.items()}
    else:
        factor = config.lora_alpha / config.r  # this layout has no alpha: it goes into the up matrices
        state = {k: v * factor if "lora_B" in k else v for k, v in state.items()}
    with replacing(path) as temporary:
        save_file({k: v.detach().half().contiguous().cpu() for k, v in state.items()}, temporary, metadata=metadata)
