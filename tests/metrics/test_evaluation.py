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
from lightning_styles.imaging import save_png
from lightning_styles.metrics.evaluation import Evaluation
from lightning_styles.metrics.features import ArtInceptionFeatures, PooledFeatures
from lightning_styles.metrics.fid import art_fid, frechet_distance, kernel_distance
from lightning_styles.metrics.networks import required_models
from lightning_styles.metrics.perceptual import load_lpips
from lightning_styles.models.identity import IdentityNet
from lightning_styles.models.perceptual import PerceptualNet
from lightning_styles.module import StyleModule
from lightning_styles.pretrained.networks import load_identity, load_perceptual, save_network
from tests.golden.fid_world import art_inception, case_of, fill_network, made_of, write


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
    features = PooledFeatures(network)
    relative = {"content_rel", "twin_rel"}
    assert values.keys() == {"n", "content", "identity", "twin", "twin_l1", "spectrum", "kd", "fd", "artfd"} | relative
    gap = network(source, twin).mean().item()
    assert values["content_rel"] == pytest.approx(values["content"] / gap, rel=1e-4)
    assert values["twin_rel"] == pytest.approx(values["twin"] / gap, rel=1e-4)
    assert values["n"] == 18
    assert values["content"] == pytest.approx(network(result, source).mean().item(), rel=1e-4)
    assert values["identity"] == pytest.approx((identity(result) * identity(source)).sum(1).mean().item(), abs=1e-5)
    assert values["twin"] == pytest.approx(network(result, twin).mean().item(), rel=1e-4)
    assert values["twin_l1"] == pytest.approx((result - twin).abs().mean().item(), rel=1e-5)
    assert values["fd"] == pytest.approx(frechet_distance(features(twin), features(result)), rel=1e-3)
    assert values["kd"] == pytest.approx(kernel_distance(features(twin), features(result)), rel=1e-3)
    assert values["artfd"] == pytest.approx(art_fid(values["content"], values["fd"]))


def test_the_exact_answer_scores_perfectly(networks: dict[str, str]) -> None:
    evaluation = Evaluation(networks)
    twin = pictures(16)
    evaluation.update(twin, pictures(16), twin)
    values = evaluation.compute()
    assert (values["twin"], values["twin_l1"], values["spectrum"]) == (0, 0, 0)
    assert values["fd"] == pytest.approx(0, abs=1e-4)


def test_without_twins_only_the_source_counts_until_style_images_are_given(networks: dict[str, str]) -> None:
    evaluation = Evaluation(networks)
    result = pictures(16)
    evaluation.update(result, result)
    values = evaluation.compute()
    assert values.keys() == {"n", "content", "identity"}
    assert values["content"] == 0
    assert values["identity"] == pytest.approx(1)
    evaluation.set_style_images(result)
    assert evaluation.compute()["fd"] == pytest.approx(0, abs=1e-4)


def test_given_style_images_take_the_twins_place(networks: dict[str, str]) -> None:
    evaluation = Evaluation(networks)
    result = pictures(16)
    evaluation.set_style_images(result)
    evaluation.update(result, pictures(16), pictures(16))
    values = evaluation.compute()
    assert values["fd"] == pytest.approx(0, abs=1e-4)
    assert values["twin_l1"] > 0


