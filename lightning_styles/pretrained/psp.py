"""Files of encoders into the styles of StyleGAN2: pSp's `.pt`, its Z+ descendants, and safetensors of this package."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.files import replacing
from lightning_styles.models.arcface import ArcFace
from lightning_styles.models.psp import GradualStyleEncoder, Space
from lightning_styles.models.stylegan2 import Generator
from lightning_styles.pretrained.judges import with_counters
from lightning_styles.pretrained.stylegan2 import build_generator
from lightning_styles.pretrained.weights import as_state, as_vector, build, parse_json, read_safetensors, read_torch


@dataclass
class PSP:
    """A trained encoder.

    Attributes:
        encoder: frozen.
        space: where its codes lie.
        latent_avg: (L, D), to be added to its codes; None: nothing is.
        decoder: the generator that it was trained with, if the file holds that.
    """

    encoder: GradualStyleEncoder
    space: Space
    latent_avg: Tensor | None = None
    decoder: Generator | None = None


def load_psp(path: Path, space: Space | None = None) -> PSP:
    """`psp_ffhq_encode.pt`, the `encoder.pt` of a Z+ encoder, or safetensors of `save_psp`.

    Args:
        path: its file.
        space: where the codes lie, which `.pt` files do not say: W+ if not given, Z+ if there is a variational head.

    Raises:
        UserError: damaged, of another architecture (the first keys that differ are named), or unsafe to open.
    """
    if path.suffix == ".safetensors":
        return _load_own(path)
    found = read_torch(path)
    if not isinstance(found, Mapping) or not isinstance(found.get("state_dict"), Mapping):
        has = ", ".join(list(map(str, found))[:5]) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"{path.name} holds {has}; expected state_dict, latent_avg and opts of a pSp checkpoint.")
    options = _options(found.get("opts"))
    if options.get("learn_in_w") or options.get("encoder_type", "GradualStyleEncoder") != "GradualStyleEncoder":
        raise UserError(f"{path.name} encodes into W alone; expected an encoder of one style per layer.")
    parts: dict[str, dict[str, Tensor]] = {"encoder": {}, "decoder": {}}
    for key, tensor in as_state(found["state_dict"], path.name, "state_dict").items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})[rest] = tensor
    state = with_counters(parts["encoder"])
    styles = sum(key.startswith("styles.") and key.endswith(".linear.weight") for key in state)
    variational = "fc_mu.weight" in state
    encoder = build(partial(GradualStyleEncoder, styles or 18, variational=variational), state, path.name)
    space = space or ("z_plus" if variational else "w_plus")
    average = found.get("latent_avg") if options.get("start_from_latent_avg", space == "w_plus") else None
    if average is None and options.get("start_from_latent_avg"):
        raise UserError(
            f"{path.name} lacks latent_avg, to which its options say that codes are added; use another copy."
        )
    return PSP(
        encoder,
        space,
        None if average is None else _average(average, encoder, path.name),
        build_generator(parts["decoder"], path.name) if parts["decoder"] else None,
    )


def save_psp(path: Path, model: PSP, dtype: torch.dtype = torch.float16) -> None:
    """Write safetensors that `load_psp` reads, without the decoder, in half precision unless `dtype` says otherwise."""
    from safetensors.torch import save_file

    state = {f"encoder.{key}": tensor.detach().cpu() for key, tensor in model.encoder.state_dict().items()}
    if model.latent_avg is not None:
        state["latent_avg"] = model.latent_avg.detach().cpu()
    halved = {k for k, t in state.items() if t.is_floating_point() and ".running_" not in k}  # variances may be large
    tensors = {k: (t.to(dtype) if k in halved else t).contiguous() for k, t in state.items()}
    metadata = {"arguments": json.dumps(model.encoder.arguments), "space": model.space}
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def take_trunk(encoder: GradualStyleEncoder, network: ArcFace) -> None:
    """Start the trunk of an `encoder` of the official widths from face recognition, in place."""
    encoder.input_layer.load_state_dict(network.input_layer.state_dict())
    encoder.body.load_state_dict(network.body.state_dict())


def _load_own(path: Path) -> PSP:
    state, metadata = read_safetensors(path)
    try:
        arguments = parse_json(metadata["arguments"], "its header")
        space = metadata["space"]
        make = partial(GradualStyleEncoder, **{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
        if space not in get_args(Space):
            raise ValueError(space)
    except (KeyError, ValueError, TypeError, AttributeError, UserError) as error:
        cause = str(error).rstrip(".")
        raise UserError(f"{path.name} is no encoder of lightning_styles ({cause}); train or convert one.") from error
    average = state.pop("latent_avg", None)
    weights = {key.removeprefix("encoder."): tensor for key, tensor in state.items()}
    encoder = build(make, weights, path.name)
    return PSP(encoder, cast("Space", space), None if average is None else _average(average, encoder, path.name))


def _average(found: Any, encoder: GradualStyleEncoder, source: str) -> Tensor:
    """(L, D), one mean of w for each style, of a file that holds that or one for all."""
    styles, length = encoder.arguments["n_styles"], encoder.arguments["style_dim"]
    several = isinstance(found, Tensor) and found.numel() == styles * length
    average = as_vector(found, styles * length if several else length, source, "latent_avg")
    return average.reshape(-1, length).expand(styles, -1).clone()


def _options(found: Any) -> Mapping[str, Any]:
    return found if isinstance(found, Mapping) else {}
