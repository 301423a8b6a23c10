"""Features of FID's and ArtFID's Inception, of filled networks against the official ones, and the embedded ones."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_styles.errors import UserError
from lightning_styles.metrics.features import ArtInceptionFeatures, InceptionFeatures, PooledFeatures, to_inception
from lightning_styles.models.perceptual import PerceptualNet
from tests.golden.fid_world import art_inception, case_of, excess, fid_inception, fill_network, picture, write


def test_pooled_features_are_channel_means_of_all_levels() -> None:
    network, x = PerceptualNet((4, 8)).eval(), torch.rand(2, 3, 16, 16)
    pooled = PooledFeatures(network)
    assert pooled.num_features == 12
    first, second = network.features(x)
    torch.testing.assert_close(pooled(x)[:, :4], first.mean((2, 3)))
    torch.testing.assert_close(pooled(x)[:, 4:], second.mean((2, 3)))


def test_pictures_are_resized_as_pytorch_fid_does() -> None:
    case, inputs, expected = case_of("fid/resize_modes")
    found = to_inception(inputs["x"], case["config"]["target"])
    assert excess(found, expected["pytorch_fid"], case) < 1
    for other in ("torchmetrics_antialias", "tensorflow1"):
        assert excess(found, expected[other], case) > 100


def test_features_of_fid_are_the_official_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case, inputs, expected = case_of("fid/inception_features")
    state = fill_network(fid_inception(monkeypatch), case["fill"])
    features = InceptionFeatures(write(state, tmp_path / "fid.pth"))
    assert not any(p.requires_grad for p in features.parameters())
    assert not features.trunk.training
    images = 2 * picture(inputs) - 1
    torch.testing.assert_close(to_inception(images)[:, :, :6, :6], expected["resized.corner"], rtol=1e-4, atol=1e-4)
    levels: dict[str, Tensor] = {}
    for name, layer in ((64, 3), (192, 6), (768, 14)):
        watch(features.trunk[layer], levels, f"features_{name}")
    levels["features_2048"] = features(images)
    assert [excess(levels[name], expected[name], case) < 1 for name in sorted(levels)] == [True] * 4


def watch(layer: nn.Module, seen: dict[str, Tensor], name: str) -> None:
    layer.register_forward_hook(lambda module, given, out: seen.update({name: out.mean((2, 3))}))


def test_features_of_artfid_are_the_official_ones(tmp_path: Path) -> None:
    case, inputs, expected = case_of("artfid/inception_features")
    state = fill_network(art_inception(), case["fill"])
    features = ArtInceptionFeatures(write(state, tmp_path / "art_inception.pth"))
    found = features(2 * picture(inputs) - 1)
    assert found.shape == (2, features.num_features)
    assert excess(found, expected["features"], case) < 1
    with pytest.raises(UserError, match="ArtFID needs pictures of at least 75 px each way, these have 74 x 96"):
        features(torch.zeros(1, 3, 74, 96))
    headless = {key: x for key, x in state.items() if not key.startswith("fc")}
    with pytest.raises(UserError, match=r"headless\.pth does not hold the weights of ArtFID's Inception, whose heads"):
        ArtInceptionFeatures(write(headless, tmp_path / "headless.pth"))
    del state["Mixed_7c.branch_pool.bn.bias"]
    with pytest.raises(UserError, match=r"less\.pth does not fit Inception3: 1 keys missing \(first Mixed_7c"):
        ArtInceptionFeatures(write(state, tmp_path / "less.pth"))


def test_inception_needs_its_package_and_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"inception 'nowhere.pth' is neither a file or folder nor a known name"):
        InceptionFeatures("nowhere.pth")
    with pytest.raises(UserError, match=r"'art-inception' is not on this machine .*Source: https://huggingface\.co"):
        ArtInceptionFeatures("art-inception")
    (tmp_path / "empty.pth").touch()
    for features in (InceptionFeatures, ArtInceptionFeatures):
        with pytest.raises(UserError, match=r"cannot be read as weights; expected the weights of (FID|ArtFID)'s Incep"):
            features(str(tmp_path / "empty.pth"))
    other = write({"weight": torch.ones(2)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth does not hold the weights of FID's Inception"):
        InceptionFeatures(other)
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r"needs torch-fidelity: pip install 'lightning-styles\[metrics\]'"):
        InceptionFeatures(other)