def test_few_pictures_leave_fid_out_and_say_so(networks: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    evaluation = Evaluation(networks)
    evaluation.set_style_images(pictures(20))
    evaluation.update(pictures(4), pictures(4), pictures(4))
    values = evaluation.compute()
    assert "kd" in values
    assert not {"fd", "artfd"} & values.keys()
    assert "fd left out: 4 results and 20 style images, it needs at least 16 of each; kd stays." in caplog.text


def test_style_images_of_the_config_are_squares_as_large_as_the_results(
    networks: dict[str, str], tmp_path: Path
) -> None:
    wide = torch.rand(3, 3, 96, 160) * 2 - 1
    wide[..., 32:128] = 0.5  # all that a middle square shows
    for i, image in enumerate(wide):
        save_png(tmp_path / "styles" / f"{i}.png", image)
    metrics = networks | {"style_images": str(tmp_path / "styles")}
    assert (metrics["style_images"], "file") in required_models(metrics)
    evaluation, plain = Evaluation(metrics), torch.full((3, 3, 64, 80), 0.5)
    seen: list[torch.Size] = []
    evaluation.features["style_features"].register_forward_pre_hook(lambda network, given: seen.append(given[0].shape))
    evaluation.update(plain, plain, -plain)
    for found in (evaluation.compute(), evaluation.compute()):
        assert evaluation.style_n.compute() == 3, "the twins are no style images, and files are read once"
        assert found["kd"] == pytest.approx(0, abs=1e-3)
    assert seen == [(3, 3, 64, 80), *[(1, 3, 64, 64)] * 3]
    assert f"style images: {tmp_path / 'styles'}, 3, as middle squares" in evaluation.notes()
    other = evaluation.another()
    other.update(-plain[:2], plain[:2])
    assert (other.compute()["n"], other.style_n.compute()) == (2, 3)
    with pytest.raises(UserError, match="There is no file .*nowhere; put it there"):
        Evaluation(networks | {"style_images": str(tmp_path / "nowhere")})


def test_fids_inception_makes_fid_and_kid_and_no_artfid(
    networks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    features = PooledFeatures(load_perceptual(networks["perceptual"]))
    monkeypatch.setattr(
        "lightning_styles.metrics.evaluation.load_style_networks", lambda names: {"inception": features}
    )
    evaluation = Evaluation({"perceptual": networks["perceptual"], "inception": "inception-fid"})
    evaluation.update(pictures(16), pictures(16), pictures(16))
    assert evaluation.compute().keys() & {"fid", "kid", "fd", "kd", "artfid", "artfd"} == {"fid", "kid"}


def test_artfid_is_of_its_own_networks_alone(tmp_path: Path) -> None:
    from torchvision.models import alexnet, squeezenet1_1

    trunks = {"alex": alexnet, "squeeze": squeezenet1_1}
    files = {name: write(made_of(make).state_dict(), tmp_path / f"{name}.pth") for name, make in trunks.items()}
    art = write(fill_network(art_inception(), case_of("artfid/inception_features")[0]["fill"]), tmp_path / "art.pth")
    with pytest.raises(UserError, match=r"ArtFID is of LPIPS with AlexNet; give lpips: alexnet-imagenet, not .*squeez"):
        Evaluation({"lpips": files["squeeze"], "art_inception": art})
    torch.manual_seed(0)
    alex = {key: 0.05 * torch.randn_like(x) for key, x in torch.load(files["alex"]).items()}
    evaluation = Evaluation({"lpips": write(alex, tmp_path / "alex.pth"), "art_inception": art})
    result, source, style = (torch.rand(n, 3, 80, 80) * 2 - 1 for n in (17, 17, 16))
    evaluation.set_style_images(style)
    evaluation.update(result, source)
    values, features = evaluation.compute(), ArtInceptionFeatures(art)
    assert values["content"] == pytest.approx(load_lpips(files["alex"])(result, source).mean().item(), rel=1e-4)
    assert values["artfid_style"] == pytest.approx(frechet_distance(features(style), features(result)), rel=1e-3)
    assert values["artfid"] == pytest.approx((1 + values["content"]) * (1 + values["artfid_style"]))
    assert not {"fid", "kid", "fd", "artfd", "artfid_inf"} & values.keys()


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
        ({"zzz": "x"}, "known are perceptual, lpips, identity, structure, inception, art_inception, style_features"),
        ({"perceptual": "x", "art_inception": "y"}, "ArtFID of LPIPS; add lpips: alexnet-imagenet"),
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
    for i, image in enumerate(pictures(18)):
        save_png(tmp_path / "styles" / f"{i}.png", image)
    networks |= {"style_images": str(tmp_path / "styles")}
    torch.multiprocessing.start_processes(evaluate_share, (str(tmp_path), networks), 2, start_method="forkserver")
    evaluation = Evaluation(networks)
    evaluation.update(*together)
    values = evaluation.compute()
    assert evaluation.style_n.compute() == 18
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
    assert values["test/artfd"] == pytest.approx(1 + values["test/fd"])
