"""Run folders and checkpoints: where a run writes, where it goes on from, what has changed since."""

import logging
import pickle
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from lightning_styles.checkpoint_fields import ANOTHER, CHECKPOINT_KEY, check_fields
from lightning_styles.errors import UserError
from lightning_styles.files import check_archive
from lightning_styles.launches import trained_last
from lightning_styles.parser import read_config
from lightning_styles.reading import expect

log = logging.getLogger(__name__)
ROOT = "runs"
LIGHTNINGS = ("state_dict", "pytorch-lightning_version")  # fields by which a checkpoint of Lightning is known
NO_CHECKPOINT = "{} cannot be read as a checkpoint; it may be cut short or of another kind. Use another one."
RUN_FOLDER = re.compile(r"(?:version|job|validate|test|predict|prepare)_\d+")


def run_name(config: Path | None, class_path: str) -> str:
    """The name of an experiment: tiny_sms for configs/tiny/sms.yaml; a saved config keeps its run's name."""
    if config is None:
        return class_path.rpartition(".")[2].lower()
    if RUN_FOLDER.fullmatch(config.parent.name):
        return config.parent.parent.name
    parts = config.with_suffix("").parts
    below = parts[parts.index("configs") + 1 :] if "configs" in parts else parts[-1:]
    return "_".join(below)


def next_folder(experiment: Path, command: str) -> str:
    """The name of a folder that does not exist yet: version_N for fit, <command>_N for the others."""
    prefix = "version" if command == "fit" else command
    taken = [re.fullmatch(rf"{prefix}_(\d+)", folder.name) for folder in experiment.glob(f"{prefix}_*")]
    return f"{prefix}_{max((int(match.group(1)) + 1 for match in taken if match), default=0)}"


def claim_folder(experiment: Path, command: str) -> str:
    """Make the next folder and return its name; of several launches at once each gets its own."""
    while True:
        name = next_folder(experiment, command)
        try:
            (experiment / name).mkdir(parents=True)
            return name
        except FileExistsError:  # by a launch beside this one, just now
            continue


def drop_empty(folder: Path) -> None:
    """Remove a claimed folder that nothing was written to, and what was only made to hold it."""
    with suppress(OSError):  # not empty
        for path in (folder, *list(folder.parents)[:2]):
            path.rmdir()


def run_folder_of(checkpoint: Path) -> Path | None:
    """The run folder that `checkpoint` lies in, or None when it lies elsewhere."""
    return next((p for p in checkpoint.absolute().parents if RUN_FOLDER.fullmatch(p.name)), None)


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint below `folder` with the most iterations; none that Lightning's own requeue left on SLURM.

    When files were written says little: they are copied and touched.
    """
    files = [file for file in folder.rglob("*.ckpt") if file.is_file() and not file.name.startswith("hpc_ckpt_")]
    if len(files) < 2:
        return next(iter(files), None)
    return max(files, key=lambda file: (_iterations(file), file.name == "last.ckpt", file.stat().st_mtime))


def _iterations(checkpoint: Path) -> int:
    """Iterations in one of several checkpoints; -1, and a line about it, if it cannot be read."""
    try:
        return read_checkpoint(checkpoint).get("global_step", 0)
    except UserError as error:
        log.warning("%s Another one is taken.", error)
        return -1


def last_trained(experiment: Path) -> Path | None:
    """The run folder of `experiment` with a checkpoint that a launch of `fit` went into last."""
    folders = [path for path in experiment.glob("*_*") if RUN_FOLDER.fullmatch(path.name)]
    return max((path for path in folders if any(path.rglob("*.ckpt"))), key=trained_last, default=None)


def find_checkpoint(given: str, experiment: Path | None = None) -> Path | None:
    """Resolve what `--ckpt_path` says.

    Args:
        given: a file, a run folder (its newest checkpoint), or `last` (that of the run that was trained last).
        experiment: folder of all runs of this experiment.

    Returns:
        The file; None only for `last` when there is no checkpoint yet.

    Raises:
        UserError: when there is nothing at `given`.
    """
    path = Path(given)
    if path.is_file():
        return path
    if given == "last" and experiment is not None:
        folder = last_trained(experiment)
        return folder and newest_checkpoint(folder)
    if path.is_dir():
        found = newest_checkpoint(path)
        if found is None:
            raise UserError(f"There is no checkpoint (*.ckpt) in the folder {path}.")
        return found
    near = newest_checkpoint(path.parent) if path.parent.is_dir() and str(path.parent) != "." else None
    hint = f"the newest one there is {near}." if near else "expected a .ckpt file, a run folder, or 'last'."
    raise UserError(f"There is no checkpoint {path}: {hint}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Open a checkpoint lazily and without running any code from it.

    Raises:
        UserError: when it is no checkpoint, cut short, damaged, holds more than tensors and plain values, or other
            fields than `fit` writes.
    """
    if path.suffix == ".safetensors":  # torch.load would hand it to another reader
        raise UserError(NO_CHECKPOINT.format(path))
    check_archive(path, NO_CHECKPOINT.format(path), ANOTHER)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} holds more than tensors and plain values, so opening it could run code; it is refused."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise UserError(NO_CHECKPOINT.format(path)) from error
    lacking = [name for name in LIGHTNINGS if not isinstance(checkpoint, dict) or name not in checkpoint]
    if lacking:
        raise UserError(
            f"{path} is not a training checkpoint; expected one that `fit` wrote, with {' and '.join(lacking)}."
        )
    check_fields(checkpoint, path)
    return checkpoint


