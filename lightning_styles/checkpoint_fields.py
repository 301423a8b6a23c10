"""The fields of a checkpoint: what Lightning and this project write into it, and what they take from it again."""

import re
from collections.abc import Mapping
from itertools import dropwhile
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lightning_styles.errors import UserError
from lightning_styles.reading import FINITE, PLAIN, SHOWN, Rule, at_least, exactly, expect, first_problem, tensor

CHECKPOINT_KEY = "lightning_styles"  # the field of this project's own facts
ANOTHER = "use another checkpoint"
CLASS_PATH = re.compile(r"(?a:[^\W\d]\w*\.)+(?a:[^\W\d]\w*)")
PROTOCOL = re.compile(r"::|://|^data:")
SAVERS = ("Checkpoints", "ModelCheckpoint")  # callbacks whose states name files

COUNT = at_least(0)
TENSOR = Rule("a tensor", lambda value: isinstance(value, Tensor))


def _is_version(value: Any) -> bool:
    try:
        return isinstance(value, str) and Version(value).major >= 2
    except InvalidVersion:
        return False


def _is_plain_path(value: Any) -> bool:
    """Whether Lightning, which deletes what it saved before, would do so in the folder of the run alone.

    It looks whether a file lies there, but neither at `..` within its path nor at the protocols of fsspec.
    """
    if not isinstance(value, str) or PROTOCOL.search(value):
        return False
    return ".." not in list(dropwhile(lambda part: part == "..", Path(value).parts))


PATH = Rule("a path without a protocol, and with .. only where it begins", _is_plain_path)
SAVER = {
    "best_model_path": PATH,
    "best_model_score": Any,
    "kth_best_model_path?": PATH,
    "last_model_path?": PATH,
    "best_k_models?": Rule("a mapping of such paths", lambda x: isinstance(x, dict) and all(map(_is_plain_path, x))),
}
KEPT = {"EMA": {"shadow": {str: TENSOR}}, "Timer": {"time_elapsed": {str: FINITE}}}
PROGRESS = {"ready": COUNT, "completed": COUNT}
STEPS = dict.fromkeys(("total", "current"), PROGRESS)
STARTS = dict.fromkeys(("total", "current"), PROGRESS | {"started": COUNT})
BATCHES = dict.fromkeys(("total", "current"), PROGRESS | {"started": COUNT, "processed": COUNT})
MANUAL, AUTOMATIC = (f"epoch_loop.{kind}_optimization" for kind in ("manual", "automatic"))
LOOPS = {
    "fit_loop": {
        "epoch_progress": BATCHES,
        "epoch_loop.state_dict": {"_batches_that_stepped": COUNT},
        "epoch_loop.batch_progress": BATCHES | {"is_last_batch": bool},
        "epoch_loop.scheduler_progress": STEPS,
        "epoch_loop.val_loop.batch_progress": BATCHES | {"is_last_batch": bool},
        f"{MANUAL}.optim_step_progress": STEPS,
        f"{AUTOMATIC}.optim_progress": {"optimizer": {"step": STEPS, "zero_grad": STARTS}},
    },
    **{f"{name}_loop": {"batch_progress": BATCHES} for name in ("validate", "test", "predict")},
}

# Of every checkpoint; what else it holds is left alone.
FIELDS = {
    "pytorch-lightning_version": Rule("the version of Lightning as text, 2.0 or later", _is_version),
    "state_dict": {str: TENSOR},
    "global_step?": COUNT,
    "loops?": LOOPS,
    "callbacks?": {str: dict},
    "datamodule_hyper_parameters?": {"resolution?": int | None},
    "MixedPrecision?": {"scale?": float, "_growth_tracker?": int},
}
METHOD = {
    "class_path": Rule("a dotted path of a class", lambda x: isinstance(x, str) and bool(CLASS_PATH.fullmatch(x))),
    "init_args": {str: PLAIN},
    "base_models": {str: str},
    "iterations?": at_least(1),
    "world_size?": COUNT,
    "batch_size?": PLAIN,
    "pictures?": [str],
}
SCHEDULE = {"last_epoch": COUNT, "_step_count": COUNT, "base_lrs": [FINITE], "_last_lr": [FINITE], "lr_lambdas": list}
RESUMED = {"loops": LOOPS, "optimizer_states": [{"state": dict, "param_groups": [dict]}], "lr_schedulers": [dict]}


