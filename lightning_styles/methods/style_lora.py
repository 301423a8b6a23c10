"""StyleLoRA: DreamBooth-LoRA, a low-rank adapter of the UNet learned from style pictures and a prompt.

DreamBooth is arXiv 2208.12242 (equation 1 without the class prior), LoRA arXiv 2106.09685.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles import noise
from lightning_styles.batches import Needs
from lightning_styles.errors import at_least, within
from lightning_styles.methods.lora_method import ATTENTION, STYLE, LoRAMethod
from lightning_styles.models.adapters import MOST_RANK, adapter_parameters, add_lora, routed


class StyleLoRA(LoRAMethod):
    """Learn a style LoRA on the attention layers; the file that it exports loads in every Stable Diffusion tool.

    A batch of `datamodules.StyleImages` holds pictures of the style with captions; of one of `datamodules.Pairs` only
    the stylised half is used, under its prompt and `style_phrase`.

    Args:
        rank: of the LoRA.
        alpha: of the LoRA, which is scaled by alpha / rank.
        targets: names, or ends of names, of the layers that get one.
        lr: learning rate of AdamW, constant.
        weight_decay: of AdamW.
        caption_dropout: probability of an empty caption.
        drawing: settings of `LoRAMethod`.
    """

    needs = LoRAMethod.needs | {"fit": (Needs(("image", "caption")), Needs(("style", "prompt", "style_size", "crop")))}

    def __init__(
        self,
        *,
        rank: int = 16,
        alpha: float = 16.0,
        targets: list[str] = ATTENTION,
        lr: float = 1e-4,
        weight_decay: float = 1e-2,
        caption_dropout: float = 0.0,
        **drawing: Any,
    ) -> None:
        super().__init__(**drawing)
        within(1, MOST_RANK, rank=rank)
        at_least(0, alpha=alpha, lr=lr, weight_decay=weight_decay)
        within(0, 1, caption_dropout=caption_dropout)
        self.save_hyperparameters()

    def add_adapters(self) -> None:
        h = self.hparams
        add_lora(self.unet, STYLE, h.rank, h.alpha, h.targets, noise.generator(self.seed, "lora"))

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        trained = list(adapter_parameters(self.unet, STYLE).values())
        return {"lora": (AdamW(trained, lr=self.hparams.lr, weight_decay=self.hparams.weight_decay), None)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        images, captions, time_ids = self.examples(batch)
        z = self.sampled(*self.posterior(images), "posterior")
        generator = self.generator("timestep")
        t = torch.randint(self.schedule.T, (len(z),), generator=generator).to(z.device)
        kept = torch.rand(len(z), generator=generator) >= self.hparams.caption_dropout
        captions = [c if keep else "" for c, keep in zip(captions, kept.tolist(), strict=True)]
        eps = self.randn_like(z, "noise")
        with routed(self.unet, STYLE):
            eps_hat = self.denoise(self.schedule.add_noise(z, eps, t), t, captions, time_ids)
            self.optimize("lora", self.total_loss({"noise": F.mse_loss(eps_hat, eps)}, {}))

    def examples(self, batch: dict[str, Any]) -> tuple[Tensor, list[str], Tensor]:
        """Pictures (B, 3, H, W) of the style, their captions and what SDXL is told of their sizes."""
        if "style" in batch and "prompt" in batch:
            captions = [self.in_style(prompt) for prompt in batch["prompt"]]
            return batch["style"], captions, self.time_ids(batch["style"], batch["style_size"], batch["crop"])
        return batch["image"], batch["caption"], self.time_ids(batch["image"])
