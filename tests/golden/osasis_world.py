"""Networks, inputs, tolerances and the stand-in for CLIP that the OSASIS parity cases share."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_styles.losses.clip_direction import clip_input
from lightning_styles.models.diffae import DiffAE, DiffAEConfig, LatentConfig
from lightning_styles.models.guided_unet import GuidedConfig, GuidedUNet
from tests.golden.fill import fill_, values

TRANSFORMS = {
    "v": lambda v: v,
    "clamp(0.5*v,-1,1)": lambda v: (0.5 * v).clamp(-1, 1),
    "0.1*v": lambda v: 0.1 * v,
    "0.01+0.002*abs(v)": lambda v: 0.01 + 0.002 * v.abs(),
    "v/sqrt(147)": lambda v: v / 147**0.5,
}
T_RAW = torch.tensor([3, 640])  # the timesteps of all single forwards


def inputs(case: Mapping[str, Any]) -> dict[str, Tensor]:
    """All input tensors of a case."""
    return {
        name: TRANSFORMS[rule["transform"]](values(rule["values_name"], rule["shape"], rule["seed"]))
        for name, rule in case["inputs"].items()
    }


def filled(module: nn.Module, seed: int) -> Any:
    """`module` in eval mode with the weights of `seed`; sorted keys, because two names can share a tensor."""
    fill_(dict(sorted(module.state_dict().items())), seed)
    return module.eval()


def levels_at(resolutions: list[int], size: int) -> tuple[int, ...]:
    """The levels that work at the given resolutions."""
    return tuple(i for i in range(10) if size / 2**i in resolutions)


def latent_config(config: Mapping[str, Any]) -> LatentConfig:
    """The prior's architecture in the notation of this package."""
    skips = tuple(config["skip_layers"])
    return LatentConfig(config["num_hid_channels"], config["num_layers"], skips, config["num_time_emb_channels"])


def diffae_config(config: Mapping[str, Any]) -> DiffAEConfig:
    """The autoencoder's architecture in the notation of this package."""
    attention = levels_at(config["attention_resolutions"], config["image_size"])
    return DiffAEConfig(
        channels=config["model_channels"],
        multipliers=tuple(config["channel_mult"]),
        res_blocks=config["num_res_blocks"],
        attention_levels=attention,
        encoder_multipliers=tuple(config["enc_channel_mult"]),
        encoder_res_blocks=config["enc_num_res_blocks"],
        encoder_attention_levels=attention,
        heads=config["num_heads"],
        embedding=config["embed_channels"],
        dropout=config["dropout"],
        latent=latent_config(config["latent"]),
    )


def guided_config(config: Mapping[str, Any]) -> GuidedConfig:
    """The P2 network's architecture in the notation of this package."""
    resolutions = [int(part) for part in config["attention_resolutions"].split(",")]
    return GuidedConfig(
        channels=config["num_channels"],
        multipliers=tuple(int(part) for part in config["channel_mult"].split(",")),
        res_blocks=config["num_res_blocks"],
        attention_levels=levels_at(resolutions, config["image_size"]),
        head_channels=config["num_head_channels"],
        dropout=config["dropout"],
    )


def diffae(case: Mapping[str, Any], name: str = "diffae") -> DiffAE:
    """The autoencoder `name` of a case."""
    return filled(DiffAE(diffae_config(case["config"])), case["weights"][name]["seed"])


def guided_unet(case: Mapping[str, Any]) -> GuidedUNet:
    """The P2 network of a case."""
    return filled(GuidedUNet(guided_config(case["config"])), case["weights"]["p2"]["seed"])


def fake_clip(weight: Tensor, image: Tensor) -> Tensor:
    """Embeddings (B, E) by a linear map `weight` (E, 147) of the 7 x 7 averages of what CLIP would be shown."""
    return F.adaptive_avg_pool2d(clip_input(image, "osasis"), 7).flatten(1) @ weight.T


def fake_clip_of(case_inputs: Mapping[str, Tensor]) -> partial[Tensor]:
    """`fake_clip` with the weight of a case."""
    return partial(fake_clip, case_inputs["fake_clip.weight"])


def excess(found: Tensor, expected: Tensor, rule: Mapping[str, Any]) -> float:
    """Largest deviation in units of a case's tolerance: it agrees when this is at most 1."""
    scale = max(1.0, expected.std().item()) if expected.numel() > 1 and "rule" in rule else 1.0
    allowed = rule["atol"] * scale + rule["rtol"] * expected.abs()
    return ((found.detach() - expected).abs() / allowed).max().item()


def distance(found: Tensor, expected: Tensor) -> float:
    """||found - expected|| / ||expected||."""
    return ((found - expected).norm() / expected.norm()).item()