def describe_checkpoint(path: Path) -> str:
    """`path` and the number of iterations that it holds."""
    return f"{path} ({read_checkpoint(path).get('global_step', 0)} iterations)"


def flatten(tree: Any, key: str = "") -> dict[str, Any]:
    """Dotted key -> leaf of nested dicts and lists; paths and tuples become what YAML would hold."""
    if isinstance(tree, dict) and tree:
        branches = tree.items()
    elif isinstance(tree, (list, tuple)) and tree:
        branches = enumerate(tree)
    else:
        return {key: str(tree) if isinstance(tree, Path) else list(tree) if isinstance(tree, tuple) else tree}
    leaves: dict[str, Any] = {}
    for name, branch in branches:
        leaves |= flatten(branch, f"{key}.{name}" if key else str(name))
    return leaves


def recorded(file: Path) -> dict[str, Any]:
    """The settings that a run keeps beside its checkpoints.

    Raises:
        UserError: the file was changed into something else.
    """
    mend = "remove it to go on without comparing the settings"
    try:
        settings = read_config(file)
    except UserError as error:
        raise UserError(f"{error} It says what the run was started with; {mend}.") from error
    expect(settings, {"model?": dict | None, "data?": dict | None, "trainer?": dict | None}, file, mend)
    return settings


def remembered(checkpoint: dict[str, Any], path: Path) -> dict[str, Any]:
    """The settings of a run: from the config in its folder, the model's from the checkpoint itself."""
    settings: dict[str, Any] = {}
    folder = run_folder_of(path)
    if folder and (folder / "config.yaml").is_file():
        settings = recorded(folder / "config.yaml")
    own = checkpoint.get(CHECKPOINT_KEY)
    if own:
        init_args = {key: value for key, value in own["init_args"].items() if not key.startswith("_")}
        settings["model"] = {"class_path": own["class_path"], "init_args": init_args}
    return {key: settings[key] for key in ("seed_everything", "model", "data", "trainer") if key in settings}


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """One line for each key of `before` or `now` that differs, `key: now (checkpoint: before)`."""
    old, new = flatten(before), flatten({key: now.get(key) for key in before})
    missing = "not set"
    return [
        f"{key}: {new.get(key, missing)} (checkpoint: {old.get(key, missing)})"
        for key in dict.fromkeys([*old, *new])
        if old.get(key, missing) != new.get(key, missing) and (old.get(key) or new.get(key)) is not None
    ]
