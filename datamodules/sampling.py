"""Which sample comes when: pure functions of (seed, i), shared over ranks and exact over resume."""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_styles.errors import UserError, at_least, within

MOST_WORKERS = 256  # processes of a loader; all of them are started


class StepSampler(DistributedSampler[Any]):
    """Indices of a run of known length: iteration t takes [t * world * batch, (t + 1) * world * batch).

    Rank r takes the r-th slice of batch_size indices of each iteration. A resumed run starts at `start_step`
    and sees exactly the indices that the straight run would have seen. Being a DistributedSampler, it is left
    alone by Lightning, which would wrap and shuffle any other.

    Args:
        iterations: length of the run.
        batch_size: samples per rank and iteration.
        start_step: iterations already done.
        rank: this process.
        world: number of processes.
    """

    def __init__(self, iterations: int, batch_size: int, *, start_step: int = 0, rank: int = 0, world: int = 1) -> None:
        self.iterations = iterations
        self.batch_size = batch_size
        self.start_step = start_step
        self.rank = rank
        self.world = world

    def __iter__(self) -> Iterator[int]:
        for step in range(self.start_step, self.iterations):
            first = (step * self.world + self.rank) * self.batch_size
            yield from range(first, first + self.batch_size)

    def __len__(self) -> int:
        """The full length, whatever `start_step` is: Lightning goes on counting batches after a resume."""
        return self.iterations * self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """A run is one epoch; nothing is reshuffled."""


class ShardSampler(DistributedSampler[Any]):
    """This rank's share of n items (`eval_shard`), in order; Lightning leaves a DistributedSampler alone."""

    def __init__(self, trainer: L.Trainer | None, n: int) -> None:
        self.shard = eval_shard(trainer, n)

    def __iter__(self) -> Iterator[int]:
        return iter(self.shard)

    def __len__(self) -> int:
        return len(self.shard)

    def set_epoch(self, epoch: int) -> None:
        """The order is always the same."""


class Samples(Dataset[Any]):
    """Sample i is `sample(i)`, for i in [0, length)."""

    def __init__(self, sample: Callable[[int], Any], length: int) -> None:
        self.sample = sample
        self.length = length

    def __getitem__(self, i: int) -> Any:
        return self.sample(i)

    def __len__(self) -> int:
        return self.length


def check_loading(batch_size: int, num_workers: int) -> None:
    """Refuse numbers of samples and processes that no loader can have.

    Raises:
        UserError: naming the first one.
    """
    at_least(1, batch_size=batch_size)
    within(0, MOST_WORKERS, num_workers=num_workers)


def train_loader(
    trainer: L.Trainer,
    sample: Callable[[int], Any],
    *,
    batch_size: int,
    num_workers: int = 0,
    collate: Callable[[list[Any]], Any] | None = None,
) -> DataLoader[Any]:
    """The training loader of a run: from `trainer.global_step` to `trainer.max_steps`, each rank its slices.

    Call it in `train_dataloader`, where the counters of a checkpoint are already back.

    Args:
        trainer: says rank, world size, iterations done and iterations wanted.
        sample: sample i, a pure function of i.
        batch_size: samples per rank and iteration.
        num_workers: processes that call `sample` and `collate`.
        collate: list of samples to batch; None stacks tensors.

    Raises:
        UserError: the trainer has no max_steps, or a count is negative.
    """
    iterations = trainer.max_steps
    if iterations < 1:
        raise UserError(f"trainer.max_steps is {iterations}; set it to the number of iterations of the run.")
    check_loading(batch_size, num_workers)
    world = trainer.world_size
    sampler = StepSampler(iterations, batch_size, start_step=trainer.global_step, rank=trainer.global_rank, world=world)
    return DataLoader(
        Samples(sample, iterations * batch_size * world),
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        collate_fn=collate,
    )


def draw(seed: int, i: int, purpose: str) -> random.Random:
    """Generator of sample i for one purpose; text seeds are hashed (SHA-512), the same on every machine."""
    return random.Random(f"{seed}/{i}/{purpose}")


def shuffled(seed: int, i: int, n: int) -> int:
    """Element i of an endless sequence of shuffled passes over range(n), each pass shuffled anew."""
    return int(_permutation(seed, i // n, n)[i % n])


def eval_shard(trainer: L.Trainer | None, n: int) -> range:
    """Which of n items this rank evaluates: every world-th, none twice, none padded.

    Validation during `fit` is not divided: ranks with fewer batches than others would make the rest wait
    forever in collective operations, so each rank sees all items and their averages agree.
    """
    if trainer is None or trainer.state.fn == "fit":
        return range(n)
    return range(trainer.global_rank, n, trainer.world_size)


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> torch.Tensor:
    order = list(range(n))
    draw(seed, epoch, "order").shuffle(order)
    return torch.tensor(order)
