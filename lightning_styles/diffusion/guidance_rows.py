"""All passes of one guided step as one batch: the rows of the base and of every style side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_styles.models.adapters import Entry, routed
from lightning_styles.pretrained.stable_diffusion import Text


class Rows:
    """G groups of B rows each, group after group, every group with its text and adapters.

    Args:
        unet: a diffusers UNet with adapters.
        groups: adapters and text of each group.
        time_ids: micro-conditioning (1, 6) of SDXL, the same for all rows.
    """

    def __init__(self, unet: Any, groups: Sequence[tuple[Entry, Text]], time_ids: Tensor | None = None) -> None:
        self.unet, self.groups = unet, len(groups)
        self.route = [entry for entry, text in groups for _ in text.states]
        self.dtype = unet.conv_in.weight.dtype  # which may be lower than that of text, latents and differences
        text, added = Text.cat([text for _, text in groups]).to(dtype=self.dtype), None
        if time_ids is not None and text.pooled is not None:
            added = {"text_embeds": text.pooled, "time_ids": time_ids.to(text.pooled.device).repeat(len(self.route), 1)}
        self.text: dict[str, Any] = {"encoder_hidden_states": text.states, "added_cond_kwargs": added}
        self.residuals: Callable[[Tensor, Tensor], dict[str, Any]] = lambda x, t: {}

    def use_control(self, controlnet: Any, image: Tensor, scale: float) -> None:
        """Let a ControlNet see `image` (B, 3, H, W) in [0, 1]; every group gets the residuals of its own prompt."""
        image = image.to(controlnet.device, controlnet.dtype).repeat(self.groups, 1, 1, 1)

        def residuals(x: Tensor, t: Tensor) -> dict[str, Any]:
            down, mid = controlnet(
                x, t, **self.text, controlnet_cond=image, conditioning_scale=scale, return_dict=False
            )
            return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}

        self.residuals = residuals

    def predict(self, x: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """eps of each group, (B, ...), for the same x (B, ...) in all, at the timestep t (0-dimensional)."""
        return self.evaluate(torch.cat([x] * self.groups), t).chunk(self.groups)

    @torch.no_grad()
    def evaluate(self, x: Tensor, t: Tensor) -> Tensor:
        """eps of all rows x (G B, ...), in the precision of x."""
        known, x = x.dtype, x.to(self.dtype)
        residuals = self.residuals(x, t)
        with routed(self.unet, self.route):
            return self.unet(x, t, **self.text, **residuals, return_dict=False)[0].to(known)
