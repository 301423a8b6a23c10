"""StyleGAN2 networks in the pickles of NVIDIA's PyTorch code (arXiv 2006.06676), read without running what is inside.

Such a pickle carries its own source code, which its classes would compile and run. Here nothing of it is called or
imported: of every network only the tree of its parameters and buffers is taken.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from math import log2
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from lightning_styles.errors import UserError
from lightning_styles.pretrained.weights import Foreign, plain_names

DROPPED = ("resample_filter", "num_batches_tracked")
NETWORKS = ("G", "D", "G_ema")


class Settings(dict):
    """A dictionary of the pickle's own kind."""


class Tree:
    """What is left of a network: its state."""

    state: Mapping[str, Any] = {}

    def __init__(self, meta: Mapping[str, Any] | None = None) -> None:
        self.__setstate__(meta.get("state") if isinstance(meta, Mapping) else None)

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, Mapping) else {}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """All parameters and buffers by their dotted names."""
        found: dict[str, Tensor] = {}
        for kind in ("_parameters", "_buffers"):
            found |= {prefix + k: v.detach() for k, v in self.state.get(kind, {}).items() if isinstance(v, Tensor)}
        for name, child in self.state.get("_modules", {}).items():
            if isinstance(child, Tree):
                found |= child.tensors(f"{prefix}{name}.")
        return found


def _storage(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


ALLOWED: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Tree,
    ("dnnlib.util", "EasyDict"): Settings,
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("torch", "Size"): torch.Size,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Knows tensors, containers, and stand-ins for networks and numbers of NumPy; refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.startswith("torch.nn.modules."):
            return Tree
        if module.split(".")[0] == "numpy":
            return Foreign
        raise UserError(f"it wants {module}.{name}, which could run code")


def read_nvidia(path: Path) -> dict[str, dict[str, Tensor]]:
    """The state dicts of `G`, `D` and `G_ema`, as far as the pickle holds them, under NVIDIA's names.

    Raises:
        UserError: damaged, of another kind, or it asks for anything but tensors and plain containers.
    """
    if not path.is_file():
        raise UserError(f"No file at {path}; give the path of the pickle.")
    try:
        with path.open("rb") as file:
            content = RestrictedUnpickler(file).load()
    except UserError as error:
        raise UserError(f"{path.name} is refused: {error}. Get the file from its official source.") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path.name} is truncated or no pickle of StyleGAN2 ({type(error).__name__}).") from error
    found = content if isinstance(content, Mapping) else {}
    trees = {name: found[name] for name in NETWORKS if isinstance(found.get(name), Tree)}
    networks = {name: plain_names(tree.tensors(), path.name) for name, tree in trees.items()}
    if not networks:
        raise UserError(f"{path.name} holds none of {', '.join(NETWORKS)}; expected a pickle of NVIDIA's PyTorch code.")
    return networks


def rosinality_generator(state: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], Tensor | None]:
    """A generator's weights under rosinality's names, and the mean of w where it is known.

    Raises:
        UserError: a key that such a generator does not have.
    """
    renamed = {_generator_key(key, source): (key, value) for key, value in state.items() if not key.endswith(DROPPED)}
    average = renamed.pop("latent_avg", (None, None))[1]
    return {key: _shaped(key, value) for key, (_, value) in renamed.items()}, average


def rosinality_discriminator(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A discriminator's weights under rosinality's names.

    Raises:
        UserError: a key that such a discriminator does not have.
    """
    top = max((int(key[1:].split(".")[0]) for key in state if key.endswith("fromrgb.weight")), default=0)
    return {_discriminator_key(key, top, source): value for key, value in state.items() if not key.endswith(DROPPED)}


def _generator_key(key: str, source: str) -> str:
    network, block, *rest = key.split(".")
    if network == "mapping" and block == "w_avg":
        return "latent_avg"
    if network == "mapping" and block.startswith("fc") and block[2:].isdigit():
        return f"style.{int(block[2:]) + 1}.{rest[0]}"
    if network != "synthesis" or not block[1:].isdigit() or not rest:
        raise _unknown(key, "generator", source)
    level = int(log2(int(block[1:])))
    if rest == ["const"]:
        return "input.input"
    layer, *part = rest
    at = {"conv0": 0, "conv1": 1}.get(layer)
    if part == ["noise_const"] and at is not None:
        return f"noises.noise_{2 * level - 5 + at}"
    if layer == "torgb":
        name = "to_rgb1" if level == 2 else f"to_rgbs.{level - 3}"
        parts = {"weight": "conv.weight", "bias": "bias"}
    elif at is not None:
        name = "conv1" if level == 2 else f"convs.{2 * (level - 3) + at}"
        parts = {"weight": "conv.weight", "bias": "activate.bias", "noise_strength": "noise.weight"}
    else:
        raise _unknown(key, "generator", source)
    parts |= {"affine.weight": "conv.modulation.weight", "affine.bias": "conv.modulation.bias"}
    if ".".join(part) not in parts:
        raise _unknown(key, "generator", source)
    return f"{name}.{parts['.'.join(part)]}"


def _shaped(key: str, value: Tensor) -> Tensor:
    """NVIDIA's tensor in rosinality's shape."""
    if key.startswith("noises."):
        return value[None, None]
    if key == "input.input" or key.endswith("conv.weight"):
        return value[None]
    if key.endswith("noise.weight"):
        return value.reshape(1)
    return value.view(1, 3, 1, 1) if key.startswith("to_rgb") and not key.endswith(("n.weight", "n.bias")) else value


def _discriminator_key(key: str, top: int, source: str) -> str:
    block, layer, part = (key.split(".") + ["", ""])[:3]
    side = int(block[1:]) if block[1:].isdigit() else 0
    index = int(log2(top / side)) + 1 if top and side else 0
    kind = {"weight": 0, "bias": 1}.get(part, -1)
    names = {
        ("fromrgb", 0): "convs.0.0.weight",
        ("fromrgb", 1): "convs.0.1.bias",
        ("conv0", 0): f"convs.{index}.conv1.0.weight",
        ("conv0", 1): f"convs.{index}.conv1.1.bias",
        ("conv1", 0): f"convs.{index}.conv2.1.weight",
        ("conv1", 1): f"convs.{index}.conv2.2.bias",
        ("skip", 0): f"convs.{index}.skip.1.weight",
        ("conv", 0): "final_conv.0.weight",
        ("conv", 1): "final_conv.1.bias",
        ("fc", 0): "final_linear.0.weight",
        ("fc", 1): "final_linear.0.bias",
        ("out", 0): "final_linear.1.weight",
        ("out", 1): "final_linear.1.bias",
    }
    if not side or (layer, kind) not in names:
        raise _unknown(key, "discriminator", source)
    return names[layer, kind]


def _unknown(key: str, network: str, source: str) -> UserError:
    return UserError(
        f"{source} holds {key}, which no unconditional StyleGAN2 {network} has; conditional models and other "
        "architectures cannot be read."
    )