def check_fields(checkpoint: Any, file: Path) -> None:
    """Refuse a checkpoint whose fields are not those that `fit` writes; that of another project lacks CHECKPOINT_KEY.

    Raises:
        UserError: naming the field.
    """
    own = {CHECKPOINT_KEY: METHOD, "global_step": COUNT} if CHECKPOINT_KEY in checkpoint else {}
    expect(checkpoint, FIELDS | own, file, ANOTHER)
    for name, state in checkpoint.get("callbacks", {}).items():
        saves = name.startswith(SAVERS) or "best_model_path" in state
        known = SAVER if saves else KEPT.get(name, dict)
        expect(state, known, f"{file}: callbacks.{name.partition('{')[0][:SHOWN]}", ANOTHER)


def check_resumable(checkpoint: dict[str, Any], file: Path) -> None:
    """Refuse a checkpoint that a run cannot go on from: one without optimizers, or that says two numbers of iterations.

    Raises:
        UserError: naming the field.
    """
    expect(checkpoint, RESUMED, file, f"it can be used, but not resumed; {ANOTHER}")
    loop = checkpoint["loops"]["fit_loop"]
    steps = (loop[f"{MANUAL}.optim_step_progress"], loop[f"{AUTOMATIC}.optim_progress"]["optimizer"]["step"])
    done = sum(step["total"]["completed"] for step in steps)
    expect(checkpoint, {"global_step": exactly(done)}, f"{file}: the loops did {done} iterations, but", ANOTHER)


# ---- what an optimizer goes on from


def check_optimizers(checkpoint: dict[str, Any], own: Mapping[str, tuple[Optimizer, LambdaLR | None]]) -> None:
    """Refuse states of other optimizers and schedulers: torch takes fewer of them, or other shapes, silently.

    Args:
        checkpoint: whose `optimizer_states` and `lr_schedulers` are looked at.
        own: those of the run, by name.

    Raises:
        UserError: naming the optimizer.
    """
    states, schedules = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    scheduled = [name for name, (_, scheduler) in own.items() if scheduler is not None]
    for field, saved, names in (("optimizer_states", states, list(own)), ("lr_schedulers", schedules, scheduled)):
        if len(saved) != len(names):
            named = ", ".join(names) or "none"
            raise UserError(f"The checkpoint has {len(saved)} {field}, this run has {named}; {ANOTHER}.")
    for (name, (optimizer, _)), state in zip(own.items(), states, strict=True):
        begun = bool(checkpoint["global_step"]) and isinstance(optimizer, (Adam, AdamW))
        expect(state, _state_of(optimizer, begun), f"The checkpoint's optimizer {name}", ANOTHER)
    for name, state in zip(scheduled, schedules, strict=True):
        expect(state, SCHEDULE, f"The checkpoint's scheduler of {name}", ANOTHER)


def _state_of(optimizer: Optimizer, begun: bool) -> dict[str, Any]:
    """What the state dict of `optimizer` holds; `begun`: it is Adam, and has moved some of its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = dict.fromkeys(("exp_avg", "exp_avg_sq"))
    of_each = [{"step": tensor()} | {name: tensor(*p.shape) for name in moments} for p in parameters]
    known = isinstance(optimizer, (Adam, AdamW))

    def fits(state: Any) -> bool:
        if not isinstance(state, dict) or (begun and not state):
            return False
        inside = all(type(i) is int and 0 <= i < len(parameters) for i in state)
        return inside and (not known or all(first_problem(state[i], of_each[i]) is None for i in state))

    groups = optimizer.state_dict()["param_groups"]
    return {
        "state": Rule(f"moments of up to {len(parameters)} parameters with their shapes, all finite", fits),
        "param_groups": tuple({"lr": FINITE, "params": exactly(group["params"])} for group in groups),
    }
