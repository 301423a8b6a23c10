"""Networks that judge pictures: those of the embedded world, and the official ones that take their place.

The small ones are safetensors whose metadata holds the constructor's arguments.
"""

import json
from pathlib import Path
from typing import TypeVar

from safetensors.torch import save_file
from torch import nn

from lightning_styles.errors import UserError
from lightning_styles.models.arcface import ArcFace
from lightning_styles.models.identity import IdentityNet
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.models.self_similarity import DinoKeys, PerceptualTokens
from lightning_styles.pretrained import locate
from lightning_styles.pretrained.judges import load_arcface, load_dino
from lightning_styles.pretrained.weights import build, parse_json, read_safetensors

Net = TypeVar("Net", bound=nn.Module)


def save_network(network: nn.Module, path: Path, **arguments: list[int] | int) -> None:
    """Write the weights of `network` in half precision, with the `arguments` that build it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().half().contiguous().cpu() for name, tensor in network.state_dict().items()}
    save_file(state, path, metadata={"arguments": json.dumps(arguments)})


def load_perceptual(name: str) -> PerceptualNet:
    """The frozen perceptual network behind `name` (a path or a name of the registry)."""
    return _load(PerceptualNet, name, "perceptual")


def load_identity(name: str) -> IdentityNet | ArcFace:
    """The frozen identity network behind `name` (a path or a name of the registry): the small one, or ArcFace."""
    if (path := locate(name, "identity")).suffix != ".safetensors":
        return load_arcface(path)
    return _load(IdentityNet, name, "identity")


def load_structure(name: str) -> DinoKeys | PerceptualTokens:
    """The frozen tokens of the structure distance behind `name`: of DINO, or of the small perceptual network."""
    if (path := locate(name, "structure")).suffix != ".safetensors":
        return load_dino(path)
    return PerceptualTokens(_load(PerceptualNet, name, "structure"))


def _load(network: type[Net], name: str, kind: str) -> Net:
    path = locate(name, kind)
    try:
        state, metadata = read_safetensors(path)
        if "arguments" not in metadata:
            raise ValueError("its header holds no arguments")
        arguments = parse_json(metadata["arguments"], "its header")
        return build(lambda: network(**arguments), state, path.name)
    except Exception as error:  # whatever a damaged header leads to
        cause = str(error).splitlines()[0].rstrip(".:")
        raise UserError(
            f"{path} is not a whole {kind} network of lightning_styles ({cause}); use tiny/{kind}, or train one."
        ) from error
