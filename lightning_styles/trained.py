"""From a checkpoint back to the method that wrote it."""

from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_styles.errors import UserError
from lightning_styles.parser import StylesParser, users_mistake
from lightning_styles.required_files import OWN, foreign_classes
from lightning_styles.runs import find_checkpoint, read_checkpoint

T = TypeVar("T")


def build(base: type[T], class_path: str, init_args: dict[str, Any], section: str = "model") -> T:
    """Instantiate a class from plain values, nested classes included.

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


def open_trained(given: str, trust: bool = False) -> tuple[Path, dict[str, Any]]:
    """Find and read a checkpoint of this project.

    Args:
        given: a .ckpt file or a run folder.
        trust: also accept classes from outside `lightning_styles`; naming a class imports its module.

    Returns:
        The file and its content.

    Raises:
        UserError: when it is not a checkpoint of this project, or names a foreign class and `trust` is False.
    """
    path = find_checkpoint(given)
    if path is None:
        raise UserError(f"There is no checkpoint {given}; give a .ckpt file or a run folder.")
    content = read_checkpoint(path)
    own = content.get("lightning_styles")
    if own is None:
        raise UserError(f"{path} was not written by lightning_styles; use a checkpoint of one of its runs.")
    foreign = foreign_classes(own, OWN)
    if foreign and not trust:
        raise UserError(
            f"{path} wants to import {', '.join(foreign)}, which is not part of lightning_styles. "
            "If you know where the file comes from, add --trust."
        )
    return path, content


def build_trained(content: dict[str, Any]) -> LightningModule:
    """The method of an opened checkpoint, with its settings and without its weights."""
    own = content["lightning_styles"]
    init_args = {key: value for key, value in own["init_args"].items() if not key.startswith("_")}
    return build(LightningModule, own["class_path"], init_args)


def average_of(content: dict[str, Any]) -> dict[str, Tensor]:
    """Averages of trained weights that the callback EMA kept in an opened checkpoint; empty for a run without it."""
    return content.get("callbacks", {}).get("EMA", {}).get("shadow", {})


def load_weights(model: LightningModule, content: dict[str, Any]) -> None:
    """Build the networks of `model` and fill in the trained weights, their averages where the run kept some."""
    model.configure_model()
    model.on_load_checkpoint(content)
    model.load_state_dict(content["state_dict"] | average_of(content), strict=model.strict_loading)
    model.eval()
