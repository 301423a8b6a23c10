"""Concept Sliders from image pairs (arXiv 2311.12092, section 4.2): one LoRA whose sign says which way to go."""

from typing import Any

import torch
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles import noise
from lightning_styles.batches import Needs
from lightning_styles.errors import at_least, within
from lightning_styles.losses.denoising import denoising_loss
from lightning_styles.methods.lora_method import ATTENTION, PAIR, STYLE, LoRAMethod
from lightning_styles.models.adapters import MOST_RANK, adapter_parameters, add_lora, routed


class ConceptSlider(LoRAMethod):
    """Learn the direction from photo to twin: the LoRA at strength 1 denoises the twin, at strength -1 the photo.

    Both get the same eps, t and prompt.

    Args:
        rank: of the LoRA.
        alpha: of the LoRA, which is scaled by alpha / rank.
        targets: names, or ends of names, of the layers that get one.
        lr: learning rate of AdamW, constant.
        weight_decay: of AdamW.
        drawing: settings of `LoRAMethod`.
    """

    needs = LoRAMethod.needs | {"fit": (Needs(PAIR),)}

    def __init__(
        self,
        *,
        rank: int = 4,
        alpha: float = 1.0,
        targets: list[str] = ATTENTION,
        lr: float = 2e-4,
        weight_decay: float = 1e-2,
        **drawing: Any,
    ) -> None:
        super().__init__(**drawing)
        within(1, MOST_RANK, rank=rank)
        at_least(0, alpha=alpha, lr=lr, weight_decay=weight_decay)
        self.save_hyperparameters()

    def add_adapters(self) -> None:
        h = self.hparams
        add_lora(self.unet, STYLE, h.rank, h.alpha, h.targets, noise.generator(self.seed, "lora"))

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        trained = list(adapter_parameters(self.unet, STYLE).values())
        return {"lora": (AdamW(trained, lr=self.hparams.lr, weight_decay=self.hparams.weight_decay), None)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """|| eps - eps_{+}(z_s, t) ||^2 + || eps - eps_{-}(z_c, t) ||^2, both halves in one batch."""
        pairs = len(batch["prompt"])
        x = torch.cat([batch["style"], batch["content"]])
        z = self.sampled(*self.posterior(x), "posterior")
        t = torch.randint(self.schedule.T, (pairs,), generator=self.generator("timestep")).to(z.device).repeat(2)
        eps = self.randn_like(z[:pairs], "noise").repeat(2, 1, 1, 1)
        sizes = torch.cat([batch["style_size"], batch["content_size"]])
        time_ids = self.time_ids(x, sizes, batch["crop"].repeat(2, 1))
        way = [((STYLE, 1.0),)] * pairs + [((STYLE, -1.0),)] * pairs
        with routed(self.unet, way):
            eps_hat = self.denoise(self.schedule.add_noise(z, eps, t), t, batch["prompt"] * 2, time_ids)
            losses = {
                name: denoising_loss(eps_hat[rows], eps[rows], self.schedule.alpha_bar(t[rows]))
                for name, rows in (("style", slice(pairs)), ("content", slice(pairs, None)))
            }
            self.optimize("lora", self.total_loss(losses, {}))
