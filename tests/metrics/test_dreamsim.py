"""DreamSim: its distance by hand-worked numbers, its package as a stand-in of the same interface."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lightning_styles.errors import UserError
from lightning_styles.metrics.dreamsim import ADAPTER, DINO, FILES, DreamSim, load_dreamsim, prepared
from lightning_styles.metrics.evaluation import Evaluation
from lightning_styles.metrics.networks import required_models
from lightning_styles.pretrained import fingerprint
from tests.micro_judges import micro_vit


class Channels(nn.Module):
    """Embeds a picture as the means of its channels."""

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        assert images.shape[1:] == (3, 224, 224)
        return images.mean((2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with every file of DreamSim, of which none holds anything."""
    for name in (*FILES, ADAPTER[0]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the stand-in of the package was asked for."""
    found: list[dict[str, Any]] = []

    def make(**kwargs: Any) -> tuple[nn.Module, None]:
        found.append(kwargs)
        print("Using cached")
        torch.hub.set_dir("/nowhere")
        torch.rand(1)
        return Channels(), None

    package = ModuleType("dreamsim")
    package.dreamsim = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dreamsim", package)
    return found


def colours(*rgb: tuple[float, float, float]) -> torch.Tensor:
    """Pictures (B, 3, 32, 40) of one colour each, given in [0, 1]."""
    return (torch.tensor(rgb) * 2 - 1).view(-1, 3, 1, 1).expand(-1, -1, 32, 40)


X = ((1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.2, 0.4, 0.6))
Y = ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.1, 0.2, 0.3))
# cosines: 0; 1 / sqrt(2); 1, since the third two differ in brightness alone. Steps of 8 bits move 0.1 to 0.102.
DISTANCES = (1.0, 1 - 0.5**0.5, 0.0)


def test_the_distance_is_one_minus_the_cosine() -> None:
    network = DreamSim(Channels())
    assert network(colours(*X), colours(*Y)).tolist() == pytest.approx(DISTANCES, abs=1e-4)
    assert network(colours(X[1]), colours(Y[1])).shape == (1,)


@pytest.mark.parametrize("size", [(64, 48), (300, 400)])
def test_pictures_are_prepared_as_pillow_does(size: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(rows).resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    images = torch.from_numpy(rows).permute(2, 0, 1)[None].float() / 127.5 - 1
    found = prepared(images)[0].permute(1, 2, 0).numpy() * 255
    assert np.abs(found - expected).max() < 1.01
    assert (np.abs(found - expected) > 0.01).mean() < 0.01


def test_it_is_loaded_from_its_folder_without_a_trace(
    folder: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    before, hub, files = torch.random.get_rng_state(), torch.hub.get_dir(), sorted(folder.rglob("*"))
    network = load_dreamsim(str(folder))
    assert calls == [{"pretrained": True, "device": "cpu", "cache_dir": str(folder)}]
    assert isinstance(network.network, Channels)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.hub.get_dir() == hub
    assert sorted(folder.rglob("*")) == files
    assert capsys.readouterr().out == ""


def test_it_is_a_metric_of_a_config(folder: Path, calls: list[dict[str, Any]]) -> None:
    metrics = {"dreamsim": str(folder)}
    assert required_models(metrics) == [(str(folder), "dreamsim")]
    evaluation = Evaluation(metrics)
    evaluation.update(colours(*X), colours(*Y), colours(*X), group=torch.tensor([0, 0, 1]))
    values = evaluation.compute()
    assert values.keys() >= {"n", "dreamsim_content", "dreamsim_twin", "dreamsim_diversity"}
    assert "content" not in values
    assert values["dreamsim_content"] == pytest.approx(sum(DISTANCES) / 3, abs=1e-4)
    assert values["dreamsim_twin"] == pytest.approx(0, abs=1e-6)
    assert values["dreamsim_diversity"] == pytest.approx(1 - 0.5**0.5, abs=1e-4)
    assert len(calls) == 1
    assert evaluation.notes()[0] == f"dreamsim: {folder} (sha256 {fingerprint(folder)[:12]})"


def test_both_distances_stand_side_by_side(folder: Path, calls: list[dict[str, Any]]) -> None:
    evaluation = Evaluation({"dreamsim": str(folder), "perceptual": "tiny/perceptual"})
    evaluation.update(colours(*X), colours(*X), colours(*X))
    assert {"content", "dreamsim_content", "twin", "dreamsim_twin"} <= evaluation.compute().keys()


def test_missing_files_are_named_and_nothing_is_fetched(folder: Path, calls: list[dict[str, Any]]) -> None:
    (folder / FILES[1]).unlink()
    (folder / ADAPTER[0]).unlink()
    with pytest.raises(UserError) as error:
        load_dreamsim(str(folder))
    assert f"DreamSim in {folder} lacks {FILES[1]}, {ADAPTER[0]}; unpack " in str(error.value)
    (folder / ADAPTER[1]).write_bytes(b"")  # as older versions of peft name it
    with pytest.raises(UserError, match=rf"lacks {FILES[1]}; unpack"):
        load_dreamsim(str(folder))
    assert calls == []


class Ensemble(nn.Module):
    """Embeds by a vision transformer that it asks torch.hub for, as the package does, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = torch.hub.load("facebookresearch/dino:main", "dino_vitb16")
        self.extractor_list = [SimpleNamespace(device="nowhere")]

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        assert self.extractor_list[0].device == images.device
        assert (images.min() >= 0, images.max() <= 1) == (True, True)
        return self.vit(images)


def test_its_dino_is_read_from_the_folder_whole_or_not_at_all(
    folder: Path, calls: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = sys.modules["dreamsim"]
    package.dreamsim = lambda **kwargs: (Ensemble(), None)  # type: ignore[attr-defined]
    transformer = ModuleType("dreamsim.feature_extraction.vision_transformer")
    transformer.vit_base = lambda patch_size: micro_vit(dynamic_img_size=True).to_empty(device="cpu")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, transformer.__name__, transformer)
    vit = micro_vit(dynamic_img_size=True)
    torch.save(vit.state_dict(), folder / DINO)
    network = load_dreamsim(str(folder))
    images = torch.rand(2, 3, 40, 56) * 2 - 1
    torch.testing.assert_close(network.embed(images), vit(prepared(images)))
    torch.save({"norm.bias": torch.ones(2)}, folder / DINO)
    with pytest.raises(UserError, match=r"dino_vitbase16_pretrain\.pth does not fit VisionTransformer"):
        load_dreamsim(str(folder))


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(UserError, match=r"pip install 'lightning-styles\[metrics\]'"):
        load_dreamsim(str(folder))


def test_a_folder_that_is_nowhere() -> None:
    with pytest.raises(UserError, match="'dreamsim' is not on this machine .*Source: https://github.com/ssundaram21"):
        load_dreamsim("dreamsim")


def test_the_weights_in_a_folder_count_for_its_fingerprint(folder: Path) -> None:
    before = fingerprint(folder)
    fingerprint.cache_clear()
    (folder / FILES[1]).write_bytes(b"other")
    assert fingerprint(folder) != before
