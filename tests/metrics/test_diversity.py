"""How different the pictures of one prompt are."""

from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.multiprocessing

from lightning_styles.errors import UserError
from lightning_styles.metrics.diversity import Diversity
from lightning_styles.metrics.evaluation import Evaluation
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.pretrained.networks import load_perceptual


def pixels_apart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).abs().mean((1, 2, 3))


def plain(*grays: float, size: int = 4) -> torch.Tensor:
    """Pictures of one gray each."""
    return torch.tensor(grays, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, size, size)


def test_the_mean_over_pairs_and_then_over_groups_of_any_size() -> None:
    metric = Diversity(pixels_apart)
    # group 7: 1, 1, 2 apart: mean 4/3; group 2: 0.4 apart (0.4 is step 51 of 8 bits); group 5 has one picture
    metric.update(plain(-1, 0.2, 0), torch.tensor([7, 2, 7]))
    metric.update(plain(1, 0.9), torch.tensor([7, 5]))
    metric.update(plain(0.6), torch.tensor([2]))
    assert metric.compute().item() == pytest.approx((4 / 3 + 0.4) / 2, abs=0.01)
    metric.reset()
    metric.update(plain(-1, 1, 1), torch.zeros(3, dtype=torch.int64))
    assert metric.compute().item() == pytest.approx(4 / 3)


def test_one_picture_again_and_again_has_no_diversity() -> None:
    metric = Diversity(PerceptualNet((4, 8)).eval())
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    metric.update(picture.expand(8, -1, -1, -1), torch.zeros(8, dtype=torch.int64))
    assert metric.compute() == 0


def test_many_pairs_are_seen_in_parts() -> None:
    network, images = PerceptualNet((4, 8)).eval(), (torch.rand(8, 3, 16, 16) * 255).round() / 127.5 - 1
    metric = Diversity(network)
    metric.update(images, torch.ones(8, dtype=torch.int64))
    pairs = [network(images[i : i + 1], images[j : j + 1]).item() for i in range(8) for j in range(i)]
    assert metric.compute().item() == pytest.approx(sum(pairs) / 28, rel=1e-4)


def test_groups_of_one_say_nothing() -> None:
    metric = Diversity(pixels_apart)
    metric.update(plain(0.0, 1.0), torch.tensor([0, 1]))
    assert metric.compute().isnan()


def test_groups_may_differ_in_size_but_the_pictures_of_one_may_not() -> None:
    metric = Diversity(pixels_apart)
    metric.update(plain(-1, 1), torch.tensor([0, 0]))
    metric.update(plain(-1, 1, size=6), torch.tensor([1, 1]))
    assert metric.compute() == 2
    metric.update(plain(0), torch.tensor([1]))
    with pytest.raises(UserError, match="Pictures of one prompt have the sizes 4 x 4, 6 x 6"):
        metric.compute()


def test_an_evaluation_reports_it_where_a_prompt_has_two_pictures() -> None:
    network, images = load_perceptual("tiny/perceptual"), (torch.rand(3, 3, 32, 32) * 255).round() / 127.5 - 1
    evaluation = Evaluation({"perceptual": "tiny/perceptual"})
    evaluation.update(images, images, group=torch.tensor([0, 1, 2]))
    assert "diversity" not in evaluation.compute()
    other = evaluation.another()
    other.update(images[:2], images[:2], group=torch.tensor([3, 4]))
    other.update(images[2:], images[2:], group=torch.tensor([3]))
    values = other.compute()
    assert values["diversity"] == pytest.approx(network(images[:1], images[2:]).item(), rel=1e-4)
    assert (values["n"], evaluation.compute()["n"]) == (3, 3)


def test_evaluations_of_the_same_kind_share_their_networks() -> None:
    first = Evaluation(
        {"perceptual": "tiny/perceptual", "identity": "tiny/identity", "style_features": "tiny/perceptual"}
    )
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    first.update(images, images, images)
    second = first.another()
    assert {id(weight) for weight in first.parameters()} == {id(weight) for weight in second.parameters()}
    assert second.metrics == first.metrics
    second.update(images[:1], -images[:1])
    assert (first.compute()["content"], second.compute()["n"]) == (0, 1)
    assert "twin_l1" not in second.compute()


def add_share(rank: int, folder: str) -> None:
    """Of four pictures rank 0 has one, rank 1 three, rank 2 none."""
    store = torch.distributed.FileStore(f"{folder}/store", 3)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=3)
    images, group = plain(-1, 0.2, 1, 0.6), torch.tensor([0, 1, 0, 1])
    metric = Diversity(pixels_apart)
    for i in ([0], [1, 2, 3], [])[rank]:
        metric.update(images[i : i + 1], group[i : i + 1])
    torch.save(metric.compute(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_with_uneven_shares_find_the_same(tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(add_share, (str(tmp_path),), nprocs=3, start_method="forkserver")
    for rank in range(3):
        assert torch.load(tmp_path / f"{rank}.pt").item() == pytest.approx((2 + 0.4) / 2, abs=0.01)
