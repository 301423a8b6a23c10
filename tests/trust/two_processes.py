"""What `test_processes` lets two processes do, with every method.

Each rank leaves OUT/<method>/rank<r>.pt behind, rank 0 the checkpoints too. One launch serves all methods.
"""

import os
from multiprocessing import set_start_method
from pathlib import Path

import torch

from callbacks import SkipNonFinite
from tests.micro import Micro, quiet_trainer
from tests.trust.heavy import Heavy, HeavyData
from tests.trust.methods import METHODS, Gradients, Method, busy, train

SETTINGS = {"devices": 2, "strategy": "ddp_find_unused_parameters_true"}


def gradients_of(case: Method, micro: Micro, folder: Path, **trainer: object) -> Gradients:
    """The gradients of two iterations, with gradient checkpointing where the method has it."""
    seen = Gradients()
    run = quiet_trainer(folder, 2, callbacks=[seen], **trainer)
    run.fit(case.make(micro, **case.saving_memory), datamodule=case.data(micro, 0))
    return seen


def work(case: Method, micro: Micro, out: Path) -> None:
    """A straight run, one that goes on from its middle, and gradients."""
    method = case.make(micro)
    straight, run = train(method, case.data(micro, 0), out / "straight", **SETTINGS, **busy())
    middle = out / "straight" / "step=2.ckpt"
    rest, _ = train(case.make(micro), case.data(micro, 2), out / "rest", ckpt_path=middle, **SETTINGS, **busy())
    record = {
        "trained": method.state_dict(),
        "batches": (straight.batches, rest.batches),
        "noise": (straight.noise, rest.noise),
        "gradients": gradients_of(case, micro, out, **SETTINGS).seen,
    }
    torch.save(record, out / f"rank{run.global_rank}.pt")


def skip(out: Path) -> None:
    """A run that skips what is NaN on rank 1 alone."""
    method, skipping = Heavy(8, spoiled=[3, 6]), SkipNonFinite()
    run = quiet_trainer(out, 8, callbacks=[skipping], **SETTINGS)
    run.fit(method, datamodule=HeavyData())
    record = {"trained": method.state_dict(), "skipped": int(skipping.skipped), "done": run.global_step}
    out.mkdir(exist_ok=True)
    torch.save(record, out / f"rank{run.global_rank}.pt")


def every_method(rank: int, port: int, micro: Path, out: Path) -> None:
    """The work of one of the two processes, which has been started for it."""
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    os.chdir(out)
    set_start_method("fork", force=True)  # as in a process that was started by hand
    bases = Micro(micro)
    for name, case in METHODS.items():
        if not case.variant:
            work(case, bases, out / name)
    skip(out / "skip")
