"""Style, real and fake noise predictions from as few UNets as the bases allow, in as few calls.

Notation: P pictures, K prompts for each (conditional, empty), C channels, h w latent, L prompt length, D its width.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_styles.models.adapters import adapter_parameters, add_lora, reset_lora, routed

Role = Literal["style", "real", "fake"]
STYLE = "style"


def fake_name(picture: int) -> str:
    """Name of the adapter that models the score of picture number `picture`."""
    return f"fake{picture}"


@dataclass
class Query:
    """Ask the model `role` for its prediction on noised latents `z_t` (P, C, h, w) under `text` (P, K, L, D)."""

    role: Role
    z_t: Tensor
    text: Tensor


class Scores(nn.Module):
    """Three models in one or two UNets: the base, the base with a style LoRA, and one fake-score LoRA per picture.

    Args:
        style_unet: frozen UNet that carries the adapter "style", if there is one.
        real_unet: frozen UNet of the real and fake scores; may be the same object.
        has_lora: whether `style_unet` carries the adapter "style".
    """

    def __init__(self, style_unet: Any, real_unet: Any, *, has_lora: bool) -> None:
        super().__init__()
        self.real_unet = real_unet
        self.style_unet = None if style_unet is real_unet else style_unet
        self.has_lora = has_lora

    def add_fakes(self, pictures: int, rank: int, alpha: float) -> None:
        """Make sure that there is a fake-score LoRA for each of `pictures` (SMS: every to_q and to_v)."""
        present = getattr(self.real_unet, "peft_config", {})
        for name in map(fake_name, range(pictures)):
            if name not in present:
                add_lora(self.real_unet, name, rank=rank, alpha=alpha, targets=["to_q", "to_v"])

    def reset_fake(self, picture: int, generator: torch.Generator) -> None:
        """Give the fake score of `picture` its initial value, the real score."""
        reset_lora(self.real_unet, fake_name(picture), generator)

    def fake_parameters(self, pictures: int) -> list[nn.Parameter]:
        """What is trained of the fake scores of the first `pictures`."""
        return [p for i in range(pictures) for p in adapter_parameters(self.real_unet, fake_name(i)).values()]

    def forward(self, queries: list[Query], t: Tensor) -> list[Tensor]:
        """Predictions (P, K, C, h, w) in float32 for each query, all at timesteps `t` (P,); one call per UNet."""
        answers: dict[int, Tensor] = {}
        for unet in {id(u): u for u in map(self.unet, queries)}.values():
            mine = [i for i, query in enumerate(queries) if self.unet(query) is unet]
            for i, answer in zip(mine, self.run(unet, [queries[i] for i in mine], t), strict=True):
                answers[i] = answer
        return [answers[i] for i in range(len(queries))]

    def unet(self, query: Query) -> Any:
        """The UNet that answers `query`."""
        if query.role == "style" and self.style_unet is not None:
            return self.style_unet
        return self.real_unet

    def adapter(self, role: Role, picture: int) -> str | None:
        """The adapter that makes its UNet the model `role` for `picture`; None is the frozen base."""
        if role == "fake":
            return fake_name(picture)
        return STYLE if role == "style" and self.has_lora else None

    def run(self, unet: Any, queries: list[Query], t: Tensor) -> list[Tensor]:
        """Answer all `queries` of one UNet in one call; the K prompts of a picture are neighbouring rows."""
        z, times, text, names = [], [], [], []
        for query in queries:
            k = query.text.shape[1]
            z.append(query.z_t.repeat_interleave(k, 0))
            times.append(t.repeat_interleave(k))
            text.append(query.text.flatten(0, 1))
            names += [self.adapter(query.role, p) for p in range(len(t)) for _ in range(k)]
        dtype = unet.conv_in.weight.dtype
        # Small differences of predictions count, so the precision is that of the weights, whatever the trainer's.
        with routed(unet, names), torch.autocast(t.device.type, enabled=False):
            eps = unet(torch.cat(z).to(dtype), torch.cat(times), torch.cat(text).to(dtype)).sample
        sizes = [len(part) for part in z]
        return [e.float().unflatten(0, (len(t), -1)) for e in eps.split(sizes)]
