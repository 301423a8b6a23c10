"""Train a small SDXL (arXiv 2307.01952): two text encoders, sizes and crops as conditions, attention below the top."""

from typing import Any

import torch
from torch import Tensor

from lightning_styles.errors import at_least
from lightning_styles.pretrained.stable_diffusion import StableDiffusion, embed_prompts, load_stable_diffusion
from lightning_styles.pretraining.latent_diffusion import SCHEDULER, LatentDiffusionPretraining

TIME_WIDTH = 16  # of the embedding of each of the six numbers


class LatentDiffusionXLPretraining(LatentDiffusionPretraining):
    """As `LatentDiffusionPretraining`, in the layout of SDXL.

    The first resolution of the UNet has no attention, the others have `depths` transformer blocks. All pictures are
    whole and of one size, so the six numbers that SDXL is told are always the same.

    `start` may be a Stable Diffusion 1.x: its text encoder is the first one here, and layers of the UNet that have the
    same name and shape begin with its weights.

    Args:
        depths: transformer blocks at each resolution but the first.
        second_text_width: hidden size of the second text encoder, whose projection is the pooled text.
        second_text_layers: its layers.
        shared: settings of `LatentDiffusionPretraining`.
    """

    def __init__(
        self, *, depths: list[int], second_text_width: int = 64, second_text_layers: int = 2, **shared: Any
    ) -> None:
        super().__init__(**shared)
        at_least(1, second_text_width=second_text_width, second_text_layers=second_text_layers)
        self.save_hyperparameters()

    def kept(self, name: str) -> bool:
        return name.startswith(("unet.", "text_encoder.", "text_encoder_2."))

    def build_networks(self) -> None:
        from diffusers import UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        h = self.hparams
        levels = len(h.depths)
        self.text_encoder = CLIPTextModel(self.text_config(h.text_width, h.text_layers))
        self.text_encoder_2 = CLIPTextModelWithProjection(self.text_config(h.second_text_width, h.second_text_layers))
        self.unet = UNet2DConditionModel(
            sample_size=16,
            down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * levels,
            up_block_types=("CrossAttnUpBlock2D",) * levels + ("UpBlock2D",),
            block_out_channels=tuple(h.widths),
            layers_per_block=1,
            transformer_layers_per_block=(1, *h.depths),
            cross_attention_dim=h.text_width + h.second_text_width,
            attention_head_dim=h.heads,
            norm_num_groups=16,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_WIDTH,
            projection_class_embeddings_input_dim=6 * TIME_WIDTH + h.second_text_width,
        )
        if h.start:
            self.take_over(load_stable_diffusion(h.start))

    def take_over(self, start: StableDiffusion) -> None:
        """Begin with the layers of `start` that exist here in the same shape."""
        self.text_encoder.load_state_dict(start.text_encoder.state_dict())
        own = self.unet.state_dict()
        theirs = {key: value for key, value in start.unet.state_dict().items() if key in own}
        self.unet.load_state_dict({k: v for k, v in theirs.items() if own[k].shape == v.shape}, strict=False)

    def predict_noise(self, z_t: Tensor, t: Tensor, captions: list[str]) -> Tensor:
        text = embed_prompts(self.bundle(), captions)
        side = z_t.shape[-1] * self.vae_factor
        time_ids = torch.tensor([[side, side, 0, 0, side, side]], device=z_t.device).expand(len(z_t), -1)
        conditions = {"text_embeds": text.pooled, "time_ids": time_ids}
        return self.unet(z_t, t, text.states, added_cond_kwargs=conditions).sample

    def bundle(self) -> StableDiffusion:
        first = (self.unet, self.vae, self.text_encoder, self.tokenizer)
        return StableDiffusion(*first, SCHEDULER, "", text_encoder_2=self.text_encoder_2, tokenizer_2=self.tokenizer)
