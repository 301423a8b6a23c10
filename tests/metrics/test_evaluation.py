"""The metrics of a configuration together."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.distributed
import torch.multiprocessing

from datamodules import Pictures
from lightning_styles.errors import UserError
from lightning_styles.metrics.evaluation import Evaluation, required_models
from lightning_styles.metrics.fid import FrechetDistance, PooledFeatures, art_fid
from lightning_styles.models.identity import IdentityNet
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.module import StyleModule
from lightning_styles.pretrained.networks import load_identity, load_perceptual, save_network


@pytest.fixture
def networks(tmp_path: Path) -> dict[str, str]:
    perceptual, identity = tmp_path / "perceptual.safetensors", tmp_path / "identity.safetensors"
    save_network(PerceptualNet((4, 8)), perceptual, widths=[4, 8])
    save_network(IdentityNet((8, 8, 8, 8), 16), identity, widths=[8, 8, 8, 8], embedding=16)
    return {"perceptual": str(perceptual), "identity": str(identity), "style_features": str(perceptual)}


def pictures(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 64, 64) * 2 - 1


def test_every_value_is_what_its_part_says(networks: dict[str, str]) -> None:
    evaluation = Evaluation(networks)
    result, source, twin = pictures(18), pictures(18), pictures(18)
    for part in (slice(0, 10), slice(10, 18)):
        evaluation.update(result[part], source[part], twin[part])
    values = evaluation.compute()
    network, identity = load_perceptual(networks["perceptual"]), load_identity(networks["identity"])
    features, fid = PooledFeatures(network), FrechetDistance(12)
    fid.update(features(twin), real=True)
    fid.update(features(result), real=False)
    relative = {"content_rel", "twin_rel"}
    assert (
        values.keys() == {"n", "content", "identity", "twin", "twin_l1", "spectrum", "kid", "fid", "artfid"} | relative
    )
    gap = network(source, twin).mean().item()
    assert values["content_rel"] == pytest.approx(values["content"] / gap, rel=1e-4)
    assert values["twin_rel"] == pytest.approx(values["twin"] / gap, rel=1e-4)
    assert values["n"] == 18
    assert values["content"] == pytest.approx(network(result, source).mean().item(), rel=1e-4)
    assert values["identity"] == pytest.approx((identity(result) * identity(source)).sum(1).mean().item(), abs=1e-5)
    assert values["twin"] == pytest.approx(network(result, twin).mean().item(), rel=1e-4)
    assert values["twin_l1"] == pytest.approx((result - twin).abs().mean().item(), rel=1e-5)
    assert values["fid"] == pytest.approx(fid.compute().item(), rel=1e-3)
    assert values["artfid"] == pytest.approx(art_fid(values["content"], values["fid"]))


def test_the_exact_answer_scores_perfectly(networks: dict[str, str]) -> None:
    evaluation = Evaluation(networks)
    twin = pictures(16)
    evaluation.update(twin, pictures(16), twin)
    values = evaluation.compute()
    assert (values["twin"], values["twin_l1"], values["spectrum"]) == (0, 0, 0)
    assert values["fid"] == pytest.approx(0, abs=1e-4)


def test_without_twins_only_the_source_counts_until_style_images_are_given(networks: dict[str, str]) -> None:
    evaluation = Evaluation(networks)
    result = pictures(16)
    evaluation.update(result, result)
    values = evaluation.compute()
    assert values.keys() == {"n", "content", "identity"}
    assert values["content"] == 0
    assert values["identity"] == pytest.approx(1)
    evaluation.set_style_images(result)
    assert evaluation.compute()["fid"] == pytest.approx(0, abs=1e-4)


def test_given_style_images_take_the_twins_place(networks: dict[str, str]) -> None:
    evaluation = Evaluation(networks)
    result = pictures(16)
    evaluation.set_style_images(result)
    evaluation.update(result, pictures(16), pictures(16))
    values = evaluation.compute()
    assert values["fid"] == pytest.approx(0, abs=1e-4)
    assert values["twin_l1"] > 0


def test_few_pictures_leave_fid_out_and_say_so(networks: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    evaluation = Evaluation(networks)
    evaluation.update(pictures(4), pictures(4), pictures(4))
    values = evaluation.compute()
    assert "kid" in values
    assert "fid" not in values
    assert "artfid" not in values
    assert "FID left out: 4 pictures, it needs at least 16" in caplog.text


def test_nothing_to_measure(networks: dict[str, str]) -> None:
    with pytest.raises(UserError, match="There was no picture to measure"):
        Evaluation(networks).compute()


def test_required_models() -> None:
    metrics = {"perceptual": "tiny/perceptual", "identity": "tiny/identity", "style_features": "tiny/perceptual"}
    assert required_models(metrics) == [("tiny/perceptual", "perceptual"), ("tiny/identity", "identity")]
    assert required_models({"lpips": "a.pth", "inception": "b.pth"}) == [("a.pth", "lpips"), ("b.pth", "inception")]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"perceptuel": "x"}, "no metric 'perceptuel': did you mean perceptual?"),
        ({"zzz": "x"}, "known are perceptual, lpips, identity, structure, style_features, inception"),
        ({"perceptual": "x", "lpips": "y"}, "perceptual and lpips, which measure the same"),
    ],
)
def test_mistakes_in_the_configuration(metrics: dict[str, str], message: str) -> None:
    with pytest.raises(UserError) as error:
        Evaluation(metrics)
    assert message in str(error.value)


def test_notes_name_networks_hashes_and_resolution(networks: dict[str, str]) -> None:
    evaluation = Evaluation(networks)
    evaluation.update(pictures(1), pictures(1))
    notes = evaluation.notes()
    assert notes[0].startswith(f"perceptual: {networks['perceptual']} (sha256 ")
    assert "resolution: 64 x 64" in notes[3]
    assert "comparable only with each other" in notes[4]


def evaluate_share(rank: int, folder: str, networks: dict[str, str]) -> None:
    """Rank 0 has every picture in three batches, rank 1 has none."""
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    evaluation = Evaluation(networks)
    if rank == 0:
        for part in torch.load(f"{folder}/pictures.pt").split(6, dim=1):
            evaluation.update(*part)
    torch.save(evaluation.compute(), f"{folder}/values_{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path, networks: dict[str, str]) -> None:
    together = torch.stack([pictures(18), pictures(18), pictures(18)])
    torch.save(together, tmp_path / "pictures.pt")
    torch.multiprocessing.start_processes(evaluate_share, (str(tmp_path), networks), 2, start_method="forkserver")
    evaluation = Evaluation(networks)
    evaluation.update(*together)
    values = evaluation.compute()
    for rank in range(2):
        assert torch.load(tmp_path / f"values_{rank}.pt") == pytest.approx(values, rel=1e-3, abs=1e-5)


class Untouched(StyleModule):
    """A method that hands back its source."""

    def __init__(self, metrics: dict[str, str]) -> None:
        super().__init__(iterations=1, metrics=metrics)

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        return {"image": list(batch["image"]), "name": batch["name"], "settings": {}}


def test_the_test_loop_of_a_method_on_scenes(networks: dict[str, str]) -> None:
    data = Pictures(images="scene:portrait/0-17?seed=1", resolution=64, batch_size=8, twin_style="cartoon")
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", **silent)
    (values,) = trainer.test(Untouched(networks), datamodule=data, verbose=False)
    assert values["test/n"] == 18
    assert values["test/content"] == 0
    assert values["test/identity"] == pytest.approx(1, abs=1e-5)
    pictures = data.pictures()
    l1 = sum((picture["image"] - picture["twin"]).abs().mean().item() for picture in pictures) / 18
    assert values["test/twin_l1"] == pytest.approx(l1, rel=1e-4)
    assert values["test/artfid"] == pytest.approx(1 + values["test/fid"])
