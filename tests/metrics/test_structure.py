"""The structure distance as a metric."""

from pathlib import Path

import pytest
import torch

from datamodules import scenes
from lightning_styles.metrics.evaluation import Evaluation
from lightning_styles.metrics.networks import required_models
from lightning_styles.metrics.structure import StructureDistance
from lightning_styles.models.self_similarity import structure_distance
from lightning_styles.pretrained.networks import load_structure
from tests.micro_judges import micro_vit


def test_it_is_the_mean_over_pictures_of_all_batches() -> None:
    network = load_structure("tiny/structure")
    x, y = (torch.rand(3, 3, 32, 32) * 2 - 1 for _ in range(2))
    metric, same = StructureDistance(network), StructureDistance(network)
    metric.update(x[:2], y[:2])
    metric.update(x[2:], y[2:])
    same.update(x, x)
    assert metric.compute() == pytest.approx(structure_distance(network, x, y).mean().item(), rel=1e-5)
    assert metric.compute() > 0
    assert same.compute() == 0


@pytest.mark.parametrize("style", ["cartoon", "sketch"])
def test_a_twin_keeps_the_structure_of_its_photo_and_other_scenes_do_not(style: str) -> None:
    network, drawn = load_structure("tiny/structure"), scenes.sample_scenes(1, range(12))
    photo, twin = (scenes.render(drawn, name, 64) for name in ("photo", style))
    own, others = (structure_distance(network, photo, x).mean() for x in (twin, photo.roll(1, 0)))
    assert own < 0.8 * others


def test_it_is_a_metric_of_a_config(tmp_path: Path) -> None:
    torch.save(micro_vit().state_dict(), tmp_path / "dino.pth")
    metrics = {"structure": str(tmp_path / "dino.pth")}
    assert required_models(metrics) == [(metrics["structure"], "structure")]
    evaluation, x, y = Evaluation(metrics), torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    evaluation.update(x, y)
    expected = structure_distance(load_structure(metrics["structure"]), x, y).mean().item()
    assert evaluation.compute()["structure"] == pytest.approx(expected, rel=1e-5)
    assert evaluation.notes()[0].startswith(f"structure: {metrics['structure']} (sha256 ")
