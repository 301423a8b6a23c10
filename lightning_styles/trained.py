"""From a checkpoint back to the method that wrote it."""

import inspect
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_styles.checkpoint_fields import ANOTHER, CHECKPOINT_KEY
from lightning_styles.commands.compare_rows import merged
from lightning_styles.errors import UserError
from lightning_styles.module import StyleModule
from lightning_styles.parser import StylesParser, users_mistake
from lightning_styles.reading import SHOWN, expect, tensor
from lightning_styles.required_files import foreign_classes, import_class
from lightning_styles.runs import find_checkpoint, read_checkpoint
from lightning_styles.signatures import parameters_of

PACKAGE = "lightning_styles."
T = TypeVar("T")
Method = TypeVar("Method", bound=StyleModule)


def build(base: type[T], class_path: str, init_args: dict[str, Any], section: str = "model") -> T:
    """Instantiate a class of a config, nested classes included; it runs the code that `init_args` name.

    Args:
        base: class that `class_path` must be or inherit from.
        class_path: dotted path of the class.
        init_args: its arguments as a config file would hold them.
        section: what messages about them begin with.
    """
    parser = StylesParser()
    parser.add_subclass_arguments(base, section, required=True)
    config = parser.parse_object({section: {"class_path": class_path, "init_args": init_args}})
    try:
        return parser.instantiate(config)[section]
    except ValueError as error:
        if mistake := users_mistake(error):
            raise mistake from None
        raise


# ---- the method that a checkpoint names


def own_method(class_path: str) -> type[StyleModule] | None:
    """The method behind a dotted path of this package; None for every other path, whose module is not imported.

    Raises:
        UserError: this package has no such class, or it is no method.
    """
    if not class_path.startswith(PACKAGE):
        return None
    found = import_class(class_path)
    is_method = isinstance(found, type) and issubclass(found, StyleModule) and found is not StyleModule
    is_own = is_method and found.__module__.startswith(PACKAGE)
    if not is_own or any(getattr(value, "__isabstractmethod__", False) for _, value in inspect.getmembers(found)):
        raise UserError(f"{class_path} is no method of lightning_styles; {ANOTHER}.")
    return found


def arguments_of(method: type[StyleModule]) -> dict[str, Any]:
    """Type of each argument of the constructor, as `expect` takes it: a name with ? may be left out."""
    return {
        name + ("" if parameter.default is parameter.empty else "?"): parameter.annotation
        for name, parameter in parameters_of(method).items()
    }


def make(method: type[Method], init_args: dict[str, Any], source: str, mend: str) -> Method:
    """Build `method` from plain values, of which none is resolved.

    Args:
        method: of this package.
        init_args: its arguments.
        source: where they come from.
        mend: what to do, for the end of the message.

    Raises:
        UserError: naming an argument that it does not have, that has another type, or that it refuses.
    """
    types = arguments_of(method)
    known = [name.removesuffix("?") for name in types]
    if unknown := [name for name in init_args if name not in known]:
        close = "".join(f", did you mean {name!r}?" for name in get_close_matches(unknown[0], known, n=1))
        raise UserError(f"{source}: {method.__name__} has no setting {unknown[0][:SHOWN]!r}{close or ';'} {mend}.")
    expect(init_args, types, source, mend)
    return method(**init_args)


def settings_in(checkpoint: dict[str, Any], method: type[StyleModule] | None) -> dict[str, Any]:
    """The arguments of the method that wrote a checkpoint; Lightning adds some that begin with an underscore.

    A setting that `method` no longer has is left out where it was null: it did nothing then.
    """
    saved = {name: value for name, value in checkpoint[CHECKPOINT_KEY]["init_args"].items() if not name.startswith("_")}
    if method is None:
        return saved
    known = {name.removesuffix("?") for name in arguments_of(method)}
    return {name: value for name, value in saved.items() if value is not None or name in known}


def open_trained(given: str, trust: bool = False) -> tuple[Path, dict[str, Any]]:
    """Find and read a checkpoint of this project, and look whether its method can be built without foreign code.

    Args:
        given: a .ckpt file or a run folder.
        trust: also accept classes from outside `lightning_styles`; naming a class imports its module.

    Returns:
        The file and its content.

    Raises:
        UserError: when it is not a checkpoint of this project; or, with `trust` False, when it names anything but a
            method of `lightning_styles` with plain values of the right types.
    """
    path = find_checkpoint(given)
    if path is None:
        raise UserError(f"There is no checkpoint {given}; give a .ckpt file or a run folder.")
    content = read_checkpoint(path)
    own = content.get(CHECKPOINT_KEY)
    if own is None:
        raise UserError(f"{path} was not written by lightning_styles; use a checkpoint of one of its runs.")
    try:
        method = own_method(own["class_path"])
        if method is not None:
            make(method, settings_in(content, method), f"{CHECKPOINT_KEY}.init_args", ANOTHER)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if method is None and not trust:
        named = ", ".join(name[:SHOWN] for name in foreign_classes(own, (PACKAGE,))[:3])
        raise UserError(
            f"{path} wants to import {named}, which is not part of lightning_styles. "
            "If you know where the file comes from, add --trust."
        )
    return path, content


def build_trained(content: dict[str, Any], changes: dict[str, Any], folder: Path | None = None) -> LightningModule:
    """The method of an opened checkpoint, with its settings and without its weights.

    Args:
        content: from `open_trained`.
        changes: settings to lay over those of the checkpoint.
        folder: where the method may write; None if it writes nothing. The folders that the checkpoint names become
            folders in it, those of `changes` stay as they are.

    Raises:
        UserError: `changes` do not fit the method.
    """
    class_path = content[CHECKPOINT_KEY]["class_path"]
    method = own_method(class_path)
    settings = settings_in(content, method)
    kept = getattr(method or import_class(class_path), "folders", ())
    if folder is not None:
        settings |= {name: str(folder / name) for name in kept if settings.get(name) is not None}
    settings = merged(settings, changes)
    if method is None:
        return build(LightningModule, class_path, settings)
    return make(method, settings, "--set", "change it")


def average_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """Averages of trained weights that the callback EMA kept in an opened checkpoint; empty for a run without it."""
    return content.get("callbacks", {}).get("EMA", {}).get("shadow", {})


def load_weights(model: LightningModule, content: dict[str, Any]) -> None:
    """Build the networks of `model` and fill in the trained weights, their averages where the run kept some."""
    model.configure_model()
    model.on_load_checkpoint(content)
    weights, average = content["state_dict"], average_of(content)
    shapes = {name: tensor(*weights[name].shape) if name in weights else Any for name in average}
    expect(average, shapes, "The checkpoint's EMA", ANOTHER)
    model.load_state_dict(weights | average, strict=model.strict_loading)
    model.eval()
