"""Which pretrained files a config needs, where they are, and whose code it runs."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lightning_styles.errors import UserError
from lightning_styles.files import existing


class RequiredFile(NamedTuple):
    """One pretrained file; `path` is None when it is missing or of no use, and `mend` then says what to do.

    `about` is its size, source and licence.
    """

    name: str
    kind: str
    path: Path | None
    mend: str
    about: str = ""


OWN = ("lightning_styles.", "datamodules.", "callbacks.")
KNOWN = (*OWN, "lightning.", "torch.")


def class_paths(tree: Any) -> Iterator[str]:
    """Every class path in nested plain values."""
    if isinstance(tree, dict):
        if isinstance(tree.get("class_path"), str):
            yield tree["class_path"]
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        for branch in tree:
            yield from class_paths(branch)


def foreign_classes(tree: Any, known: tuple[str, ...] = KNOWN) -> list[str]:
    """The class paths in nested plain values that begin with none of `known`."""
    return sorted({name for name in class_paths(tree) if not name.startswith(known)})


def import_class(class_path: str) -> type:
    """The class behind a dotted path.

    Raises:
        UserError: when there is no such module or class.
    """
    module, _, name = class_path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"The class {class_path} cannot be imported: {error}.") from error


def required_files(config: dict[str, Any], command: str = "check") -> list[RequiredFile]:
    """Locate what the model, the data and the callbacks of a config say they read, and look into its headers.

    Args:
        config: plain values with class_path and init_args under `model`, `data` and `trainer.callbacks`.
        command: what is to run; settings that a class names in `fit_only` count for fit and prepare alone, and
            `metrics` where something is measured. check wants them all.
    """
    from lightning_styles.pretrained import describe, locate
    from lightning_styles.pretrained.headers import check_header

    measured = command not in ("predict", "prepare") and not (command == "fit" and _without_validation(config))
    parts = [config.get("model"), config.get("data"), *((config.get("trainer") or {}).get("callbacks") or [])]
    found: dict[tuple[str, str], RequiredFile] = {}
    for part in parts:
        owner = import_class(part["class_path"]) if part else None
        unread = () if command in ("check", "fit", "prepare") else getattr(owner, "fit_only", ())
        settings = {key: value for key, value in ((part or {}).get("init_args") or {}).items() if key not in unread}
        ask = getattr(owner, "required_models", None)
        needed = ask(settings) if ask else []
        if ask and not measured:  # what metrics names is looked at all the same
            needed = ask(settings | {"metrics": None})
        for name, kind in needed:
            try:
                path = existing(name) if kind == "file" else Path(locate(name, kind))
                check_header(path, kind)
                found[name, kind] = RequiredFile(name, kind, path, "", describe(name, path))
            except UserError as error:
                found[name, kind] = RequiredFile(name, kind, None, str(error))
    return list(found.values())


def _without_validation(config: dict[str, Any]) -> bool:
    return (config.get("trainer") or {}).get("limit_val_batches") == 0


def missing_files(config: dict[str, Any], command: str = "fit") -> list[str]:
    """The line that mends it for each file that `command` needs of `config` and that is not there."""
    return [file.mend for file in required_files(config, command) if file.path is None]
