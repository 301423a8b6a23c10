"""Several processes of one run: how many there are, how they find each other, and what if one is lost."""

import os
import re
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LSFEnvironment, MPIEnvironment, TorchElasticEnvironment
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy

from lightning_styles.errors import UserError

JOIN = timedelta(minutes=10)  # for all processes to find each other; what they do then has the strategy's own limit
LOST = re.compile(r"gloo|Connection (closed|reset|refused)|Broken pipe|NCCL|Socket", re.IGNORECASE)


def count(accelerator: Any, devices: Any) -> int:
    """How many devices the trainer's settings of these names ask for; 1 where that cannot be said."""
    asked = devices.strip(",").split(",") if isinstance(devices, str) and "," in devices else devices
    if isinstance(asked, (list, tuple)):
        return len(asked)
    if str(asked) in ("auto", "-1"):
        return max(1, torch.cuda.device_count()) if accelerator in ("auto", "gpu", "cuda") else 1
    return int(asked) if str(asked).isdigit() else 1


def started_by_slurm() -> bool:
    """Whether srun or a batch script runs this process, not a shell inside of an allocation."""
    return SLURMEnvironment.detect() and "SLURM_PROCID" in os.environ


def check_processes(devices: int, nodes: int) -> None:
    """Refuse to wait for processes that nobody has started.

    Args:
        devices: devices on each node, one process for each.
        nodes: the trainer's `num_nodes`.

    Raises:
        UserError: SLURM runs another number of tasks, or there are several nodes and no word of where they are.
    """
    if started_by_slurm():
        _check_slurm(devices, nodes)
    elif nodes > 1 and not any(kind.detect() for kind in (TorchElasticEnvironment, LSFEnvironment, MPIEnvironment)):
        ranks = {str(rank) for rank in range(nodes)}
        fine = {
            "MASTER_ADDR": bool(os.environ.get("MASTER_ADDR")),
            "MASTER_PORT": os.environ.get("MASTER_PORT", "").isdecimal(),
            "NODE_RANK": os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK")) in ranks,
        }
        if not all(fine.values()):
            raise UserError(
                f"trainer.num_nodes is {nodes}, but {_told(name for name in fine if not fine[name])}: set MASTER_ADDR "
                "and MASTER_PORT to the first node's, NODE_RANK to 0, 1, ..., and start the command on every node; "
                "or start it with srun or torchrun."
            )


def _check_slurm(devices: int, nodes: int) -> None:
    wanted = {"SLURM_NTASKS": devices * nodes, "SLURM_NTASKS_PER_NODE": devices, "SLURM_NNODES": nodes}
    found = {name: os.environ.get(name) for name in wanted}
    if found["SLURM_NTASKS"] == "1":  # a single task may leave the others unsaid
        found = {name: value for name, value in found.items() if value is not None}
    elif found["SLURM_NNODES"] is None:
        del found["SLURM_NNODES"]
    wrong = [name for name, value in found.items() if value != str(wanted[name])]
    if wrong:
        asked = ", ".join(f"{name} {wanted[name]}" for name in wrong)
        raise UserError(
            f"trainer.devices {devices} and trainer.num_nodes {nodes} need {asked}, but {_told(wrong)}: give sbatch or "
            "srun --nodes and --ntasks-per-node to match, as in configs/slurm/fit.sbatch, or change the settings."
        )


def _told(names: Iterable[str]) -> str:
    """What the environment says about `names`."""
    return ", ".join(f"{name} is {os.environ.get(name, 'not set')}" for name in names)


def strategy_for(strategy: Any, accelerator: str, devices: Any, nodes: int) -> Any:
    """DDP that looks for unused parameters, where "auto" would become plain DDP.

    In plain DDP every backward must reach every trained parameter; that of one of several optimizers reaches its own.
    """
    several = nodes * count(accelerator, devices) > 1
    return "ddp_find_unused_parameters_true" if strategy == "auto" and several else strategy


def join_in_time(trainer: L.Trainer) -> None:
    """Let the processes of `trainer` wait only so long for each other; Lightning would wait as for a long computation.

    They then raise UserError with where they looked for each other.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, DDPStrategy):
        return
    connect, patience = strategy.setup_distributed, strategy._timeout

    def connect_in_time() -> None:
        strategy._timeout = JOIN
        try:
            connect()
        except RuntimeError as error:
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise UserError(
                f"The {trainer.world_size} processes of this run did not find each other at {place} within "
                f"{JOIN.total_seconds():g} s ({first_line(error)}): start the command on every node, with srun under "
                "SLURM, and set MASTER_ADDR and MASTER_PORT to an address that all of them reach."
            ) from error
        finally:
            strategy._timeout = patience
        if patience is not None:
            dist.distributed_c10d._set_pg_timeout(patience, dist.group.WORLD)

    strategy.setup_distributed = connect_in_time  # type: ignore[method-assign]


def lost_process(error: RuntimeError) -> bool:
    """Whether `error` says that another process of the run is gone."""
    return isinstance(error, dist.DistError) or LOST.search(str(error)) is not None


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
