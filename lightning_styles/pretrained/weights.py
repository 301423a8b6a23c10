"""Weight files of PyTorch and safetensors: read without running what is inside, under plain names, loaded strictly."""

import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lightning_styles.errors import UserError
from lightning_styles.files import check_archive
from lightning_styles.pretrained import TINY

Net = TypeVar("Net", bound=nn.Module)

# Old checkpoints hold, beside their tensors, classes and values of these packages. None of them is needed, and none
# of them is run or even imported: an empty object takes its place.
BESIDE_TENSORS = ("pytorch_lightning.", "lightning.", "pathlib.", "numpy.", "argparse.")
# What torch.compile, FSDP and activation checkpointing put into names; kohya's names have underscores for dots.
WRAPPERS = re.compile(r"(?:^|(?<=[._]))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)[._]")
# Names and dtypes by which weights are known to be packed in 8 bits or less, whose scales are in no common form.
PACKED = re.compile(r"scale_weight$|weight_scale$|scaled_fp8|comfy_quant|bitsandbytes|\.absmax$|\.quant_map$")
PLAIN = re.compile(r"BF16|F16|F32|F64|F8_E4M3|F8_E5M2")
LONGEST_NAME = 1_000  # characters of a tensor's name; real ones have up to a hundred
LONGEST_JSON = 1_000_000  # characters; configurations of networks and adapters take thousands


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
        check_archive(path, f"{path.name} is truncated or no PyTorch checkpoint; {remedy(path)}.", remedy(path))
    try:
        foreign = get_unsafe_globals_in_checkpoint(path) if is_zip else []
        refused = [name for name in foreign if not name.startswith(BESIDE_TENSORS)]
        if refused:
            raise UserError(
                f"{path.name} holds {', '.join(sorted(refused)[:3])}, which could run code when opened; expected "
                "tensors and plain values. Get the file from its official source."
            )
        with safe_globals([(Foreign, name) for name in foreign]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(f"{path.name} is truncated or no PyTorch checkpoint ({reason}); {remedy(path)}.") from error
    if not isinstance(content, Mapping):
        return content
    parts = {k: plain_names(part, path.name) if isinstance(part, Mapping) else part for k, part in content.items()}
    return plain_names(parts, path.name)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; the library bounds its header to 100 MB.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    with _opened(path) as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        metadata = file.metadata() or {}
    return plain_names(state, path.name), metadata


class Entry(NamedTuple):
    """What the header of a safetensors file says of a tensor: dtype, as "F16", and shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """Entries and metadata of a safetensors file, without its tensors.

    Raises:
        UserError: as `read_safetensors`.
    """
    with _opened(path) as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no dict
        entries = {key: Entry(part.get_dtype(), tuple(part.get_shape())) for key, part in slices.items()}
        metadata = file.metadata() or {}
    return plain_names(entries, path.name), metadata


def first_packed(entries: Mapping[str, Entry]) -> str | None:
    """What is wrong with weights that only the program that packed them can read; None with plain ones."""
    for key, (dtype, _) in entries.items():
        if PACKED.search(key) or not (PLAIN.fullmatch(dtype) or key.endswith("position_ids")):
            return f"its weights are packed ({key} of {dtype}); give it in half precision"
    return None


def is_wrapped(path: Path) -> bool:
    """Whether a safetensors file has names that `plain_names` would change.

    Raises:
        UserError: as `read_safetensors`.
    """
    with _opened(path) as file:
        return any(WRAPPERS.search(key) for key in file.keys())  # noqa: SIM118 - it is no dict


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"No file at {path}; give the path of the weights.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path.name} is truncated or no safetensors file ({error}); {remedy(path)}.") from error


def plain_names(state: Mapping[Any, Any], source: str) -> dict[Any, Any]:
    """`state` under the names of the bare network, as if it had never been compiled or wrapped for training.

    Raises:
        UserError: it holds something under both names, or a name is too long to be one.
    """
    longest = max((len(key) for key in state if isinstance(key, str)), default=0)
    if longest > LONGEST_NAME:
        raise UserError(
            f"{source} has a name of {longest} characters, expected at most {LONGEST_NAME}; use another copy."
        )
    names = {key: WRAPPERS.sub("", key) if isinstance(key, str) else key for key in state}
    if all(isinstance(name, str) and name.startswith("module.") for name in names.values()):  # of DataParallel
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    if len(set(names.values())) < len(names):
        twice, _ = Counter(names.values()).most_common(1)[0]
        raise UserError(f"{source} holds {twice} twice, with and without a wrapper such as _orig_mod; keep one.")
    return {names[key]: value for key, value in state.items()}


def as_state(found: Any, source: str, part: str = "") -> dict[str, Tensor]:
    """`found` as a state dict.

    Args:
        found: what stands where one is expected.
        source: name of the file.
        part: where in the file, for the message.

    Raises:
        UserError: it is none: something else, or tensors among other things.
    """
    place = f"{source}: {part}" if part else source
    if not isinstance(found, Mapping):
        raise UserError(f"{place} holds a {type(found).__name__}, expected tensors by name.")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise UserError(f"{place} holds {key!s:.60} ({type(value).__name__}), expected tensors by name.")
    return dict(found)


def as_vector(found: Any, length: int, source: str, name: str) -> Tensor:
    """`found` in float32 as (length,).

    Raises:
        UserError: it is not that many finite numbers; `source` and `name` say where it stands.
    """
    if not isinstance(found, Tensor) or not found.is_floating_point() or found.numel() != length:
        raise UserError(f"{source}: {name} is {_told(found)}; {length} values expected.")
    check_finite({name: found}, source)
    return found.detach().float().flatten().clone()


def parse_json(text: str, source: str) -> Any:
    """The value of a JSON text that stands in a file's header or beside it.

    Args:
        text: at most a million characters.
        source: what it is, for the message.

    Raises:
        UserError: too long, nested too deeply, or no JSON.
    """
    try:
        if len(text) > LONGEST_JSON:
            raise ValueError(f"it has {len(text)} characters, expected at most {LONGEST_JSON}")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{source} is no JSON that can be read ({error}).") from error


def remedy(path: Path) -> str:
    """What to do about a damaged file, whoever made it."""
    return "reinstall lightning_styles, which it ships with" if TINY in path.parents else "get or make it again"


def build(make: Callable[[], Net], state: Mapping[str, Tensor], source: str) -> Net:
    """The network that `make` makes, frozen and in eval mode, with exactly the weights `state` in float32.

    Args:
        make: builds it; its initial weights are never computed.
        state: its state dict in any precision of floating point.
        source: where the weights come from, for the message.

    Raises:
        UserError: see `check_fit`, or an architecture that cannot be built.
    """
    try:
        with torch.device("meta"):
            module = make()
    except Exception as error:  # whatever a file's own description of its architecture leads to
        raise UserError(f"{source} is of an architecture that cannot be built: {error}.") from error
    check_fit(module, state, source)
    check_finite(state, source)
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
    if wrong := [key for key in own if key in state and _kind(state[key]) != _kind(own[key])]:
        first = wrong[0]
        problems.append(
            f"{len(wrong)} shaped or stored differently (first {first}: {_told(state[first])} "
            f"instead of {_told(own[first])})"
        )
    if problems:
        name = type(module).__name__
        raise UserError(f"{source} does not fit {name}: {'; '.join(problems)}. Give a checkpoint of this architecture.")


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        UserError: naming the first tensor that does.
    """
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.float().sum().isfinite():
            raise UserError(f"{source} is damaged: {key} holds NaN or infinity. Use another copy of it.")


def _kind(value: Any) -> tuple[Any, ...]:
    """What must agree: the shape, and whether it holds real numbers; packed weights are integers."""
    if not isinstance(value, Tensor):
        return (type(value).__name__,)
    return tuple(value.shape), value.is_floating_point()


def _told(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    dtype = "" if value.is_floating_point() else f" of {str(value.dtype).removeprefix('torch.')}"
    return f"{tuple(value.shape)}{dtype}"
