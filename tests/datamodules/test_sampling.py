"""Index arithmetic of runs: ranks partition, resumes continue, shuffles are permutations."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DistributedSampler

from datamodules.sampling import StepSampler, draw, eval_shard, shuffled, train_loader
from lightning_styles.errors import UserError


def test_two_ranks_partition_every_iteration():
    ranks = [list(StepSampler(5, 3, rank=r, world=2)) for r in range(2)]
    for step in range(5):
        seen = [i for rank in ranks for i in rank[3 * step : 3 * step + 3]]
        assert seen == list(range(6 * step, 6 * step + 6))


@pytest.mark.parametrize("rank", [0, 1])
def test_resume_continues_and_keeps_the_length(rank):
    straight = StepSampler(7, 2, rank=rank, world=2)
    resumed = StepSampler(7, 2, start_step=4, rank=rank, world=2)
    assert list(resumed) == list(straight)[4 * 2 :]
    assert len(resumed) == len(straight) == 14
    assert isinstance(resumed, DistributedSampler)


class Recorder(L.LightningModule):
    """Notes the batches of each iteration; its one optimizer is the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        self.seen.append(batch.tolist())
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight.sum())
        optimizer.step()


class Numbers(L.LightningDataModule):
    def __init__(self, num_workers: int) -> None:
        super().__init__()
        self.num_workers = num_workers

    def train_dataloader(self):
        return train_loader(self.trainer, float, batch_size=3, num_workers=self.num_workers)


def fit(folder, steps: int, num_workers: int, ckpt: str | None = None) -> tuple[Recorder, L.Trainer]:
    trainer = L.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
    )
    model = Recorder()
    trainer.fit(model, Numbers(num_workers), ckpt_path=ckpt)
    return model, trainer


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resumed_fit_sees_the_next_batches(tmp_path, num_workers):
    straight, _ = fit(tmp_path, 6, num_workers)
    assert straight.seen == [[3.0 * t, 3.0 * t + 1, 3.0 * t + 2] for t in range(6)]
    first, trainer = fit(tmp_path, 4, num_workers)
    trainer.save_checkpoint(tmp_path / "k.ckpt")
    rest, trainer = fit(tmp_path, 6, num_workers, ckpt=str(tmp_path / "k.ckpt"))
    assert first.seen + rest.seen == straight.seen
    assert trainer.global_step == 6


def test_run_without_length_is_refused():
    trainer = SimpleNamespace(max_steps=-1, world_size=1, global_step=0, global_rank=0)
    with pytest.raises(UserError, match=r"trainer\.max_steps is -1"):
        train_loader(trainer, int, batch_size=1)


def test_shuffled_passes_are_permutations():
    passes = [[shuffled(3, i, 10) for i in range(10 * e, 10 * e + 10)] for e in range(3)]
    assert all(sorted(order) == list(range(10)) for order in passes)
    assert passes[0] != passes[1]
    assert shuffled(3, 17, 10) == passes[1][7]
    assert [shuffled(4, i, 10) for i in range(10)] != passes[0]


def test_draws_are_fixed_numbers():
    """Pinned, so that another Python version or machine gives the same run."""
    assert draw(0, 0, "crop").random() == draw(0, 0, "crop").random()
    assert len({draw(s, i, p).random() for s in (0, 1) for i in (0, 1) for p in ("crop", "flip")}) == 8
    assert draw(0, 5, "crop").randrange(10**6) == 660002


def test_eval_shards_never_repeat():
    def shard(fn: str, rank: int) -> list[int]:
        trainer = SimpleNamespace(state=SimpleNamespace(fn=fn), global_rank=rank, world_size=2)
        return list(eval_shard(trainer, 5))

    assert shard("predict", 0) == [0, 2, 4]
    assert shard("predict", 1) == [1, 3]
    assert shard("fit", 0) == shard("fit", 1) == [0, 1, 2, 3, 4]
