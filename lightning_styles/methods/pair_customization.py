"""PairCustomization: a style learned from one photo and its stylised twin (arXiv 2405.01536).

Notation: z_c, z_s latents of photo and twin; eps one noise and t one timestep for both; theta_0 the frozen base; B_c,
B_s what is trained of the content and the style LoRA.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles import noise
from lightning_styles.batches import Needs
from lightning_styles.errors import UserError, at_least, within
from lightning_styles.losses.denoising import denoising_loss
from lightning_styles.methods.lora_method import ATTENTION, PAIR, STYLE, LoRAMethod
from lightning_styles.models.adapters import MOST_RANK, routed
from lightning_styles.models.orthogonal import BASIS_SEED, add_gaussian_loras, add_orthogonal_loras
from lightning_styles.pretrained.lora_export import save_lora

CONTENT = "content"
BOTH = ((CONTENT, 1.0), (STYLE, 1.0))


class PairCustomization(LoRAMethod):
    """Learn content and style of a pair apart, in two LoRAs; only the style LoRA is kept for new pictures.

    The content LoRA reconstructs the photo (equation 4); from `style_from` on the style LoRA, on top of the content
    LoRA without its gradient, reconstructs the stylised twin (equation 6).

    Args:
        style_phrase: what the style adds to every prompt, such as "in digital art style".
        style_from: iterations in which the content LoRA learns alone.
        content_rank: of the content LoRA, whose alpha is its rank.
        style_rank: of the style LoRA, likewise.
        down: the down matrices A: "orthogonal" to each other and fixed (section 3.2), or the ablation "gaussian",
            trained.
        updates: "sequential" steps, in which the style sees the content LoRA that this iteration has moved (official
            code), or one "joint" step on the sum of both losses (equation 7), which is cheaper.
        basis_seed: of the orthonormal bases.
        targets: names, or ends of names, of the layers that get LoRAs.
        lr: learning rate of AdamW, constant.
        weight_decay: of AdamW.
        snr_gamma: weigh timesteps by min(SNR, gamma) / SNR (arXiv 2303.09556); null weighs all alike, as in the paper.
        noise_offset: standard deviation of a shift of each channel's noise, 0 as in the paper.
        drawing: settings of `LoRAMethod`.
    """

    needs = LoRAMethod.needs | {"fit": (Needs((*PAIR, "row"), ("views",)),)}
    formats = {
        "kohya": "style_lora.safetensors",
        "diffusers": "pytorch_lora_weights.safetensors",
        "official": "style_weights/pytorch_lora_weights.safetensors",
        "content_kohya": "content_lora.safetensors",
        "content_diffusers": "content_weights/pytorch_lora_weights.safetensors",
    }

    def __init__(
        self,
        *,
        style_phrase: str,
        style_from: int = 250,
        content_rank: int = 64,
        style_rank: int = 64,
        down: Literal["orthogonal", "gaussian"] = "orthogonal",
        updates: Literal["sequential", "joint"] = "sequential",
        basis_seed: int = BASIS_SEED,
        targets: list[str] = ATTENTION,
        lr: float = 1e-5,
        weight_decay: float = 1e-4,
        snr_gamma: float | None = None,
        noise_offset: float = 0.0,
        **drawing: Any,
    ) -> None:
        super().__init__(style_phrase=style_phrase, **drawing)
        within(1, MOST_RANK, content_rank=content_rank, style_rank=style_rank)
        at_least(0, style_from=style_from, lr=lr, weight_decay=weight_decay)
        at_least(0, noise_offset=noise_offset, snr_gamma=snr_gamma)
        if not style_phrase.strip():
            raise UserError('style_phrase is empty; say how the twin differs, for example "in digital art style".')
        if style_from >= self.iterations:
            raise UserError(
                f"style_from is {style_from}, but the run has {self.iterations} iterations; "
                "the style would never be learned: make style_from smaller or the run longer."
            )
        self.save_hyperparameters()

    def kept(self, name: str) -> bool:
        orthogonal = self.hparams.down == "orthogonal"  # then A follows from basis_seed
        return ".lora_B." in name or (".lora_A." in name and not orthogonal)

    def add_adapters(self) -> None:
        h = self.hparams
        ranks = {CONTENT: h.content_rank, STYLE: h.style_rank}
        if h.down == "orthogonal":
            self.trained = add_orthogonal_loras(self.unet, ranks, h.targets, h.basis_seed)
        else:
            self.trained = add_gaussian_loras(self.unet, ranks, h.targets, noise.generator(self.seed, "lora"))
        self.posteriors: dict[str, tuple[Tensor, ...]] = {}

    def named_optimizers(self) -> dict[str, tuple[Optimizer, LambdaLR | None]]:
        h = self.hparams
        trained = [*self.trained[CONTENT], *self.trained[STYLE]]
        return {"loras": (AdamW(trained, lr=h.lr, weight_decay=h.weight_decay), None)}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """One t and one eps for both pictures; then the content alone, then the style on top of it."""
        z_c, z_s = self.latents(batch)
        t, eps = self.timesteps(z_c), self.noise(z_c)
        alone = self.iteration < self.hparams.style_from
        if self.hparams.updates == "joint" and not alone:
            losses = {"content": self.content_loss(batch, z_c, eps, t), "style": self.style_loss(batch, z_s, eps, t)}
            self.optimize("loras", self.total_loss(losses, {}))
            return
        losses = {"content": self.content_loss(batch, z_c, eps, t)}
        self.optimize("loras", losses["content"], ends_iteration=alone)
        if not alone:
            losses["style"] = self.style_loss(batch, z_s, eps, t)
            self.optimize("loras", losses["style"])
        self.total_loss({name: loss.detach() for name, loss in losses.items()}, {})

    def content_loss(self, batch: dict[str, Any], z_c: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """|| eps - eps_{theta_0 + B_c}(z_c, t, c) ||^2 (equation 4)."""
        time_ids = self.time_ids(batch["content"], batch["content_size"], batch["crop"])
        with routed(self.unet, CONTENT):
            eps_hat = self.denoise(self.schedule.add_noise(z_c, eps, t), t, batch["prompt"], time_ids)
        return self.loss(eps_hat, eps, t)

    def style_loss(self, batch: dict[str, Any], z_s: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """|| eps - eps_{theta_0 + sg[B_c] + B_s}(z_s, t, c_style) ||^2 (equation 6)."""
        prompts = [self.in_style(prompt) for prompt in batch["prompt"]]
        time_ids = self.time_ids(batch["style"], batch["style_size"], batch["crop"])
        with routed(self.unet, BOTH, detached=[CONTENT]):
            eps_hat = self.denoise(self.schedule.add_noise(z_s, eps, t), t, prompts, time_ids)
        return self.loss(eps_hat, eps, t)

    def loss(self, eps_hat: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The mean squared error, by choice weighed by signal-to-noise ratio."""
        return denoising_loss(eps_hat, eps, self.schedule.alpha_bar(t), self.hparams.snr_gamma)

    def timesteps(self, z: Tensor) -> Tensor:
        """t (B,), uniform over all of the schedule."""
        return torch.randint(self.schedule.T, (len(z),), generator=self.generator("timestep")).to(z.device)

    def noise(self, z: Tensor) -> Tensor:
        """eps like z, by choice with an offset of each channel."""
        eps = self.randn_like(z, "noise")
        if self.hparams.noise_offset:
            eps = eps + self.hparams.noise_offset * self.randn_like(z[..., :1, :1], "noise offset")
        return eps

    def latents(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Latents of photos and twins, drawn anew from posteriors that are computed once for each view of a pair."""
        for i, row in enumerate(batch["row"]):
            if row not in self.posteriors:  # one by one: no last bit depends on which views come together
                parts = (*self.posterior(batch["content"][i : i + 1]), *self.posterior(batch["style"][i : i + 1]))
                self.posteriors[row] = tuple(part[0] for part in parts)
                if len(self.posteriors) == self.trainer.datamodule.views:  # type: ignore[attr-defined]
                    self.base.vae.to("cpu")  # nothing is left to encode
        columns = zip(*(self.posteriors[row] for row in batch["row"]), strict=True)
        mean_c, std_c, mean_s, std_s = map(torch.stack, columns)
        return self.sampled(mean_c, std_c, "posterior of content"), self.sampled(mean_s, std_s, "posterior of style")

    def export(self, path: Path, layout: str) -> None:
        name = CONTENT if layout.startswith("content_") else STYLE
        metadata = self.lora_metadata() | {"adapter": name}
        save_lora(self.unet, path, layout.removeprefix("content_"), name, metadata, torch.float32)
