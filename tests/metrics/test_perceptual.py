"""Distances of pairs of pictures."""

import warnings
from pathlib import Path

import lpips
import pytest
import torch
from torchvision.models import squeezenet1_1

from lightning_styles.errors import UserError
from lightning_styles.metrics.identity import IdentitySimilarity
from lightning_styles.metrics.perceptual import LPIPS, PerceptualDistance, PixelDistance, load_lpips
from lightning_styles.models.identity import IdentityNet
from lightning_styles.models.perceptual import PerceptualNet


def pictures(n: int, size: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, size, size) * 2 - 1


def test_pixel_distance_is_the_mean_over_pictures_of_all_batches() -> None:
    metric, black = PixelDistance(), torch.full((3, 3, 4, 4), -1.0)
    metric.update(black, black)
    metric.update(black[:1], -black[:1])
    assert metric.compute() == pytest.approx(2 / 4)


def test_perceptual_distance() -> None:
    network, x, y = PerceptualNet((4, 8)).eval(), pictures(3), pictures(3)
    same, other = PerceptualDistance(network), PerceptualDistance(network)
    same.update(x, x)
    other.update(x[:2], y[:2])
    other.update(x[2:], y[2:])
    assert same.compute() == 0
    assert other.compute() == pytest.approx(network(x, y).mean().item(), rel=1e-4)


def test_identity_similarity_of_the_same_and_of_other_pictures() -> None:
    network, x, y = IdentityNet((8, 8, 8, 8), 16).eval(), pictures(2, 64), pictures(2, 64)
    same, other = IdentitySimilarity(network), IdentitySimilarity(network)
    same.update(x, x)
    other.update(x, y)
    assert same.compute() == pytest.approx(1)
    assert other.compute() == pytest.approx((network(x) * network(y)).sum(1).mean().item(), rel=1e-4)


@pytest.fixture
def trunk() -> dict[str, torch.Tensor]:
    return squeezenet1_1(weights=None).state_dict()


def test_lpips_takes_its_trunk_from_the_file(tmp_path: Path, trunk: dict[str, torch.Tensor]) -> None:
    torch.save(trunk, tmp_path / "trunk.pth")
    before = torch.random.get_rng_state()
    network = load_lpips(str(tmp_path / "trunk.pth"))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert network.kind == "squeeze"
    assert not any(p.requires_grad for p in network.parameters())
    own = network.network.net.state_dict()
    assert len(own) == len([key for key in trunk if key.startswith("features")])
    for key, value in own.items():
        assert torch.equal(value, trunk["features." + key.split(".", 1)[1]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False)
    reference.load_state_dict(network.network.state_dict())
    x, y = pictures(2, 64), pictures(2, 64)
    assert torch.allclose(network(x, y), reference(x, y).flatten())
    assert network(x, x).tolist() == [0, 0]


def test_heads_alone_and_other_networks_are_refused(tmp_path: Path) -> None:
    heads = {"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}
    with pytest.raises(UserError, match="the linear heads of LPIPS alone; it needs the trunk"):
        LPIPS(heads)
    with pytest.raises(UserError, match="holds another network"):
        LPIPS({"features.0.weight": torch.ones(1)})
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text\.pth cannot be read as weights"):
        load_lpips(str(tmp_path / "text.pth"))
