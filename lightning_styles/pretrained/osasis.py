"""Checkpoints `iter_<n>.pt` of OSASIS, of its official code and for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.files import replacing
from lightning_styles.models.diffae import DiffAE, DiffAEConfig, DiffAEUNet
from lightning_styles.models.spn import MappingNet, MappingNetTime, NoSPN
from lightning_styles.pretrained.architecture import diffae_config
from lightning_styles.pretrained.diffae import tied
from lightning_styles.pretrained.weights import build, read_torch

SPN = MappingNetTime | MappingNet
KEYS = ("iter", "diffae_B", "model_map", "optim_diffae_B", "optim_map")


@dataclass
class Stylizer:
    """A trained OSASIS.

    Attributes:
        iteration: how far it was trained.
        model: DiffAE B, whose encoder and prior are those of A; frozen.
        spn: the structure-preserving network, or None; frozen.
        optimizers: state dicts of Adam by name, "unet" (over the UNet's parameters alone) and "spn", where present.
    """

    iteration: int
    model: DiffAE
    spn: SPN | None
    optimizers: dict[str, dict[str, Any]] = field(default_factory=dict)


def load_osasis(path: Path, config: DiffAEConfig | None = None) -> Stylizer:
    """Read an `iter_<n>.pt`.

    Args:
        path: its file.
        config: architecture of the autoencoder; None reads it off the file, for one attention head.

    Raises:
        UserError: damaged, of another architecture (the first keys that differ are named), or unsafe to open.
    """
    found = read_torch(path)
    if not isinstance(found, Mapping) or "diffae_B" not in found or not set(found) <= set(KEYS):
        has = ", ".join(list(map(str, found))[:5]) if isinstance(found, Mapping) else type(found).__name__
        raise UserError(f"{path.name} holds {has}; expected {', '.join(KEYS)} of an OSASIS checkpoint.")
    state = tied(found["diffae_B"], path.name)
    model = build(partial(DiffAE, config or diffae_config(state)), state, path.name)
    spn = None
    if "model_map" in found:
        kind = MappingNet if "layers.0.weight" in found["model_map"] else MappingNetTime
        spn = build(kind, found["model_map"], path.name)
    optimizers = {name: found[key] for name, key in (("unet", KEYS[3]), ("spn", KEYS[4])) if key in found}
    if "unet" in optimizers:
        optimizers["unet"] = resized(optimizers["unet"], _unet_parameters(model))
    return Stylizer(int(found.get("iter", 0)), model, spn, optimizers)


def save_osasis(
    path: Path,
    iteration: int,
    autoencoder: DiffAE,
    unet: DiffAEUNet,
    spn: SPN | NoSPN | None = None,
    optimizers: Mapping[str, dict[str, Any]] | None = None,
) -> None:
    """Write an `iter_<n>.pt` that the official code reads.

    Args:
        path: the file.
        iteration: iterations done.
        autoencoder: A, whose encoder and prior B shares.
        unet: the trained UNet of B.
        spn: the structure-preserving network, if there is one.
        optimizers: as in `Stylizer`.
    """
    optimizers = optimizers or {}
    contents: dict[str, Any] = {"iter": iteration, "diffae_B": _cpu(autoencoder.state_dict() | unet.state_dict())}
    has_spn = isinstance(spn, SPN)
    if has_spn:
        contents["model_map"] = _cpu(spn.state_dict())
    if "unet" in optimizers:
        # The official optimizer was given all of B; what is not the UNet follows it and never had a gradient.
        contents["optim_diffae_B"] = resized(optimizers["unet"], len(list(autoencoder.parameters())))
    if "spn" in optimizers and has_spn:
        contents["optim_map"] = optimizers["spn"]
    with replacing(path) as temporary:
        torch.save(contents, temporary)


def take_trained(path: Path, autoencoder: DiffAE, unet: DiffAEUNet, spn: SPN | NoSPN) -> None:
    """Fill B's UNet and the SPN, in place, from an `iter_<n>.pt` that was trained on `autoencoder`.

    Raises:
        UserError: as `load_osasis`, or it was trained on another autoencoder or with another SPN.
    """
    found = load_osasis(path, autoencoder.config)
    kinds = {MappingNetTime: "time", MappingNet: "plain", type(None): "none", NoSPN: "none"}
    has, wants = (kinds[type(network)] for network in (found.spn, spn))
    if has != wants:
        raise UserError(f"{path.name} was trained with model.spn {has}, not {wants}; set it so.")
    # B's encoder never moves, so it tells which autoencoder it was; half precision moves weights by 0.1 %.
    ours, theirs = (torch.cat([p.flatten() for p in A.encoder.parameters()]) for A in (autoencoder, found.model))
    if (ours - theirs).norm() > 0.01 * ours.norm():
        raise UserError(
            f"{path.name} was trained on another autoencoder than model.diffae; give the one it began with."
        )
    trained = found.model.state_dict()
    unet.load_state_dict({key: trained[key] for key in unet.state_dict()})
    spn.load_state_dict({} if found.spn is None else found.spn.state_dict())


def resized(optimizer: Mapping[str, Any], parameters: int) -> dict[str, Any]:
    """An optimizer's state dict for the first `parameters` of its only group, or for some more without a state.

    Raises:
        UserError: several groups, or a state of a parameter beyond that number.
    """
    groups, state = optimizer["param_groups"], optimizer["state"]
    if len(groups) != 1 or max(state, default=-1) >= parameters:
        raise UserError(
            f"the optimizer of B has {len(groups)} groups and moved parameter {max(state, default=-1)}; expected one "
            f"group and only the {parameters} parameters of the UNet."
        )
    return {"state": dict(state), "param_groups": [groups[0] | {"params": list(range(parameters))}]}


def _unet_parameters(model: DiffAE) -> int:
    return sum(not name.startswith(("encoder.", "latent_net.")) for name, _ in model.named_parameters())


def _cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu() for key, tensor in state.items()}
