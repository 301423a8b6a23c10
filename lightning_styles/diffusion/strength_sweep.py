"""What a style does at growing strength: one picture with labels, because that is how people choose."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_styles import noise
from lightning_styles.diffusion.styles import Style
from lightning_styles.sheet import labelled


def strength_sweep(
    pipeline: Any,
    prompts: Sequence[str],
    style: Style,
    strengths: Sequence[float] = (1.0, 2.0, 3.0, 4.0, 5.0),
    *,
    seed: int = 0,
    **settings: Any,
) -> Tensor:
    """A sheet (3, H, W) in [-1, 1]: a row for each prompt, in it the base's picture and one for each strength.

    Args:
        pipeline: `StyleGuidancePipeline` or `StyleGuidanceXLPipeline`.
        prompts: without words of style.
        style: its own strength is not used.
        strengths: of the columns.
        seed: of the noise, which depends on it and the prompt alone and so is the same in a row.
        settings: further arguments of the pipeline's call.
    """
    columns = []
    for strength in (0.0, *strengths):
        images = pipeline(
            list(prompts),
            styles=[replace(style, strength=strength)],
            generator=[noise.generator(seed, prompt, "sweep") for prompt in prompts],
            output_type="pt",
            **settings,
        ).images
        name = f"strength {strength:g}" if strength else "base"
        columns.append([labelled(x * 2 - 1, prompt, name) for x, prompt in zip(images, prompts, strict=True)])
    return torch.cat([torch.cat(column, dim=-2) for column in columns], dim=-1)
