"""Whether the devices and modes that were asked for exist, asked before anything is built."""

import os
from typing import Any

import torch

from lightning_styles.errors import UserError

LEAST_PROCESSES = 8  # that a CPU may be asked to run, however few its cores
NAMES = "auto, cpu, cuda, cuda:N or mps"
PRECISIONS = "32-true, bf16-mixed, 16-mixed, bf16-true or 16-true"


def check_modes(trainer: dict[str, Any]) -> None:
    """Refuse modes of Lightning in which no method can run, and distances of validations that are none.

    Raises:
        UserError: naming the setting.
    """
    precision, strategy = str(trainer["precision"]), str(trainer["strategy"])
    if precision in ("64", "64-true") or precision.startswith("transformer-engine"):
        raise UserError(f"trainer.precision is {precision}; the methods compute in {PRECISIONS}.")
    if any(word in strategy for word in ("spawn", "fork", "notebook")):
        raise UserError(f"trainer.strategy is {strategy}; processes are started as commands here: use auto or ddp.")
    for key in ("val_check_interval", "check_val_every_n_epoch"):
        if isinstance(trainer[key], (int, float)) and trainer[key] <= 0:
            raise UserError(
                f"trainer.{key} is {trainer[key]}; it must be above 0. Without validation: limit_val_batches 0."
            )


def check_devices(accelerator: Any, devices: Any) -> None:
    """Refuse more GPUs than there are.

    Args:
        accelerator: the trainer's setting of that name.
        devices: the trainer's setting of that name; only plain counts are checked here.

    Raises:
        UserError: naming how many are visible.
    """
    number = str(devices).removeprefix("-")
    if isinstance(devices, (int, str)) and (number.isdigit() and int(devices) < 1 and int(devices) != -1):
        raise UserError(f"trainer.devices is {devices}; expected a number of at least 1, or auto.")
    count = torch.cuda.device_count()
    wants_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and count > 0)
    processes = max(os.cpu_count() or 1, LEAST_PROCESSES)
    if not wants_gpu and number.isdigit() and int(number) > processes:
        raise UserError(f"trainer.devices is {devices}, but this machine runs at most {processes} processes at once.")
    if not wants_gpu or torch.backends.mps.is_available():
        return
    if count == 0:
        raise UserError(f"trainer.accelerator is {accelerator}, but PyTorch sees no GPU; use cpu or auto.")
    asked = int(devices) if str(devices).isdigit() else 0
    if asked > count:
        raise UserError(f"trainer.devices is {asked}, but PyTorch sees {count} GPU(s); ask for at most that.")


def trainer_arguments(device: str) -> dict[str, Any]:
    """`accelerator` and `devices` of a trainer for one device.

    Raises:
        UserError: when `device` is none that exists here.
    """
    name, _, index = device.partition(":")
    if name in ("auto", "cpu", "mps") and not index:
        return {"accelerator": name, "devices": 1}
    if name != "cuda" or (index and not index.isdigit()):
        raise UserError(f"--device is {device}; expected {NAMES}.")
    number, count = int(index or 0), torch.cuda.device_count()
    if number >= count:
        raise UserError(f"--device is {device}, but PyTorch sees {count} GPU(s); use --device cpu.")
    return {"accelerator": "gpu", "devices": [number]}
