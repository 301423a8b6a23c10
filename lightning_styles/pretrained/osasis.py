"""Checkpoints `iter_<n>.pt` of OSASIS, of its official code and for it."""

from collections.abc import Mapping
from dataclasses import dataclass
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
from lightning_styles.pretrained.weights import as_state, build, read_torch

SPN = MappingNetTime | MappingNet
KEYS = ("iter", "diffae_B", "model_map", "optim_diffae_B", "optim_map")


@dataclass
class Stylizer:
    """A trained OSASIS.

    Attributes:
        iteration: how far it was trained.
        model: DiffAE B, whose encoder and prior are those of A; frozen.
        spn: the structure-preserving network, or None; frozen.
    """

    iteration: int
    model: DiffAE
    spn: SPN | None


def load_osasis(path: Path, config: DiffAEConfig | None = None) -> Stylizer:
    """Read an `iter_<n>.pt`; its states of the optimizers are left aside.

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
    state = tied(as_state(found["diffae_B"], path.name, "diffae_B"), path.name)
    model = build(partial(DiffAE, config or diffae_config(state)), state, path.name)
    spn = None
    if "model_map" in found:
        mapping = as_state(found["model_map"], path.name, "model_map")
        spn = build(MappingNet if "layers.0.weight" in mapping else MappingNetTime, mapping, path.name)
    iteration = found.get("iter", 0)
    if not isinstance(iteration, int):
        raise UserError(f"{path.name}: iter is a {type(iteration).__name__}, expected the number of iterations.")
    return Stylizer(iteration, model, spn)


def save_osasis(
    path: Path,
    iteration: int,
    autoencoder: DiffAE,
    unet: DiffAEUNet,
    spn: SPN | NoSPN | None = None,
) -> None:
    """Write an `iter_<n>.pt` that the official code draws with, without the states of the optimizers.

    Args:
        path: the file.
        iteration: iterations done.
        autoencoder: A, whose encoder and prior B shares.
        unet: the trained UNet of B.
        spn: the structure-preserving network, if there is one.
    """
    contents: dict[str, Any] = {"iter": iteration, "diffae_B": _cpu(autoencoder.state_dict() | unet.state_dict())}
    if isinstance(spn, SPN):
        contents["model_map"] = _cpu(spn.state_dict())
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


def _cpu(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu() for key, tensor in state.items()}
