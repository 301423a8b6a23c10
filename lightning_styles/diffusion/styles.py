"""The styles of a guided picture, and which requests for one are refused."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lightning_styles.errors import UserError
from lightning_styles.models.adapters import adapter_names

Mode = Literal["guidance", "scale"]


@dataclass(frozen=True)
class Style:
    """One style of a picture.

    Attributes:
        adapter: name of its LoRA in the UNet, and in the text encoders if it has a part for these.
        suffix: what the styled prompt says after the prompt, such as "in digital art style".
        strength: lambda_style of guidance (paper: 3 to 4, at a guidance scale of 5), or in mode "scale" the LoRA's
            factor alpha (0 to 1).
    """

    adapter: str
    suffix: str
    strength: float = 3.0


def check_prompts(prompts: list[str], negative: list[str] | None) -> None:
    """Refuse no prompt, an empty one, and another number of negative ones."""
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UserError("a prompt is empty; say what the picture shows, such as 'a photo of a dog'.")
    if negative is not None and len(negative) != len(prompts):
        raise UserError(f"{len(negative)} negative prompts for {len(prompts)} prompts; give one, or one for each.")


def check_styles(unet: Any, styles: Sequence[Style], mode: str) -> None:
    """Refuse an unknown mode, and styles whose LoRA is not loaded."""
    if mode not in ("guidance", "scale"):
        raise UserError(f"mode is {mode!r}; expected 'guidance' or 'scale'.")
    known = adapter_names(unet)
    for style in styles:
        if style.adapter not in known:
            raise UserError(
                f"the UNet has no adapter {style.adapter!r}, it has {', '.join(sorted(known)) or 'none'}; "
                "load the style's LoRA under this name first."
            )


def check_control(unet: Any, controlnet: Any, image: Any) -> None:
    """Refuse a ControlNet without a picture, the reverse, and one for another base."""
    if (controlnet is None) != (image is None):
        raise UserError("a ControlNet needs a control_image, and a control_image a ControlNet; give both or neither.")
    if controlnet is None:
        return
    for key in ("cross_attention_dim", "block_out_channels"):
        one, other = controlnet.config[key], unet.config[key]
        if one != other:
            raise UserError(f"the ControlNet has {key} {one}, the base {other}; choose a ControlNet for this base.")
