"""What is refused of a parsed config before anything is built: settings that no run can have."""

from collections.abc import Iterator
from math import inf
from typing import Any

from lightning.pytorch import Callback, LightningModule

from lightning_styles.errors import UserError, at_least
from lightning_styles.module import StyleModule
from lightning_styles.required_files import import_class

MOST = 10**9  # of any number but a seed
TRAINER = {  # what Lightning takes without a word -> the least that has a meaning
    "log_every_n_steps": 1, "num_nodes": 1, "accumulate_grad_batches": 1, "check_val_every_n_epoch": 1,
    "gradient_clip_val": 0, "min_steps": 0, "min_epochs": 0, "num_sanity_val_steps": -1,
}  # fmt: skip


def check_settings(settings: dict[str, Any]) -> None:
    """Refuse numbers that no setting can have, and callbacks that are there twice.

    Args:
        settings: plain values of model, data, trainer and so on.

    Raises:
        UserError: naming the first setting with its key.
    """
    for place, number in numbers(settings):
        if number != number or abs(number) == inf:
            raise UserError(f"{place} is {number}; expected a finite number.")
        if abs(number) > MOST and "seed" not in place.rpartition(".")[2]:
            raise UserError(f"{place} is {str(number)[:24]}; expected at most {MOST:g} in size.")
    trainer = settings.get("trainer") or {}
    for name, least in TRAINER.items():
        at_least(least, **{f"trainer.{name}": trainer.get(name)})
    callbacks = trainer.get("callbacks") or []
    for position, callback in enumerate(callbacks):
        if callback in callbacks[:position]:
            raise UserError(f"trainer.callbacks has {callback['class_path']} twice with equal settings; remove one.")


def check_method(settings: dict[str, Any], command: str, untrained: bool) -> None:
    """Refuse to train what learns nothing, to use what has learned nothing, and to draw with what draws nothing.

    Raises:
        UserError: naming the method.
    """
    method = import_class(settings["model"]["class_path"])
    if command == "fit" and getattr(method, "training_step", None) is LightningModule.training_step:
        raise UserError(f"{method.__name__} learns nothing, so there is nothing to fit; run predict or test.")
    if command in ("fit", "prepare"):
        return
    step = getattr(method, f"{command.replace('validate', 'validation')}_step", None)
    measures = step in (StyleModule.test_step, StyleModule.validation_step)
    if (measures or command == "predict") and getattr(method, "predict_step", None) is LightningModule.predict_step:
        raise UserError(f"{method.__name__} makes no pictures, so there is nothing to {command}; run fit.")
    if untrained and getattr(method, "trained_first", False):
        raise UserError(
            f"{method.__name__} has learned nothing yet: run fit first, then {command} with --ckpt_path last, "
            "or give the checkpoint of another run."
        )


def check_state_keys(callbacks: list[Any]) -> None:
    """Refuse callbacks whose states would be kept under one name in a checkpoint.

    Raises:
        UserError: naming the class.
    """
    stateful = [callback for callback in callbacks if type(callback).state_dict is not Callback.state_dict]
    for position, callback in enumerate(stateful):
        if callback.state_key in [other.state_key for other in stateful[:position]]:
            name = type(callback).__name__
            raise UserError(f"trainer.callbacks has {name} twice, and a checkpoint holds the state of one; remove one.")


def numbers(tree: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Every number in nested values with its dotted key, as flags spell it."""
    if isinstance(tree, (int, float)) and not isinstance(tree, bool):
        yield place, tree
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from numbers(value, place if key == "init_args" else f"{place}.{key}" if place else str(key))
