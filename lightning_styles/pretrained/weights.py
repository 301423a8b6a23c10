"""Weight files of PyTorch and safetensors: read without running what is inside, written whole, loaded strictly."""

import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lightning_styles.errors import UserError
from lightning_styles.files import check_archive

Net = TypeVar("Net", bound=nn.Module)

# Old checkpoints hold, beside their tensors, classes and values of these packages. None of them is needed, and none
# of them is run or even imported: an empty object takes its place.
BESIDE_TENSORS = ("pytorch_lightning.", "lightning.", "pathlib.", "numpy.", "argparse.")


class Foreign:
    """What an object of another package becomes when its file is read."""

    def __new__(cls, *args: object, **kwargs: object) -> "Foreign":
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


def read_torch(path: Path) -> Any:
    """The contents of a file of `torch.save`, with tensors on the CPU, mapped from the file where it allows that.

    Raises:
        UserError: there is no such file, it is damaged, or it holds objects that could run code.
    """
    if not path.is_file():
        raise UserError(f"No file at {path}; give the path of the checkpoint.")
    is_zip = zipfile.is_zipfile(path)  # as of PyTorch 1.6; the format before has no checksums
    if is_zip:
        check_archive(path, f"{path.name} is truncated or no PyTorch checkpoint; get it again.")
    try:
        foreign = get_unsafe_globals_in_checkpoint(path) if is_zip else []
        refused = [name for name in foreign if not name.startswith(BESIDE_TENSORS)]
        if refused:
            raise UserError(
                f"{path.name} holds {', '.join(sorted(refused)[:3])}, which could run code when opened; expected "
                "tensors and plain values. Get the file from its official source."
            )
        with safe_globals([(Foreign, name) for name in foreign]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path.name} is truncated or no PyTorch checkpoint ({reason}); get it again.") from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"No file at {path}; give the path of the weights.")
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is truncated or no safetensors file ({error}); get it again.") from error


def build(make: Callable[[], Net], state: Mapping[str, Tensor], source: str) -> Net:
    """The network that `make` makes, frozen and in eval mode, with exactly the weights `state` in float32.

    Args:
        make: builds it; its initial weights are never computed.
        state: its state dict in any precision.
        source: where the weights come from, for the message.

    Raises:
        UserError: see `check_fit`, or an architecture that cannot be built.
    """
    try:
        with torch.device("meta"):
            module = make()
    except ValueError as error:
        raise UserError(f"{source} is of an architecture that cannot be built: {error}.") from error
    check_fit(module, state, source)
    module.to_empty(device="cpu").load_state_dict(state)
    return module.eval().requires_grad_(False)


def check_fit(module: nn.Module, state: Mapping[str, Any], source: str) -> None:
    """Refuse weights that are not exactly those of `module`.

    Raises:
        UserError: keys missing, left over or shaped differently, the first of each named.
    """
    own = module.state_dict()
    problems = []
    if missing := [key for key in own if key not in state]:
        problems.append(f"{len(missing)} keys missing (first {missing[0]})")
    if extra := [key for key in state if key not in own]:
        problems.append(f"{len(extra)} keys left over (first {extra[0]})")
    if wrong := [key for key in own if key in state and _shape(state[key]) != tuple(own[key].shape)]:
        first, found = wrong[0], _shape(state[wrong[0]])
        problems.append(
            f"{len(wrong)} shaped differently (first {first}: {found} instead of {tuple(own[first].shape)})"
        )
    if problems:
        name = type(module).__name__
        raise UserError(f"{source} does not fit {name}: {'; '.join(problems)}. Give a checkpoint of this architecture.")


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))
